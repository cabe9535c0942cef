import math

import pytest
import torch

from insight.errors import InputError
from insight.nn.embed import PatchEmbedding, TokenEmbedding, patchify


def test_patches_are_those_of_unfold():
    image = torch.randn(2, 3, 8, 12)
    assert torch.equal(patchify(image, 4), torch.nn.functional.unfold(image, kernel_size=4, stride=4).transpose(1, 2))


def test_the_patch_projection_is_a_convolution_with_stride():
    torch.manual_seed(0)
    embedding = PatchEmbedding(image_size=8, patch_size=4, dim=5)
    image = torch.randn(2, 3, 8, 8)
    weight = embedding.projection.weight.view(5, 3, 4, 4)
    convolved = torch.nn.functional.conv2d(image, weight, embedding.projection.bias, stride=4).flatten(2).transpose(1, 2)
    output = embedding(image)
    torch.testing.assert_close(output[:, 1:], convolved + embedding.position[:, 1:])
    torch.testing.assert_close(output[:, 0], (embedding.class_token + embedding.position[:, :1])[0].expand(2, -1))


@pytest.mark.parametrize(("image_size", "patch_size"), [(64, 7), (4, 8), (64, 0)])
def test_a_picture_that_patches_do_not_tile_is_an_error_that_names_both(image_size, patch_size):
    with pytest.raises(InputError, match=f"image_size={image_size} .* patch_size={patch_size}"):
        PatchEmbedding(image_size, patch_size, dim=4)


def test_the_error_for_bad_tiling_proposes_a_size_that_works():
    with pytest.raises(InputError, match="image_size=63"):
        PatchEmbedding(64, 7, dim=4)
    PatchEmbedding(63, 7, dim=4)


@pytest.mark.parametrize("shape", [(1, 3, 8, 12), (1, 1, 8, 8), (3, 8, 8)])
def test_a_picture_of_another_shape_is_an_error_that_says_which(shape):
    with pytest.raises(InputError, match=r"\(B, 3, 8, 8\)"):
        PatchEmbedding(8, 4, dim=4)(torch.randn(shape))


def test_tokens_are_looked_up_and_get_their_position():
    embedding = TokenEmbedding(vocab_size=10, context_length=4, dim=3)
    output = embedding(torch.tensor([[7, 7, 2]]))
    for place, token in enumerate([7, 7, 2]):
        assert torch.equal(output[0, place], embedding.token.weight[token] + embedding.position[0, place])


def test_a_caption_longer_than_the_context_is_an_error_that_names_both():
    with pytest.raises(InputError, match=r"5 tokens .* context_length=4"):
        TokenEmbedding(10, 4, 3)(torch.zeros(1, 5, dtype=torch.int64))


def test_positions_that_are_not_learnt_are_no_parameters():
    for kind in ("sinusoidal", "rotary", "none"):
        assert PatchEmbedding(8, 4, 8, kind).position is None and TokenEmbedding(10, 4, 8, kind).position is None


def test_half_of_a_patchs_sinusoids_tell_its_row_and_half_its_column():
    embedding, image = PatchEmbedding(8, 4, 8, "sinusoidal", class_token=False), torch.zeros(1, 3, 8, 8)
    for parameter in embedding.parameters():
        torch.nn.init.zeros_(parameter)
    rows = embedding(image)[0].detach().reshape(2, 2, 8)  # sines of (row, row/100, column, column/100), then the cosines
    row_channels, column_channels = [0, 1, 4, 5], [2, 3, 6, 7]
    assert torch.equal(rows[0, 0, row_channels], rows[0, 1, row_channels]) and torch.equal(
        rows[0, 0, row_channels], rows[0, 0, column_channels]
    )
    assert not torch.allclose(rows[0, 0, column_channels], rows[0, 1, column_channels])
    assert float(rows[1, 0, 0]) == pytest.approx(math.sin(2), abs=1e-6)  # places are counted from one


def test_tokens_from_a_later_place_on_get_its_positions():
    for kind in ("learned", "sinusoidal"):
        embedding, tokens = TokenEmbedding(10, 6, 4, kind), torch.tensor([[1, 2, 3, 4, 5]])
        assert torch.equal(embedding(tokens[:, 3:], start=3), embedding(tokens)[:, 3:])
    with pytest.raises(InputError, match=r"7 tokens .* context_length=6"):
        embedding(tokens[:, :2], start=5)


def test_alibi_in_a_picture_is_an_error_that_says_what_to_choose():
    with pytest.raises(InputError, match=r"block\.position=alibi: .* rotary or none"):
        PatchEmbedding(8, 4, 8, "alibi")
