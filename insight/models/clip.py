"""CLIP (https://arxiv.org/abs/2103.00020) as a dual encoder of this project: its two towers, whose sizes differ."""

from __future__ import annotations

import dataclasses

from insight.models.multimodal import MultiModalTransformer
from insight.models.text_transformer import TextTransformer
from insight.models.vision_transformer import VisionTransformer
from insight.nn.settings import PLAIN, BlockSettings


@dataclasses.dataclass(frozen=True)
class TowerShape:
    """One tower.

    Args:
        dim: Width.
        depth: Blocks.
        heads: Attention heads; divides ``dim``.
        block: How the blocks are made.
    """

    dim: int
    depth: int
    heads: int
    block: BlockSettings = PLAIN


@dataclasses.dataclass(frozen=True)
class DualShape:
    """What a checkpoint of a dual encoder fixes; picture and captions may have other sizes than in its training.

    Args:
        patch_size: Side of a patch, in pixels.
        embed_dim: Width of the common embedding.
        image: The image tower.
        text: The text tower.
    """

    patch_size: int
    embed_dim: int
    image: TowerShape
    text: TowerShape


class ClipTransformer(MultiModalTransformer):
    """A dual encoder with CLIP's towers: a norm before the blocks of the picture, which its class token stands for; a causal text, which
    its end stands for.

    Args:
        vocab_size: Rows of the token embedding.
        image_size: Side of the square picture, in pixels.
        context_length: Most tokens of a caption.
        shape: Sizes of the towers.
    """

    def __init__(self, vocab_size: int, image_size: int, context_length: int, shape: DualShape) -> None:
        image, text = shape.image, shape.text
        super().__init__(
            vocab_size,
            image_size,
            context_length=context_length,
            embed_dim=shape.embed_dim,
            image=VisionTransformer(
                image_size, shape.patch_size, image.dim, image.depth, image.heads, block=image.block, input_norm=True, patch_bias=True
            ),
            text=TextTransformer(vocab_size, context_length, text.dim, text.depth, text.heads, block=text.block, causal=True, pool="last"),
        )
        self.shape = shape
