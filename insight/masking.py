"""Hide some words of captions, for masked language modelling. C captions, T tokens, P hidden places."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from insight.data.text import MASK, SPECIAL
from insight.errors import InputError
from insight.losses import IGNORED


class HiddenWords(NamedTuple):
    """Captions with some tokens replaced by [MASK], and what was there."""

    tokens: Tensor  # (C, T) int64
    position: Tensor  # (C, P) int64, columns of ``tokens``
    target: Tensor  # (C, P) int64, the token that was there; IGNORED where a short caption has fewer hidden places


def hide_words(tokens_CT: Tensor, scores_CT: Tensor, fraction: float = 0.25) -> HiddenWords:
    """Replace the tokens with the highest scores by [MASK]: in each caption so large a fraction of its words, rounded up.

    Words are all tokens but the special ones. Nothing depends on the values, so that no accelerator is waited for.

    Args:
        scores_CT: Random numbers of the caller's, which so decides what a choice depends on.
        fraction: Of each caption's words; https://arxiv.org/abs/1810.04805 hides 0.15, and of those leaves some visible.

    Raises:
        InputError: ``fraction`` is not above 0 and at most 1.

    >>> hide_words(torch.tensor([[1, 7, 8, 9, 10, 2]]), torch.tensor([[0.9, 0.1, 0.7, 0.3, 0.2, 0.8]])).tokens
    tensor([[ 1,  7,  3,  9, 10,  2]])
    """
    if not 0 < fraction <= 1:
        raise InputError(f"fraction={fraction}: must be above 0 and at most 1, e.g. 0.25")
    places = max(1, math.ceil(fraction * (tokens_CT.shape[1] - 2)))
    word_CT = tokens_CT >= len(SPECIAL)
    position_CP = scores_CT.masked_fill(~word_CT, -1.0).topk(places, dim=1).indices
    wanted_C1 = (fraction * word_CT.sum(dim=1, keepdim=True)).ceil()
    hidden_CP = torch.arange(places, device=tokens_CT.device) < wanted_C1
    before_CP = tokens_CT.gather(1, position_CP)
    after_CP = before_CP.masked_fill(hidden_CP, MASK)
    return HiddenWords(tokens_CT.scatter(1, position_CP, after_CP), position_CP, before_CP.masked_fill(~hidden_CP, IGNORED))
