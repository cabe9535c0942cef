"""SigLIP (https://arxiv.org/abs/2303.15343) as a dual encoder of this project. B pictures, V vocabulary."""

from __future__ import annotations

from torch import Tensor, nn

from insight.errors import InputError
from insight.models.clip import DualShape
from insight.models.multimodal import ImageFeatures, MultiModalTransformer
from insight.models.text_transformer import TextTransformer
from insight.models.vision_transformer import VisionTransformer
from insight.nn.linear import linear


class SiglipTransformer(MultiModalTransformer):
    """A dual encoder with SigLIP's towers. A learnt query reads the patches, and what it reads is the picture's embedding, with no
    projection; the text is read in both directions and stands at its last place. Its padding is text like any other: the tokenizer fills
    every text up to the context length (``insight.data.siglip_text``).

    Args:
        vocab_size: Rows of the token embedding.
        image_size: Side of the square picture, in pixels.
        context_length: Tokens of every text.
        shape: Sizes of the towers; ``embed_dim`` is the width of the image tower.

    Raises:
        InputError: ``embed_dim`` is another width.
    """

    def __init__(self, vocab_size: int, image_size: int, context_length: int, shape: DualShape) -> None:
        image, text = shape.image, shape.text
        if shape.embed_dim != image.dim:
            raise InputError(f"shape: embed_dim={shape.embed_dim}, but SigLIP's is the width of its image tower, {image.dim}")
        super().__init__(
            vocab_size,
            image_size,
            context_length=context_length,
            embed_dim=shape.embed_dim,
            image=VisionTransformer(
                image_size,
                shape.patch_size,
                image.dim,
                image.depth,
                image.heads,
                block=image.block,
                pool="attention",
                class_token=False,
            ),
            text=TextTransformer(vocab_size, context_length, text.dim, text.depth, text.heads, block=text.block, pool="last"),
        )
        self.image_projection = nn.Identity()  # type: ignore[assignment]
        self.text_projection = linear(text.dim, shape.embed_dim)
        self.shape = shape

    @property
    def scale(self) -> Tensor:
        """exp(logit_scale), without the bound of CLIP: the checkpoints are beyond it."""
        return self.logit_scale.exp()

    def classify_words(self, image: ImageFeatures) -> Tensor:
        """Logits (B, V) from the mean of the patches: there is no class token."""
        return self.word_head(image.tokens.mean(dim=1))
