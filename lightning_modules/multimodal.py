"""The dual encoder as a LightningModule."""

from __future__ import annotations

from insight.errors import InputError
from insight.models.multimodal import MultiModalTransformer
from insight.models.tower import ImageTower, TextTower
from insight.models.vision_transformer import VisionTransformer
from insight.nn.settings import PLAIN, BlockSettings
from insight.towers.vision_weights import load_vision_transformer, read_source
from lightning_modules.base import ImageTextModule


class MultiModalModule(ImageTextModule):
    """Trains a MultiModalTransformer.

    Args:
        vocab_size: Rows of the token embedding; at least the tokenizer's size.
        image_size: Side of the square picture, in pixels.
        patch_size: Side of a patch, in pixels; divides ``image_size``.
        context_length: Most tokens of a caption.
        dim: Width of both towers.
        image_depth: Blocks of the image tower.
        text_depth: Blocks of the text tower.
        heads: Attention heads; divides ``dim``.
        embed_dim: Width of the common embedding.
        dropout: Dropout in the blocks.
        block: How the blocks of both towers are made.
        image: The image tower, instead of one of our own: a class of ``insight.towers``; ``patch_size``, ``image_depth`` are then unused.
        text: The text tower, instead of one of our own; ``text_depth`` is then unused.
        image_batch_norm: Whether batch norm stands between the image tower's pooled vector and its projection.
        pooled_dropout: Dropout of both pooled vectors, before their projections.
        image_weights: Weights that our own image tower begins with: a file, ``hf-hub:OWNER/MODEL`` of a timm model, or a name of
            torchvision's, e.g. ``ViT_B_16_Weights.IMAGENET1K_V1``. Null: random ones, or a finished run's, whose checkpoint holds them.

    Raises:
        InputError: weights of another network, or for a tower that has its own.
    """

    def __init__(
        self,
        vocab_size: int,
        image_size: int = 64,
        patch_size: int = 8,
        context_length: int = 32,
        dim: int = 128,
        image_depth: int = 4,
        text_depth: int = 4,
        heads: int = 4,
        embed_dim: int = 128,
        dropout: float = 0.0,
        block: BlockSettings = PLAIN,
        image: ImageTower | None = None,
        text: TextTower | None = None,
        image_batch_norm: bool = False,
        pooled_dropout: float = 0.0,
        image_weights: str | None = None,
    ) -> None:
        super().__init__(
            MultiModalTransformer(
                vocab_size,
                image_size,
                patch_size,
                context_length,
                dim,
                image_depth,
                text_depth,
                heads,
                embed_dim,
                dropout,
                block,
                image,
                text,
                image_batch_norm,
                pooled_dropout,
            )
        )
        if image_weights is not None:
            if not isinstance(self.model.image, VisionTransformer):
                raise InputError(
                    f"model.init_args.image_weights={image_weights}: the image tower is another library's: give it its own, "
                    "model.init_args.image.init_args.weights"
                )
            load_vision_transformer(self.model.image, read_source(image_weights))
