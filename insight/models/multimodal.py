"""Dual encoder: a vision and a text transformer that meet in one embedding space (https://arxiv.org/abs/2103.00020).

B pictures, C captions, N image tokens, T text tokens, D width, E width of the embedding, V vocabulary.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from insight.data.text import Tokenizer
from insight.errors import InputError
from insight.models.text_transformer import TextOutput, TextTransformer
from insight.models.tower import ImageTower, TextTower
from insight.models.vision_transformer import VisionOutput, VisionTransformer
from insight.nn.linear import linear
from insight.nn.settings import PLAIN, BlockSettings

MAX_LOGIT_SCALE = math.log(100.0)  # the bound of the paper, section 2.5
INITIAL_LOGIT_SCALE = math.log(1 / 0.07)
INITIAL_LOGIT_BIAS = -10.0  # for the sigmoid loss, https://arxiv.org/abs/2303.15343, section 3.2


class ImageFeatures(NamedTuple):
    tokens: Tensor  # (B, N, D)
    embedding: Tensor  # (B, E), length 1, float32


class TextFeatures(NamedTuple):
    tokens: Tensor  # (C, T, D)
    embedding: Tensor  # (C, E), length 1, float32


class MultiModalOutput(NamedTuple):
    image: ImageFeatures
    text: TextFeatures
    scale: Tensor  # (), factor of the cosine
    bias: Tensor  # ()


class MultiModalTransformer(nn.Module):
    """Two towers and two projections. Retrieval compares the embeddings; neither tower ever sees the other's input.

    A tower that is handed in keeps its weights and its own width; the other arguments then describe the other tower alone.
    """

    reads_regions = False  # the whole picture's vector is enough

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
        image: VisionTransformer | ImageTower | None = None,
        text: TextTransformer | TextTower | None = None,
        image_batch_norm: bool = False,
        pooled_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        if image is not None and image.image_size != image_size:
            raise InputError(
                f"image_size={image_size}, but the image tower reads pictures of {image.image_size} pixels: "
                f"data.init_args.image_size={image.image_size}, and the model's with it"
            )
        for key, asked, own in (
            ("vocab_size", vocab_size, text and text.vocab_size),
            ("context_length", context_length, text and text.context_length),
        ):
            if text is not None and asked != own:
                raise InputError(f"{key}={asked}, but the text tower has {own}: data.init_args.{key}={own}, and the model's with it")
        self.image = image or VisionTransformer(image_size, patch_size, dim, image_depth, heads, dropout, block)
        self.text = text or TextTransformer(vocab_size, context_length, dim, text_depth, heads, dropout, block)
        # a locked tower's channels differ widely in mean and spread; those of our own end in a norm
        self.image_norm = nn.BatchNorm1d(self.image.dim) if image_batch_norm else nn.Identity()
        self.pooled_dropout = nn.Dropout(pooled_dropout)
        self.image_projection = linear(self.image.dim, embed_dim, bias=False)
        self.text_projection = linear(self.text.dim, embed_dim, bias=False)
        self.word_head = linear(self.image.dim, vocab_size)  # of the image tower; only a loss asks for it
        self.logit_scale = nn.Parameter(torch.tensor(INITIAL_LOGIT_SCALE))
        self.logit_bias = nn.Parameter(torch.tensor(INITIAL_LOGIT_BIAS))

    @property
    def scale(self) -> Tensor:
        """exp(logit_scale), at most 100."""
        return self.logit_scale.clamp(max=MAX_LOGIT_SCALE).exp()

    def check_tokenizer(self, tokenizer: Tokenizer) -> None:
        """
        Raises:
            InputError: the text tower cannot read its tokens.
        """
        if isinstance(self.text, TextTower):
            self.text.check_tokenizer(tokenizer)
        elif tokenizer.size > self.text.vocab_size:
            raise InputError(f"model.init_args.vocab_size={self.text.vocab_size}, but the tokenizer has {tokenizer.size} entries")

    def encode_image(self, image_B3HW: Tensor) -> ImageFeatures:
        """Pictures; or, where the tower is an ``ImageTower``, its features (B, N, W)."""
        return self.project_image(self.image(image_B3HW))

    def project_image(self, output: VisionOutput) -> ImageFeatures:
        embedding_BE = F.normalize(self.image_projection(self.pooled_dropout(self.image_norm(output.pooled))).float(), dim=-1)
        return ImageFeatures(output.tokens, embedding_BE)

    def encode_text(self, tokens_CT: Tensor, mask_CT: Tensor) -> TextFeatures:
        """``mask_CT``: True = a real token."""
        return self.project_text(self.text(tokens_CT, mask_CT))

    def project_text(self, output: TextOutput) -> TextFeatures:
        embedding_CE = F.normalize(self.text_projection(self.pooled_dropout(output.pooled)).float(), dim=-1)
        return TextFeatures(output.tokens, embedding_CE)

    def classify_words(self, image: ImageFeatures) -> Tensor:
        """How well each token of the vocabulary goes with the picture, by the image tower alone: logits (B, V)."""
        return self.word_head(image.tokens[:, 0])

    def forward(self, image: Tensor, tokens: Tensor, token_mask: Tensor) -> MultiModalOutput:
        """(B, 3, H, W), (C, T), (C, T); B and C need not be equal."""
        return MultiModalOutput(self.encode_image(image), self.encode_text(tokens, token_mask), self.scale, self.logit_bias)
