import math

import pytest
import torch

from insight.errors import InputError
from insight.interpret.record import attention_layers, record_attention
from insight.models.cross_attention import CrossAttentionMultiModalTransformer
from insight.nn.attention import Attention


def cross_model():
    torch.manual_seed(0)
    return CrossAttentionMultiModalTransformer(
        20, image_size=16, patch_size=8, context_length=6, dim=8, image_depth=2, text_depth=1, heads=2, embed_dim=8
    )


def run(model):
    generator = torch.Generator().manual_seed(0)
    mask = torch.tensor([[True] * 6, [True] * 3 + [False] * 3])
    output = model(torch.randn(2, 3, 16, 16, generator=generator), torch.randint(3, 20, (2, 6), generator=generator), mask)
    fused = model.fuse(output.text.tokens, mask, output.image.tokens)
    return [output.image.tokens, output.image.embedding, output.text.tokens, output.text.embedding, fused]


def snapshot(model):
    """Everything that a tap, a hook or a patched method could have changed."""
    state = []
    for name, module in model.named_modules():
        hooks = [len(value) for key, value in vars(module).items() if key.endswith("hooks")]
        listeners = list(module.tap.listeners) if isinstance(module, Attention) else []
        state.append((name, type(module), sorted(vars(module)), hooks, listeners, module.training))
    return state


@pytest.mark.parametrize("num_keys", [1, 3, 5])
def test_recording_shows_the_weights_and_changes_nothing_else(num_keys):
    torch.manual_seed(0)
    layer, x, context = Attention(dim=8, heads=2), torch.randn(2, 5, 8), torch.randn(2, num_keys, 8)
    fused = layer(x, context)
    with record_attention(layer) as maps:
        assert torch.equal(layer(x, context), fused)  # weights are computed beside the fused kernel, never instead of it
    torch.testing.assert_close(maps[""].sum(dim=-1), torch.ones(2, 2, 5))
    assert not layer.tap.listeners


def test_the_weights_are_those_of_the_formula():
    torch.manual_seed(0)
    layer, x = Attention(dim=4, heads=1), torch.randn(1, 3, 4)
    with record_attention(layer) as maps:
        layer(x, x)
    query, key = layer.query(x)[0], layer.key_value(x)[0, :, :4]
    for t in range(3):
        exponentials = [math.exp(float((query[t] @ key[s]).detach()) / math.sqrt(4)) for s in range(3)]
        assert maps[""][0, 0, t].tolist() == pytest.approx([one / sum(exponentials) for one in exponentials], rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_whole_model_gives_the_same_bits_with_and_without_a_recording(dtype):
    model = cross_model().eval()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        before = run(model)
        with record_attention(model) as maps:
            during = run(model)
        after = run(model)
    assert all(torch.equal(one, two) and torch.equal(one, three) for one, two, three in zip(before, during, after, strict=True))
    assert {weights.dtype for weights in maps.values()} == {torch.float32}


def test_gradients_are_the_same_with_and_without_a_recording_and_maps_carry_none():
    gradients = []
    for recording in (False, True):
        model = cross_model()
        if recording:
            with record_attention(model) as maps:
                sum(one.square().sum() for one in run(model)).backward()
            assert not any(weights.requires_grad for weights in maps.values())
        else:
            sum(one.square().sum() for one in run(model)).backward()
        gradients.append([parameter.grad for parameter in model.parameters() if parameter.grad is not None])
    assert all(torch.equal(one, two) for one, two in zip(*gradients, strict=True))


def test_maps_have_the_layers_names_rows_that_sum_to_one_and_nothing_on_padding():
    model = cross_model()
    with record_attention(model) as maps:
        run(model)
    assert {name: tuple(weights.shape) for name, weights in maps.items()} == {
        "image.blocks.0.attention": (2, 2, 5, 5),
        "image.blocks.1.attention": (2, 2, 5, 5),
        "text.blocks.0.attention": (2, 2, 6, 6),
        "fusion.0.attention": (2, 2, 6, 6),
        "fusion.0.cross_attention": (2, 2, 6, 5),
        "fusion.1.attention": (2, 2, 6, 6),
        "fusion.1.cross_attention": (2, 2, 6, 5),
    }
    for weights in maps.values():
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones(weights.shape[:-1]))
    for name in ("text.blocks.0.attention", "fusion.1.attention"):
        assert not maps[name][1, :, :, 3:].any()
        assert (maps[name][1, :, :, :3] > 0).all()


def test_the_model_is_left_clean_after_an_exception():
    model = cross_model()
    model.fusion_norm.register_forward_hook(lambda *_: {}["in the middle"])
    before = snapshot(model)
    with pytest.raises(KeyError, match="in the middle"), record_attention(model):
        run(model)
    with pytest.raises(InputError), record_attention(model, ["image.blocks.0.attention", "nowhere"]):
        pass
    assert snapshot(model) == before


def test_two_recordings_at_once_both_see_and_leave_each_other_alone():
    model = cross_model()
    with record_attention(model) as outer:
        with record_attention(model, ["fusion.1.cross_attention"]) as inner:
            run(model)
        assert all(len(layer.tap.listeners) == 1 for layer in attention_layers(model).values())
    assert list(inner) == ["fusion.1.cross_attention"]
    assert torch.equal(inner["fusion.1.cross_attention"], outer["fusion.1.cross_attention"])


def test_a_second_call_is_an_error_instead_of_a_lost_map():
    layer, x = Attention(8, 2), torch.randn(1, 3, 8)
    with record_attention(layer):
        layer(x, x)
        with pytest.raises(InputError, match="called twice"):
            layer(x, x)
    assert not layer.tap.listeners


def test_an_unknown_layer_is_an_error_that_names_the_known_ones():
    with (
        pytest.raises(InputError, match=r"Did you mean 'image.blocks.1.attention'.*fusion.0.cross_attention"),
        record_attention(cross_model(), ["image.blocks.1.atention"]),
    ):
        pass
