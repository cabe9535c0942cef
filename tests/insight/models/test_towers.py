import pytest
import torch

from insight.errors import InputError
from insight.models.text_transformer import TextTransformer
from insight.models.vision_transformer import VisionTransformer
from insight.nn.settings import BlockSettings


def text_model(**arguments):
    torch.manual_seed(0)
    return TextTransformer(**{"vocab_size": 20, "context_length": 12, "dim": 16, "depth": 2, "heads": 4, **arguments})


def captions():
    tokens, mask = torch.randint(3, 20, (3, 8)), torch.ones(3, 8, dtype=torch.bool)
    mask[0, 5:] = mask[1, 2:] = False
    return tokens, mask


def test_padding_changes_no_embedding():
    model, (tokens, mask) = text_model(), captions()
    short = model(tokens, mask)
    longer, longer_mask = torch.nn.functional.pad(tokens, (0, 4), value=9), torch.nn.functional.pad(mask, (0, 4))
    padded = model(longer, longer_mask)
    torch.testing.assert_close(padded.pooled, short.pooled, atol=1e-6, rtol=0)
    torch.testing.assert_close(padded.tokens[:, :8][mask], short.tokens[mask], atol=1e-6, rtol=0)
    junk = torch.where(mask, tokens, torch.randint(0, 20, tokens.shape))
    assert torch.equal(model(junk, mask).pooled, short.pooled)


def test_a_caption_gives_the_same_alone_and_in_a_batch():
    model, (tokens, mask) = text_model(), captions()
    together = model(tokens, mask).pooled
    alone = torch.cat([model(tokens[row : row + 1, : mask[row].sum()], mask[row : row + 1, : mask[row].sum()]).pooled for row in range(3)])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=1e-5)


def test_text_is_read_in_both_directions_and_in_order():
    model, tokens, mask = text_model(), torch.tensor([[3, 4, 5]]), torch.ones(1, 3, dtype=torch.bool)
    changed_last = model(torch.tensor([[3, 4, 6]]), mask)
    assert not torch.equal(changed_last.tokens[0, 0], model(tokens, mask).tokens[0, 0])
    assert not torch.allclose(model(tokens.flip(1), mask).pooled, model(tokens, mask).pooled, atol=1e-6)


def test_captions_longer_than_the_context_are_an_error():
    with pytest.raises(InputError, match="context_length=12"):
        text_model()(torch.zeros(1, 13, dtype=torch.int64), torch.ones(1, 13, dtype=torch.bool))


def test_a_picture_gives_class_token_and_patches_and_the_class_token_stands_for_it():
    torch.manual_seed(0)
    model = VisionTransformer(image_size=16, patch_size=4, dim=16, depth=2, heads=4)
    output = model(torch.randn(2, 3, 16, 16))
    assert model.grid_size == 4
    assert output.tokens.shape == (2, 17, 16)
    assert torch.equal(output.pooled, output.tokens[:, 0])
    torch.testing.assert_close(output.tokens.mean(-1), torch.zeros(2, 17), atol=1e-5, rtol=0)  # the final LayerNorm, fresh
    torch.testing.assert_close(output.tokens.var(-1, correction=0), torch.ones(2, 17), atol=5e-2, rtol=0)


def test_the_place_of_a_patch_matters():
    torch.manual_seed(0)
    model = VisionTransformer(image_size=8, patch_size=4, dim=16, depth=1, heads=2)
    image = torch.randn(1, 3, 8, 8)
    assert not torch.allclose(model(image).pooled, model(image.roll(4, dims=3)).pooled, atol=1e-6)
    torch.nn.init.zeros_(model.embedding.position)
    torch.testing.assert_close(model(image).pooled, model(image.roll(4, dims=3)).pooled)  # without positions it can't


@pytest.mark.parametrize(("arguments", "message"), [({"patch_size": 7}, "patch_size=7"), ({"heads": 3}, "heads=3")])
def test_impossible_shapes_name_the_key(arguments, message):
    with pytest.raises(ValueError, match=message):
        VisionTransformer(**arguments)


def test_a_picture_reads_the_same_with_patches_left_out_by_a_mask_or_by_their_rows():
    torch.manual_seed(0)
    model = VisionTransformer(image_size=24, patch_size=8, dim=16, depth=2, heads=4)
    image, kept = torch.randn(2, 3, 24, 24), torch.tensor([0, 2, 3, 7])
    embedded = model.embedding(image)
    assert torch.equal(model.read(embedded).tokens, model(image).tokens)
    mask = torch.zeros(2, 10, dtype=torch.bool)
    mask[:, kept] = True
    torch.testing.assert_close(model.read(embedded, mask).tokens[:, kept], model.read(embedded[:, kept]).tokens, atol=1e-6, rtol=1e-5)


OPTIONS = {
    "grouped rotary rms swiglu": BlockSettings(kv_heads=2, rms_norm=True, activation="silu", gated=True, bias=False, position="rotary"),
    "sinusoidal": BlockSettings(position="sinusoidal"),
    "no positions": BlockSettings(position="none"),
}


@pytest.mark.parametrize("pool", ["first", "mean", "attention"])
@pytest.mark.parametrize("option", OPTIONS)
def test_a_picture_reads_the_same_with_patches_left_out_whatever_the_blocks(option, pool):
    torch.manual_seed(0)
    model = VisionTransformer(24, 8, 16, depth=2, heads=4, block=OPTIONS[option], pool=pool).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    embedded, kept = model.embedding(torch.randn(2, 3, 24, 24)), torch.tensor([0, 2, 3, 7])
    mask = torch.zeros(2, 10, dtype=torch.bool)
    mask[:, kept] = True
    by_rows = model.read(embedded[:, kept], place_BN=kept.expand(2, -1))
    by_mask = model.read(embedded, mask)
    torch.testing.assert_close(by_mask.tokens[:, kept], by_rows.tokens, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(by_mask.pooled, by_rows.pooled, atol=1e-5, rtol=1e-4)
    moved = model(torch.randn(1, 3, 24, 24).roll(8, dims=3)).pooled
    assert torch.isfinite(moved).all()


def test_places_matter_to_a_rotary_picture_and_rows_left_out_without_their_places_are_an_error():
    torch.manual_seed(0)
    model = VisionTransformer(24, 8, 16, depth=2, heads=4, block=BlockSettings(position="rotary"), pool="mean").eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    image = torch.randn(1, 3, 24, 24)
    assert not torch.allclose(model(image).pooled, model(image.roll(8, dims=3)).pooled, atol=1e-3)
    with pytest.raises(InputError, match=r"4 of 10 tokens are there: .* \(place_BN\)"):
        model.read(model.embedding(image)[:, :4])


def test_patch_dropout_shows_training_some_patches_in_their_order_with_their_positions():
    torch.manual_seed(0)
    model = VisionTransformer(32, 8, 16, depth=1, heads=2, patch_dropout=0.75)
    image = torch.randn(3, 3, 32, 32)
    torch.manual_seed(1)
    place = model.kept_places(model.embedding(image))
    assert place.shape == (3, 1 + 4) and (place[:, 0] == 0).all() and (place.diff(dim=1) > 0).all() and not torch.equal(place[0], place[1])
    torch.manual_seed(1)
    trained = model(image)
    expected = torch.cat([model.read(model.embedding(image[row : row + 1])[:, place[row]]).tokens for row in range(3)])
    torch.testing.assert_close(trained.tokens, expected, atol=1e-6, rtol=1e-5)
    assert model.eval()(image).tokens.shape == (3, 17, 16)


def test_the_end_of_a_causal_text_has_read_all_of_it_and_earlier_tokens_nothing_later():
    model, (tokens, mask) = text_model(causal=True, pool="last"), captions()
    output = model(tokens, mask)
    assert torch.equal(output.pooled, torch.stack([output.tokens[0, 4], output.tokens[1, 1], output.tokens[2, 7]]))
    changed = tokens.clone()
    changed[:, 4] = 3 + (tokens[:, 4] - 2) % 17
    again = model(changed, mask)
    torch.testing.assert_close(again.tokens[:, :4], output.tokens[:, :4])
    assert not torch.allclose(again.pooled[0], output.pooled[0], atol=1e-6) and torch.equal(again.pooled[1], output.pooled[1])
    with pytest.raises(InputError, match="pool=first: in a causal text"):
        text_model(causal=True, pool="first")


def test_a_pool_that_needs_a_class_token_where_there_is_none_is_an_error():
    with pytest.raises(InputError, match=r"pool=first .* class_token=false"):
        VisionTransformer(class_token=False)
    output = VisionTransformer(16, 8, 16, 1, 2, class_token=False, pool="mean", input_norm=True)(torch.randn(2, 3, 16, 16))
    assert output.tokens.shape == (2, 4, 16)
    torch.testing.assert_close(output.pooled, output.tokens.mean(dim=1))
