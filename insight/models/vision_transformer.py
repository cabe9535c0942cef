"""Vision transformer (https://arxiv.org/abs/2010.11929). B pictures, N = 1 + patches tokens, D width."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from insight.nn.block import Block
from insight.nn.embed import PatchEmbedding


class VisionOutput(NamedTuple):
    tokens: Tensor  # (B, N, D), row 0 = class token, after the final LayerNorm
    pooled: Tensor  # (B, D), the class token


class VisionTransformer(nn.Module):
    """A picture cut into patches, read by pre-norm blocks; the class token stands for the whole."""

    def __init__(
        self,
        image_size: int = 64,
        patch_size: int = 8,
        dim: int = 128,
        depth: int = 4,
        heads: int = 4,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.embedding = PatchEmbedding(image_size, patch_size, dim)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList([Block(dim, heads, mlp_ratio, dropout) for _ in range(depth)])
        self.norm = nn.LayerNorm(dim)

    @property
    def grid_size(self) -> int:
        """Patches per side."""
        return self.embedding.grid_size

    @property
    def image_size(self) -> int:
        return self.embedding.image_size

    @property
    def width(self) -> int:
        return self.norm.normalized_shape[0]

    def embed(self, image_B3HW: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, N, D), with positions."""
        return self.embedding(image_B3HW)

    def forward(self, image_B3HW: Tensor) -> VisionOutput:
        return self.read(self.embed(image_B3HW))

    def read(self, x_BND: Tensor, mask_BN: Tensor | None = None) -> VisionOutput:
        """What follows the embedding. Any patches may be left out: by their rows, or by a mask, True = a token that may be read."""
        x_BND = self.dropout(x_BND)
        for block in self.blocks:
            x_BND = block(x_BND, mask_BN)
        return self.finish(x_BND)

    def finish(self, x_BND: Tensor) -> VisionOutput:
        """What follows the blocks."""
        x_BND = self.norm(x_BND)
        return VisionOutput(tokens=x_BND, pooled=x_BND[:, 0])
