"""Text transformer, bidirectional. C captions, T tokens, D width."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from insight.nn.block import Block
from insight.nn.embed import TokenEmbedding
from insight.nn.pool import masked_mean


class TextOutput(NamedTuple):
    tokens: Tensor  # (C, T, D), after the final LayerNorm; rows of padding hold nothing of use
    pooled: Tensor  # (C, D), mean over the real tokens


class TextTransformer(nn.Module):
    """Every token reads every real token; padding is read nowhere and pooled nowhere."""

    def __init__(
        self,
        vocab_size: int,
        context_length: int = 32,
        dim: int = 128,
        depth: int = 4,
        heads: int = 4,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.embedding = TokenEmbedding(vocab_size, context_length, dim)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList([Block(dim, heads, mlp_ratio, dropout) for _ in range(depth)])
        self.norm = nn.LayerNorm(dim)

    @property
    def vocab_size(self) -> int:
        return self.embedding.vocab_size

    @property
    def context_length(self) -> int:
        return self.embedding.context_length

    @property
    def width(self) -> int:
        return self.norm.normalized_shape[0]

    def embed(self, tokens_CT: Tensor) -> Tensor:
        """(C, T) -> (C, T, D), with positions."""
        return self.embedding(tokens_CT)

    def forward(self, tokens_CT: Tensor, mask_CT: Tensor) -> TextOutput:
        """``mask_CT``: True = a real token."""
        return self.read(self.embed(tokens_CT), mask_CT)

    def read(self, x_CTD: Tensor, mask_CT: Tensor) -> TextOutput:
        """What follows the embedding: (C, T, D), True = a real token (C, T)."""
        x_CTD = self.dropout(x_CTD)
        for block in self.blocks:
            x_CTD = block(x_CTD, mask_CT)
        return self.finish(x_CTD, mask_CT)

    def finish(self, x_CTD: Tensor, mask_CT: Tensor) -> TextOutput:
        """What follows the blocks."""
        x_CTD = self.norm(x_CTD)
        return TextOutput(tokens=x_CTD, pooled=masked_mean(x_CTD, mask_CT))
