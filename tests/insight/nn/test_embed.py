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
