"""From pixels and token ids to vectors. B pictures, N patches, P pixels of a patch (all channels), C captions, T tokens, D width."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from insight.errors import InputError
from insight.nn.linear import linear, trunc_normal_
from insight.nn.position import grid_places, sinusoids, text_places
from insight.nn.settings import Position


def patchify(image_B3HW: Tensor, patch_size: int) -> Tensor:
    """(B, 3, H, W) -> (B, N, P): patches row by row; inside a patch channel, row, column (the order of a convolution's weight)."""
    patches = image_B3HW.unflatten(3, (-1, patch_size)).unflatten(2, (-1, patch_size))  # (B, 3, rows, p, columns, p)
    return patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


class PatchEmbedding(nn.Module):
    """Cut a square picture into patches, put the class token before them, add positions.

    Args:
        position: ``learned`` and ``sinusoidal`` (half of the channels for the row, half for the column) are added here; nothing is for
            others.
        class_token: Whether there is one.
        bias: Of the patches' projection.

    Raises:
        InputError: patches that do not tile the picture; ``alibi``, which knows one axis only.
    """

    def __init__(
        self, image_size: int, patch_size: int, dim: int, position: Position = "learned", class_token: bool = True, bias: bool = True
    ) -> None:
        super().__init__()
        if patch_size < 1 or image_size < patch_size or image_size % patch_size:
            raise InputError(
                f"image_size={image_size} is not a multiple of patch_size={patch_size}: "
                f"choose for example image_size={max(1, image_size // max(1, patch_size)) * max(1, patch_size)}"
            )
        if position == "alibi":
            raise InputError("block.position=alibi: a picture has two axes, ALiBi has one; choose learned, sinusoidal, rotary or none")
        self.image_size = image_size
        self.patch_size = patch_size
        self.grid_size = image_size // patch_size
        self.kind = position
        self.projection = linear(3 * patch_size**2, dim, bias)
        self.class_token = nn.Parameter(trunc_normal_(torch.empty(1, 1, dim))) if class_token else None
        learned = position == "learned"
        self.position = nn.Parameter(trunc_normal_(torch.empty(1, class_token + self.grid_size**2, dim))) if learned else None

    @property
    def num_prefix(self) -> int:
        """Tokens before the patches: 1 = the class token, 0 = none."""
        return int(self.class_token is not None)

    def places(self) -> Tensor:
        """(N, 2): row and column of every token, on the weights' device."""
        return grid_places(self.grid_size, self.projection.weight.device)[1 - self.num_prefix :]

    def forward(self, image_B3HW: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 1 + N, D); row 0 is the class token, where there is one."""
        if image_B3HW.ndim != 4 or image_B3HW.shape[1:] != (3, self.image_size, self.image_size):
            raise InputError(
                f"the model reads pictures of shape (B, 3, {self.image_size}, {self.image_size}), but got {tuple(image_B3HW.shape)}: "
                "make the data's image_size and the model's image_size equal"
            )
        x_BND = self.projection(patchify(image_B3HW, self.patch_size))
        if self.class_token is not None:
            class_B1D = self.class_token.expand(len(image_B3HW), -1, -1).to(x_BND.dtype)
            x_BND = torch.cat([class_B1D, x_BND], dim=1)
        if self.position is not None:
            return x_BND + self.position
        return x_BND + sinusoids(self.places(), x_BND.shape[-1]).to(x_BND.dtype) if self.kind == "sinusoidal" else x_BND


class TokenEmbedding(nn.Module):
    """Look the tokens up, add positions.

    Args:
        position: ``learned`` and ``sinusoidal`` are added here; nothing is for others.
    """

    def __init__(self, vocab_size: int, context_length: int, dim: int, position: Position = "learned") -> None:
        super().__init__()
        if vocab_size < 1 or context_length < 1:
            raise InputError(f"vocab_size={vocab_size} and context_length={context_length} must both be at least 1")
        self.vocab_size = vocab_size
        self.context_length = context_length
        self.kind = position
        self.token = nn.Embedding(vocab_size, dim)
        trunc_normal_(self.token.weight)
        self.position = nn.Parameter(trunc_normal_(torch.empty(1, context_length, dim))) if position == "learned" else None

    def forward(self, tokens_CT: Tensor, start: int = 0) -> Tensor:
        """(C, T) -> (C, T, D): the tokens of the places from ``start`` on.

        Raises:
            InputError: they go beyond context_length (ids are not checked: that would stop an accelerator).
        """
        end = start + tokens_CT.shape[1]
        if end > self.context_length:
            raise InputError(
                f"captions of {end} tokens are longer than the model's context_length={self.context_length}: "
                f"cut them in the data, or build the model with context_length={end}"
            )
        x_CTD = self.token(tokens_CT)
        if self.position is not None:
            return x_CTD + self.position[:, start:end]
        if self.kind == "sinusoidal":
            return x_CTD + sinusoids(text_places(start, tokens_CT.shape[1], x_CTD.device), x_CTD.shape[-1]).to(x_CTD.dtype)
        return x_CTD
