"""Causal language model: what comes next, from what was before. C texts, T tokens, D width, V vocabulary, K width of one head.

With ``block.activation=gelu_tanh`` it is GPT-2 (Radford et al. 2019, section 2.3), whose weights ``insight/models/gpt2.py`` reads.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from insight.nn.block import blocks, norm
from insight.nn.cache import BlockCache
from insight.nn.embed import TokenEmbedding
from insight.nn.linear import linear
from insight.nn.position import Rotation, rotation, text_places
from insight.nn.settings import PLAIN, BlockSettings


class LanguageOutput(NamedTuple):
    tokens: Tensor  # (C, T, D), after the final norm
    logits: Tensor  # (C, T, V): of the token after each


class LanguageModel(nn.Module):
    """Every token reads itself and those before it, so padding behind a text reaches none of its tokens and needs no mask.

    Args:
        vocab_size: Rows of the token embedding.
        context_length: Most tokens of a text.
        dim: Width.
        depth: Blocks.
        heads: Attention heads; divides ``dim``.
        dropout: Of the embedding, and of what each part of a block adds.
        block: How the blocks are made.
        tied: The rows of the token embedding are the classes of the output too (https://arxiv.org/abs/1608.05859).

    Raises:
        InputError: a size that does not fit another.
    """

    def __init__(
        self,
        vocab_size: int,
        context_length: int = 48,
        dim: int = 128,
        depth: int = 4,
        heads: int = 4,
        dropout: float = 0.0,
        block: BlockSettings = PLAIN,
        tied: bool = True,
    ) -> None:
        super().__init__()
        self.embedding = TokenEmbedding(vocab_size, context_length, dim, block.position)
        self.dropout = nn.Dropout(dropout)
        self.blocks = blocks(depth, dim, heads, dropout, block, causal=True)
        self.norm = norm(dim, block)
        self.head = None if tied else linear(dim, vocab_size, bias=False)
        self.rotary, self.head_width = block.position == "rotary", dim // heads

    @property
    def context_length(self) -> int:
        return self.embedding.context_length

    def forward(self, tokens_CT: Tensor, mask_CT: Tensor | None = None) -> LanguageOutput:
        """``mask_CT``: True = a token that may be read; None: all."""
        x_CTD = self.read(self.embed(tokens_CT), mask_CT)
        return LanguageOutput(x_CTD, self.name(x_CTD))

    def embed(self, tokens_CT: Tensor, start: int = 0) -> Tensor:
        """(C, T) -> (C, T, D): the tokens of the places from ``start`` on.

        Raises:
            InputError: they go beyond the positions.
        """
        return self.embedding(tokens_CT, start)

    def read(self, x_CTD: Tensor, mask_CT: Tensor | None = None, caches: list[BlockCache] | None = None) -> Tensor:
        """The final tokens (C, T, D) from the embedded ones.

        Args:
            caches: One per block; ``x_CTD`` are then the newest tokens of the texts that they hold.
        """
        turn = self.rotation(x_CTD, len(caches[0]) if caches else 0)
        x_CTD = self.dropout(x_CTD)
        for place, block in enumerate(self.blocks):
            x_CTD = block(x_CTD, mask_CT, turn, caches[place] if caches else None)
        return self.norm(x_CTD)

    def name(self, x_CTD: Tensor) -> Tensor:
        """Final tokens (..., D) -> logits (..., V) of what comes after each."""
        return F.linear(x_CTD, self.classes)

    @property
    def classes(self) -> Tensor:
        """(V, D)"""
        return self.embedding.token.weight if self.head is None else self.head.weight

    def rotation(self, x_CTD: Tensor, start: int) -> Rotation | None:
        """The turn of queries and keys where positions are rotary."""
        return rotation(text_places(start, x_CTD.shape[1], x_CTD.device), self.head_width) if self.rotary else None


class LanguageReader:
    """Reads texts for ``insight.generation``, each token once; without a cache all of them again at every step, which gives the same."""

    def __init__(self, model: LanguageModel, cached: bool = True) -> None:
        self.model, self.context_length = model, model.context_length
        self._caches = [BlockCache() for _ in model.blocks] if cached and len(model.blocks) else None
        self._tokens_BT: Tensor | None = None

    def read(self, tokens_BT: Tensor) -> Tensor:
        """(B, T) more tokens of every text -> logits (B, V) of what comes after them."""
        if self._caches is not None:
            x_BTD = self.model.read(self.model.embed(tokens_BT, len(self._caches[0])), None, self._caches)
            return self.model.name(x_BTD[:, -1])
        self._tokens_BT = tokens_BT if self._tokens_BT is None else torch.cat([self._tokens_BT, tokens_BT], dim=1)
        return self.model.name(self.model.read(self.model.embed(self._tokens_BT))[:, -1])

    def keep_rows(self, row_B: Tensor) -> None:
        """Text b becomes what text ``row_B[b]`` was."""
        if self._caches is not None:
            for cache in self._caches:
                cache.keep_rows(row_B)
        elif self._tokens_BT is not None:
            self._tokens_BT = self._tokens_BT[row_B]
