"""Hidden words, against a loop over one caption at a time."""

from __future__ import annotations

import math

import pytest
import torch

from insight.data.text import END, MASK, PAD, START
from insight.errors import InputError
from insight.losses import IGNORED
from insight.masking import hide_words

TOKENS = torch.tensor(
    [
        [START, 10, 11, 12, 13, 14, 15, 16, 17, END],
        [START, 20, 21, 22, END, PAD, PAD, PAD, PAD, PAD],
        [START, END, PAD, PAD, PAD, PAD, PAD, PAD, PAD, PAD],
    ]
)


@pytest.mark.parametrize("fraction", [0.05, 0.25, 0.5, 1.0])
def test_the_words_with_the_highest_scores_are_hidden_and_no_special_token_ever(fraction):
    scores = torch.rand(TOKENS.shape, generator=torch.Generator().manual_seed(1))
    hidden = hide_words(TOKENS, scores, fraction)
    for row, (tokens, score) in enumerate(zip(TOKENS.tolist(), scores.tolist(), strict=True)):
        words = [column for column, token in enumerate(tokens) if token > MASK]
        chosen = sorted(words, key=lambda column, score=score: -score[column])[: math.ceil(fraction * len(words))]
        expected = [MASK if column in chosen else token for column, token in enumerate(tokens)]
        assert hidden.tokens[row].tolist() == expected
        named = {
            (column, target)
            for column, target in zip(hidden.position[row].tolist(), hidden.target[row].tolist(), strict=True)
            if target != IGNORED
        }
        assert named == {(column, tokens[column]) for column in chosen}


@pytest.mark.parametrize("fraction", [0.0, -1.0, 1.5, math.nan])
def test_an_impossible_fraction_is_refused(fraction):
    with pytest.raises(InputError, match=r"fraction=.*above 0 and at most 1"):
        hide_words(TOKENS, torch.rand(TOKENS.shape), fraction)
