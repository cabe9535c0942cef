"""A picture's class: a vision transformer and a linear head. B pictures, K classes."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from insight.models.vision_transformer import VisionTransformer
from insight.nn.linear import linear
from insight.nn.pool import Pooling
from insight.nn.settings import PLAIN, BlockSettings


class ClassifierOutput(NamedTuple):
    logits: Tensor  # (B, K)
    tokens: Tensor  # (B, N, D)


class ImageClassifier(nn.Module):
    """Arguments as of ``VisionTransformer``; ``num_classes``: outputs of the head."""

    def __init__(
        self,
        num_classes: int,
        image_size: int = 64,
        patch_size: int = 8,
        dim: int = 128,
        depth: int = 4,
        heads: int = 4,
        dropout: float = 0.0,
        block: BlockSettings = PLAIN,
        pool: Pooling = "first",
        patch_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.image = VisionTransformer(image_size, patch_size, dim, depth, heads, dropout, block, pool, patch_dropout=patch_dropout)
        self.head = linear(dim, num_classes)

    def forward(self, image_B3HW: Tensor) -> ClassifierOutput:
        output = self.image(image_B3HW)
        return ClassifierOutput(self.head(output.pooled), output.tokens)
