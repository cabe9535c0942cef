import numpy as np
import pytest
import torch

from insight.data.batch import ImageTextBatch, Phrase
from insight.data.images import normalise
from insight.errors import InputError
from insight.interpret.capture import capture, capture_classes, examples_of, shown_layers
from insight.interpret.record import attention_layers, record_attention
from insight.interpret.untouched import evaluating
from insight.models.classifier import ImageClassifier
from insight.models.cross_attention import CrossAttentionMultiModalTransformer
from insight.models.multimodal import MultiModalTransformer
from insight.models.vision_transformer import VisionTransformer

SHAPE = {"vocab_size": 20, "image_size": 16, "patch_size": 8, "context_length": 6, "dim": 8, "image_depth": 2, "text_depth": 1, "heads": 2}


def inputs():
    pixels = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    return pixels, normalise(pixels), torch.randint(3, 20, (2, 6)), torch.tensor([[True] * 6, [True] * 3 + [False] * 3])


def test_arrays_are_the_recorded_weights():
    torch.manual_seed(0)
    model, (pixels, image, tokens, mask) = CrossAttentionMultiModalTransformer(**SHAPE).eval(), inputs()
    arrays = capture(model, image, tokens, mask)
    with torch.no_grad(), record_attention(model) as maps:
        output = model(image, tokens, mask)
        model.fuse(output.text.tokens, mask, output.image.tokens)
    assert np.array_equal(arrays["picture"], pixels.permute(0, 2, 3, 1).numpy())
    last, crossing = maps["image.blocks.1.attention"], maps["fusion.1.cross_attention"]
    np.testing.assert_allclose(arrays["class/image.blocks.1.attention"], last[:, :, 0].numpy(), atol=1e-3)
    np.testing.assert_allclose(arrays["heads/fusion.1.cross_attention"], crossing.numpy(), atol=1e-3)
    np.testing.assert_allclose(arrays["words/fusion.1.cross_attention"], (crossing[:, 0] + crossing[:, 1]).numpy() / 2, atol=1e-3)
    mixed = [(maps[f"image.blocks.{index}.attention"].mean(dim=1) + torch.eye(5)) / 2 for index in range(2)]
    np.testing.assert_allclose(arrays["rollout"], (mixed[1] @ mixed[0])[:, 0].numpy(), atol=1e-3)


def test_a_dual_encoder_has_no_word_maps():
    _, image, tokens, mask = inputs()
    arrays = capture(MultiModalTransformer(**SHAPE), image, tokens, mask)
    assert set(arrays) == {"picture", "rollout", "class/image.blocks.0.attention", "class/image.blocks.1.attention"}


def test_capture_leaves_modes_random_state_and_taps_as_they_were():
    model, (_, image, tokens, mask) = CrossAttentionMultiModalTransformer(**SHAPE, dropout=0.5).train(), inputs()
    model.text.eval()  # as a frozen part
    modes, state = [module.training for module in model.modules()], torch.get_rng_state()
    first, second = capture(model, image, tokens, mask), capture(model, image, tokens, mask)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(np.array_equal(first[name], second[name]) for name in first)  # no dropout
    assert not any(layer.tap.listeners for layer in attention_layers(model).values())
    assert torch.is_grad_enabled()


def test_modes_come_back_after_an_exception():
    model = MultiModalTransformer(**SHAPE).train()
    seen = []
    with pytest.raises(KeyError), evaluating(model):
        {}[seen.append(model.training)]
    assert seen == [False]
    assert model.training and torch.is_grad_enabled()


def test_a_large_picture_is_made_smaller():
    model = MultiModalTransformer(**{**SHAPE, "image_size": 256, "patch_size": 128})
    _, _, tokens, mask = inputs()
    assert capture(model, torch.zeros(2, 3, 256, 256), tokens, mask)["picture"].shape == (2, 144, 144, 3)


def test_shown_layers_are_the_last_or_the_named_ones():
    model = CrossAttentionMultiModalTransformer(**SHAPE)
    assert shown_layers(model, None) == ("image.blocks.1.attention",)
    assert shown_layers(model, ["image.blocks.0", "image.blocks.1.attention"]) == ("image.blocks.0.attention", "image.blocks.1.attention")
    for wrong in ("image.blocks.2", "text.blocks.0", "fusion.0.cross_attention", ""):
        with pytest.raises(InputError, match=r"image\.blocks\.0\.attention, image\.blocks\.1\.attention"):
            shown_layers(model, [wrong])


def test_as_many_captions_as_pictures_are_needed():
    _, image, tokens, mask = inputs()
    with pytest.raises(InputError, match="1 pictures but 2 captions"):
        capture(MultiModalTransformer(**SHAPE), image[:1], tokens, mask)


def test_each_example_gets_its_own_words_and_phrases():
    phrases = (Phrase(1, "a dog", 0, 5, "9", ((0.0, 0.0, 1.0, 1.0),)), Phrase(0, "cat", 2, 5, "8", ()))
    ids, tokens = torch.arange(2), torch.zeros(2, 6, dtype=torch.int64)
    batch = ImageTextBatch(inputs()[1], None, tokens, tokens > 0, ids, ids, ids, ("a cat", "a dog"), ("x.jpg", "y.jpg"), phrases)
    first, second = examples_of(batch, [[("cat", 2, 5, [2])], [("dog", 2, 5, (2, 3))]])
    assert (first.filename, first.caption, first.words[0].positions, first.phrases[0].text) == ("x.jpg", "a cat", (2,), "cat")
    assert (second.filename, second.words[0].text, second.phrases[0].boxes) == ("y.jpg", "dog", ((0.0, 0.0, 1.0, 1.0),))


@torch.no_grad()
@pytest.mark.parametrize("pool", ["first", "mean", "attention"])
def test_a_classifiers_maps_are_read_as_it_pools_and_its_answer_stands_beside_them(pool):
    torch.manual_seed(0)
    model, image = ImageClassifier(3, 16, 8, 16, depth=2, heads=2, pool=pool).eval(), torch.randn(2, 3, 16, 16)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    arrays, probability = capture_classes(model, image)
    with record_attention(model) as maps:
        logits = model(image).logits
    last = maps["image.blocks.1.attention"]
    mixed = [(maps[f"image.blocks.{index}.attention"].mean(dim=1) + torch.eye(5)) / 2 for index in range(2)]
    rolled = mixed[1] @ mixed[0]
    if pool == "first":
        expected, expected_rollout = last[:, :, 0], rolled[:, 0]
    elif pool == "mean":
        expected, expected_rollout = last[:, :, 1:].mean(dim=2), rolled[:, 1:].mean(dim=1)
    else:
        read = maps["image.pool.attend.attention"].mean(dim=1)
        expected, expected_rollout = (read[:, None] @ last)[:, :, 0], (read @ rolled)[:, 0]
    np.testing.assert_allclose(arrays["class/image.blocks.1.attention"], expected.numpy(), atol=1e-3)
    np.testing.assert_allclose(arrays["rollout"], expected_rollout.numpy(), atol=1e-3)
    np.testing.assert_allclose(probability, logits.softmax(dim=-1).numpy(), atol=1e-6)
    assert shown_layers(model, ["image.blocks.0"]) == ("image.blocks.0.attention",)


@torch.no_grad()
def test_where_there_is_no_class_token_its_place_stays_empty():
    torch.manual_seed(0)
    model, (_, image, tokens, mask) = MultiModalTransformer(**SHAPE).eval(), inputs()
    model.image = VisionTransformer(16, 8, 8, 2, 2, class_token=False, pool="attention").eval()
    arrays = capture(model, image, tokens, mask)
    with record_attention(model.image) as maps:
        model.image(image)
    expected = (maps["pool.attend.attention"].mean(dim=1)[:, None] @ maps["blocks.1.attention"])[:, :, 0]
    shown = arrays["class/image.blocks.1.attention"]
    assert shown.shape == (2, 2, 5) and not shown[..., 0].any()
    np.testing.assert_allclose(shown[..., 1:], expected.numpy(), atol=1e-3)
