"""Marked phrases of a batch as tensors: which tokens, which patches.

P phrases with boxes and tokens, K boxes, T tokens, N patches row by row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from insight.data.batch import ImageTextBatch, Phrase
from insight.data.text import Word


class PhraseRegions(NamedTuple):
    """On the device of the batch."""

    caption: Tensor  # (P,) int64, row of the caption
    words: Tensor  # (P, T) bool, True = a token of the phrase
    inside: Tensor  # (P, N) bool, True = the patch's centre lies in a box; of a box without any: the patch that holds the box's centre


def positions_of(phrase: Phrase, words: Sequence[Word]) -> tuple[int, ...]:
    """Columns of all words that share a character with the phrase; ``words``: of its caption."""
    return tuple(column for word in words if word.start < phrase.end and phrase.start < word.end for column in word.positions)


def phrase_regions_of(batch: ImageTextBatch, grid: int) -> PhraseRegions:
    """Phrases without a box in the picture, or whose words were cut off, are left out: P may be 0.

    Args:
        grid: Patches per side.
    """
    marked = [phrase for phrase in batch.phrases if phrase.boxes and phrase.positions]
    device = batch.tokens.device
    words_PT = torch.zeros(len(marked), batch.tokens.shape[1], dtype=torch.bool)
    places = [(row, column) for row, phrase in enumerate(marked) for column in phrase.positions]
    if places:
        words_PT[tuple(torch.tensor(places).T)] = True
    phrase_K = torch.tensor([row for row, phrase in enumerate(marked) for _ in phrase.boxes], dtype=torch.int64)
    box_K4 = torch.tensor([box for phrase in marked for box in phrase.boxes], dtype=torch.float32).view(-1, 4)
    number_PN = torch.zeros(len(marked), grid**2).index_add(0, phrase_K, _patches_in(box_K4, grid).float())
    caption_P = torch.tensor([phrase.caption for phrase in marked], dtype=torch.int64)
    return PhraseRegions(caption_P.to(device), words_PT.to(device), (number_PN > 0).to(device))


def _patches_in(box_K4: Tensor, grid: int) -> Tensor:
    """(K, N) bool; at least one a row."""
    centre_g = (torch.arange(grid) + 0.5) / grid
    left_K1, top_K1, right_K1, bottom_K1 = box_K4.T.unsqueeze(-1)
    across_Kg = (centre_g >= left_K1) & (centre_g <= right_K1)
    down_Kg = (centre_g >= top_K1) & (centre_g <= bottom_K1)
    inside_KN = (down_Kg[:, :, None] & across_Kg[:, None, :]).flatten(1)
    column_K = ((left_K1 + right_K1)[:, 0] / 2 * grid).long().clamp(0, grid - 1)
    row_K = ((top_K1 + bottom_K1)[:, 0] / 2 * grid).long().clamp(0, grid - 1)
    nearest_KN = torch.nn.functional.one_hot(row_K * grid + column_K, grid**2).bool()
    return torch.where(inside_KN.any(dim=1, keepdim=True), inside_KN, nearest_KN)
