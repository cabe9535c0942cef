"""Keys and values of what was read before: a causal model computes each token once. B batch, S keys, H heads, K width of one head."""

from __future__ import annotations

import torch
from torch import Tensor


class KeyValueCache:
    """Of one attention.

    Args:
        filled_once: The context stays as it was at the first call (a picture that a decoder reads): it is kept, and nothing is added.
    """

    def __init__(self, filled_once: bool = False) -> None:
        self.filled_once = filled_once
        self.key_BHSK: Tensor | None = None
        self.value_BHSK: Tensor | None = None

    def __len__(self) -> int:
        """S"""
        return 0 if self.key_BHSK is None else self.key_BHSK.shape[2]

    @property
    def complete(self) -> bool:
        return self.filled_once and self.key_BHSK is not None

    def read(self) -> tuple[Tensor, Tensor]:
        assert self.key_BHSK is not None and self.value_BHSK is not None, "nothing was appended"
        return self.key_BHSK, self.value_BHSK

    def append(self, key_BHSK: Tensor, value_BHSK: Tensor) -> tuple[Tensor, Tensor]:
        """Add new keys and values at the end, and return all."""
        if self.key_BHSK is not None and self.value_BHSK is not None:
            key_BHSK, value_BHSK = torch.cat([self.key_BHSK, key_BHSK], dim=2), torch.cat([self.value_BHSK, value_BHSK], dim=2)
        self.key_BHSK, self.value_BHSK = key_BHSK, value_BHSK
        return key_BHSK, value_BHSK

    def keep_rows(self, row_B: Tensor) -> None:
        """Row b becomes what row ``row_B[b]`` was: a search by beams goes on with some of its beams."""
        if self.key_BHSK is not None and self.value_BHSK is not None:
            self.key_BHSK, self.value_BHSK = self.key_BHSK[row_B], self.value_BHSK[row_B]


class BlockCache:
    """Of one block: of its self-attention, and of the attention to a context where it has one."""

    def __init__(self) -> None:
        self.own = KeyValueCache()
        self.context = KeyValueCache(filled_once=True)

    def __len__(self) -> int:
        """Tokens that the block has read."""
        return len(self.own)

    def keep_rows(self, row_B: Tensor) -> None:
        self.own.keep_rows(row_B)
        self.context.keep_rows(row_B)
