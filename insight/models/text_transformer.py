"""Text transformer, bidirectional unless it is told otherwise. C captions, T tokens, D width."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from insight.errors import InputError
from insight.nn.block import blocks, norm
from insight.nn.embed import TokenEmbedding
from insight.nn.pool import Pool, Pooling
from insight.nn.position import Rotation, rotation, text_places
from insight.nn.settings import PLAIN, BlockSettings


class TextOutput(NamedTuple):
    tokens: Tensor  # (C, T, D), after the final norm; rows of padding hold nothing of use
    pooled: Tensor  # (C, D), mean over the real tokens unless ``pool`` says otherwise


class TextTransformer(nn.Module):
    """Every token reads every real token; padding is read nowhere and pooled nowhere.

    Args:
        vocab_size: Rows of the token embedding.
        context_length: Most tokens of a caption.
        dim: Width.
        depth: Blocks.
        heads: Attention heads; divides ``dim``.
        dropout: Of the embedding, and of what each part of a block adds.
        block: How the blocks are made.
        causal: A token reads itself and those before it only.
        pool: What stands for the whole text; ``last`` is its end, the token that a causal model has to be pooled by.

    Raises:
        InputError: a size that does not fit another; ``causal`` and ``pool=first``, a token that has read nothing.
    """

    def __init__(
        self,
        vocab_size: int,
        context_length: int = 32,
        dim: int = 128,
        depth: int = 4,
        heads: int = 4,
        dropout: float = 0.0,
        block: BlockSettings = PLAIN,
        causal: bool = False,
        pool: Pooling = "mean",
    ) -> None:
        super().__init__()
        if causal and pool == "first":
            raise InputError("pool=first: in a causal text the first token has read nothing but itself; choose last, mean or attention")
        self.embedding = TokenEmbedding(vocab_size, context_length, dim, block.position)
        self.dropout = nn.Dropout(dropout)
        self.blocks = blocks(depth, dim, heads, dropout, block, causal)
        self.norm = norm(dim, block)
        self.pool = Pool(pool, dim, heads, block)
        self.dim, self.causal = dim, causal
        self.rotary, self.head_width = block.position == "rotary", dim // heads

    @property
    def vocab_size(self) -> int:
        return self.embedding.vocab_size

    @property
    def context_length(self) -> int:
        return self.embedding.context_length

    def embed(self, tokens_CT: Tensor) -> Tensor:
        """(C, T) -> (C, T, D), with positions."""
        return self.embedding(tokens_CT)

    def forward(self, tokens_CT: Tensor, mask_CT: Tensor) -> TextOutput:
        """``mask_CT``: True = a real token."""
        return self.read(self.embed(tokens_CT), mask_CT)

    def read(self, x_CTD: Tensor, mask_CT: Tensor) -> TextOutput:
        """What follows the embedding: (C, T, D), True = a real token (C, T)."""
        turn = self.rotation(x_CTD)
        x_CTD = self.start(x_CTD)
        for block in self.blocks:
            x_CTD = block(x_CTD, mask_CT, turn)
        return self.finish(x_CTD, mask_CT)

    def start(self, x_CTD: Tensor) -> Tensor:
        """What lies between the embedding and the blocks."""
        return self.dropout(x_CTD)

    def finish(self, x_CTD: Tensor, mask_CT: Tensor) -> TextOutput:
        """What follows the blocks."""
        x_CTD = self.norm(x_CTD)
        return TextOutput(tokens=x_CTD, pooled=self.pool(x_CTD, mask_CT))

    def rotation(self, x_CTD: Tensor) -> Rotation | None:
        """The turn of queries and keys where positions are rotary."""
        return rotation(text_places(0, x_CTD.shape[1], x_CTD.device), self.head_width) if self.rotary else None
