"""Losses of captions and of answers, beside loops."""

from __future__ import annotations

import math

import pytest
import torch

from insight.errors import InputError
from insight.losses import IGNORED, answer_classification, captioning


def test_captioning_is_the_mean_negative_log_probability_of_the_tokens_that_are_to_be_written():
    logits = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([[1, 4, IGNORED], [0, IGNORED, IGNORED]])
    by_hand = [
        -math.log(math.exp(logits[c, t, v]) / sum(math.exp(x) for x in logits[c, t])) for c, t, v in ((0, 0, 1), (0, 1, 4), (1, 0, 0))
    ]
    assert float(captioning(logits, targets, torch.tensor(3.0))) == pytest.approx(sum(by_hand) / 3, rel=1e-5)
    assert float(captioning(logits, torch.full((2, 3), IGNORED), torch.tensor(0.0))) == 0.0


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_answers_are_classes_and_smoothing_spreads_a_part_of_the_target(smoothing):
    logits, targets = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 5, 2, 2])
    total = 0.0
    for row, right in enumerate(targets.tolist()):
        normaliser = math.log(sum(math.exp(x) for x in logits[row]))
        for answer in range(6):
            share = smoothing / 6 + (1 - smoothing) * (answer == right)
            total -= share * (float(logits[row, answer]) - normaliser) / 4
    assert float(answer_classification(logits, targets, label_smoothing=smoothing)) == pytest.approx(total, rel=1e-5)


def test_smoothing_out_of_range_is_named():
    with pytest.raises(InputError, match=r"label_smoothing=1.0: must be at least 0 and below 1"):
        answer_classification(torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64), label_smoothing=1.0)
