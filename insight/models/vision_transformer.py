"""Vision transformer (https://arxiv.org/abs/2010.11929). B pictures, N = 1 + patches tokens (without class token: N = patches), D width."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from insight.errors import InputError
from insight.nn.block import blocks, norm
from insight.nn.embed import PatchEmbedding
from insight.nn.pool import Pool, Pooling
from insight.nn.position import Rotation, rotation
from insight.nn.settings import PLAIN, BlockSettings


class VisionOutput(NamedTuple):
    tokens: Tensor  # (B, N, D), row 0 = class token, after the final norm
    pooled: Tensor  # (B, D), the class token unless ``pool`` says otherwise


class VisionTransformer(nn.Module):
    """A picture cut into patches, read by pre-norm blocks; the class token stands for the whole.

    Args:
        image_size: Side of the square picture, in pixels.
        patch_size: Side of a patch, in pixels; divides ``image_size``.
        dim: Width.
        depth: Blocks.
        heads: Attention heads; divides ``dim``.
        dropout: Of the embedding, and of what each part of a block adds.
        block: How the blocks are made.
        pool: What stands for the whole picture; ``mean`` is over the patches.
        class_token: Whether there is one.
        input_norm: A norm before the blocks, and patches without bias, as in CLIP (https://arxiv.org/abs/2103.00020).
        patch_dropout: Fraction of the patches that training leaves out at random (https://arxiv.org/abs/2212.00794).
        patch_bias: Whether the patches' projection has a bias; null: unless there is an ``input_norm``.

    Raises:
        InputError: a size that does not fit another; ``pool=first`` without a class token.
    """

    def __init__(
        self,
        image_size: int = 64,
        patch_size: int = 8,
        dim: int = 128,
        depth: int = 4,
        heads: int = 4,
        dropout: float = 0.0,
        block: BlockSettings = PLAIN,
        pool: Pooling = "first",
        class_token: bool = True,
        input_norm: bool = False,
        patch_dropout: float = 0.0,
        patch_bias: bool | None = None,
    ) -> None:
        super().__init__()
        if pool == "first" and not class_token:
            raise InputError("pool=first is the class token, and class_token=false: choose pool=mean or pool=attention")
        if not 0 <= patch_dropout < 1:
            raise InputError(f"patch_dropout={patch_dropout}: must be at least 0 and below 1")
        patch_bias = not input_norm if patch_bias is None else patch_bias
        self.embedding = PatchEmbedding(image_size, patch_size, dim, block.position, class_token, patch_bias)
        self.input_norm = norm(dim, block) if input_norm else None
        self.dropout = nn.Dropout(dropout)
        self.blocks = blocks(depth, dim, heads, dropout, block)
        self.norm = norm(dim, block)
        self.pool = Pool(pool, dim, heads, block, skip=self.embedding.num_prefix)
        self.dim, self.patch_dropout = dim, patch_dropout
        self.rotary, self.head_width = block.position == "rotary", dim // heads

    @property
    def grid_size(self) -> int:
        """Patches per side."""
        return self.embedding.grid_size

    @property
    def image_size(self) -> int:
        return self.embedding.image_size

    @property
    def num_prefix(self) -> int:
        """Tokens before the patches: 1 = the class token, 0 = none."""
        return self.embedding.num_prefix

    def embed(self, image_B3HW: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, N, D), with positions."""
        return self.embedding(image_B3HW)

    def forward(self, image_B3HW: Tensor) -> VisionOutput:
        x_BND = self.embed(image_B3HW)
        if not self.training or self.patch_dropout == 0:
            return self.read(x_BND)
        place_BN = self.kept_places(x_BND)
        return self.read(x_BND.gather(1, place_BN[..., None].expand(-1, -1, x_BND.shape[-1])), place_BN=place_BN)

    def kept_places(self, x_BND: Tensor) -> Tensor:
        """Tokens that a training step keeps, (B, kept), drawn for each picture: the class token, and at least one patch, in their order."""
        prefix, patches = self.num_prefix, x_BND.shape[1] - self.num_prefix
        kept = max(1, round(patches * (1 - self.patch_dropout)))
        place_BN = torch.rand(len(x_BND), patches, device=x_BND.device).topk(kept, dim=1).indices.sort(dim=1).values + prefix
        return torch.cat([torch.zeros(len(x_BND), prefix, dtype=torch.int64, device=x_BND.device), place_BN], dim=1)

    def read(self, x_BND: Tensor, mask_BN: Tensor | None = None, place_BN: Tensor | None = None) -> VisionOutput:
        """What follows the embedding. Any patches may be left out: by their rows, or by a mask, True = a token that may be read.

        ``place_BN`` says which tokens of the whole picture the rows are; rotary positions need it where rows are left out.
        """
        turn = self.rotation(x_BND, place_BN)
        x_BND = self.start(x_BND)
        for block in self.blocks:
            x_BND = block(x_BND, mask_BN, turn)
        return self.finish(x_BND, mask_BN)

    def start(self, x_BND: Tensor) -> Tensor:
        """What lies between the embedding and the blocks."""
        return self.dropout(x_BND if self.input_norm is None else self.input_norm(x_BND))

    def finish(self, x_BND: Tensor, mask_BN: Tensor | None = None) -> VisionOutput:
        """What follows the blocks."""
        x_BND = self.norm(x_BND)
        return VisionOutput(tokens=x_BND, pooled=self.pool(x_BND, mask_BN))

    def rotation(self, x_BND: Tensor, place_BN: Tensor | None = None) -> Rotation | None:
        """The turn of queries and keys where positions are rotary."""
        if not self.rotary:
            return None
        place_N2 = self.embedding.places()
        if place_BN is None and x_BND.shape[1] != len(place_N2):
            raise InputError(
                f"rotary positions go by a token's place, and {x_BND.shape[1]} of {len(place_N2)} tokens are there: "
                "leave patches out by a mask, or say which are there (place_BN)"
            )
        return rotation(place_N2 if place_BN is None else place_N2[place_BN], self.head_width)
