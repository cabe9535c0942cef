"""What can be left out of a pair: segments of the picture, words of the caption; and back, from their values to maps.

A label says for every patch or token which player it belongs to. G pairs, C captions, N patches, g patches per side, T tokens, M players.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from insight.data.text import SPECIAL
from insight.errors import InputError

NOBODY = -1  # label of what is never left out: [START], [END] and padding


def grid_segments(grid: int, count: int) -> Tensor:
    """Labels (N,) of ``count`` rectangles of patches, as equal as possible, row by row.

    >>> grid_segments(4, 4).view(4, 4)
    tensor([[0, 0, 1, 1],
            [0, 0, 1, 1],
            [2, 2, 3, 3],
            [2, 2, 3, 3]])

    Raises:
        InputError: ``count`` is no square of a number from 1 to ``grid``.
    """
    side = math.isqrt(count) if count > 0 else 0
    if side**2 != count or not 1 <= side <= grid:
        raise InputError(
            f"segments={count}: a grid of {grid} x {grid} patches is cut into a square number of segments from 1 to {grid**2}, e.g. "
            f"{min(grid, 4) ** 2}"
        )
    line = torch.arange(grid) * side // grid
    return (line[:, None] * side + line).flatten()


def token_words(tokens_CT: Tensor) -> Tensor:
    """Labels (C, T): every token but [START], [END] and padding is a player of its own, from 0 in each caption."""
    real_CT = tokens_CT >= len(SPECIAL)
    return torch.where(real_CT, real_CT.cumsum(dim=1) - 1, NOBODY)


def whole_words(positions: Sequence[Sequence[Sequence[int]]], length: int) -> Tensor:
    """Labels (C, T) of words that may have several tokens.

    Args:
        positions: For every caption and each of its words, the columns of its tokens (``Tokenizer.words`` gives them).
        length: T.

    Raises:
        InputError: a position is outside of the caption, or two words claim the same.
    """
    label_CT = torch.full((len(positions), length), NOBODY)
    for row, words in enumerate(positions):
        for word, columns in enumerate(words):
            for column in columns:
                if not 0 <= column < length or label_CT[row, column] != NOBODY:
                    raise InputError(
                        f"caption {row}, word {word}: token position {column} is taken twice or outside of the {length} tokens; "
                        "take the positions from Tokenizer.words with the batch's own length"
                    )
                label_CT[row, column] = word
    return label_CT


def num_players(label: Tensor) -> Tensor:
    """Players of each row of labels: (N,) -> (), (C, T) -> (C,)."""
    return label.amax(dim=-1) + 1


def copied(value_GM: Tensor, label: Tensor) -> Tensor:
    """Every patch or token gets its player's value, 0 where nobody stands: (G, M), labels (N,) or (G, N) -> (G, N)."""
    label_GN = label.expand(len(value_GM), -1)
    value_GN = value_GM.gather(1, label_GN.clamp(min=0))
    return torch.where(label_GN == NOBODY, 0.0, value_GN)


def shared(value_GM: Tensor, label: Tensor) -> Tensor:
    """Every patch or token gets its even share of its player's value, so that sums stay: (G, M) -> (G, N)."""
    label_GN = label.expand(len(value_GM), -1)
    size_GM = torch.zeros_like(value_GM).scatter_add_(1, label_GN.clamp(min=0), (label_GN != NOBODY).to(value_GM.dtype))
    return copied(value_GM / size_GM.clamp(min=1), label)
