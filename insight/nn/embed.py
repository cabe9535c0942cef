"""From pixels and token ids to vectors. B pictures, N patches, P pixels of a patch (all channels), C captions, T tokens, D width."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from insight.errors import InputError
from insight.nn.linear import linear, trunc_normal_


def patchify(image_B3HW: Tensor, patch_size: int) -> Tensor:
    """(B, 3, H, W) -> (B, N, P): patches row by row; inside a patch channel, row, column (the order of a convolution's weight)."""
    patches = image_B3HW.unflatten(3, (-1, patch_size)).unflatten(2, (-1, patch_size))  # (B, 3, rows, p, columns, p)
    return patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


class PatchEmbedding(nn.Module):
    """Cut a square picture into patches, put the class token before them, add learnt positions."""

    def __init__(self, image_size: int, patch_size: int, dim: int) -> None:
        super().__init__()
        if patch_size < 1 or image_size < patch_size or image_size % patch_size:
            raise InputError(
                f"image_size={image_size} is not a multiple of patch_size={patch_size}: "
                f"choose for example image_size={max(1, image_size // max(1, patch_size)) * max(1, patch_size)}"
            )
        self.image_size = image_size
        self.patch_size = patch_size
        self.grid_size = image_size // patch_size
        self.projection = linear(3 * patch_size**2, dim)
        self.class_token = nn.Parameter(trunc_normal_(torch.empty(1, 1, dim)))
        self.position = nn.Parameter(trunc_normal_(torch.empty(1, 1 + self.grid_size**2, dim)))

    def forward(self, image_B3HW: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 1 + N, D); row 0 is the class token."""
        if image_B3HW.ndim != 4 or image_B3HW.shape[1:] != (3, self.image_size, self.image_size):
            raise InputError(
                f"the model reads pictures of shape (B, 3, {self.image_size}, {self.image_size}), but got {tuple(image_B3HW.shape)}: "
                "make the data's image_size and the model's image_size equal"
            )
        patch_BND = self.projection(patchify(image_B3HW, self.patch_size))
        class_B1D = self.class_token.expand(len(image_B3HW), -1, -1).to(patch_BND.dtype)
        return torch.cat([class_B1D, patch_BND], dim=1) + self.position


class TokenEmbedding(nn.Module):
    """Look the tokens up, add learnt positions."""

    def __init__(self, vocab_size: int, context_length: int, dim: int) -> None:
        super().__init__()
        if vocab_size < 1 or context_length < 1:
            raise InputError(f"vocab_size={vocab_size} and context_length={context_length} must both be at least 1")
        self.vocab_size = vocab_size
        self.context_length = context_length
        self.token = nn.Embedding(vocab_size, dim)
        trunc_normal_(self.token.weight)
        self.position = nn.Parameter(trunc_normal_(torch.empty(1, context_length, dim)))

    def forward(self, tokens_CT: Tensor) -> Tensor:
        """(C, T) -> (C, T, D). Raises when T is longer than context_length (ids are not checked: that would stop an accelerator)."""
        length = tokens_CT.shape[1]
        if length > self.context_length:
            raise InputError(
                f"captions of {length} tokens are longer than the model's context_length={self.context_length}: "
                f"cut them in the data, or build the model with context_length={length}"
            )
        return self.token(tokens_CT) + self.position[:, :length]
