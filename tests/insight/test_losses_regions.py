"""Phrases against the patches inside their boxes, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from insight.errors import InputError
from insight.losses import fused_phrase_regions, phrase_regions

INSIDE = torch.tensor([[True, False, False, True], [False, True, False, False]])


def test_the_loss_is_minus_the_log_of_the_softmax_that_lies_inside():
    cosine = torch.tensor([[0.9, 0.1, -0.3, 0.2], [0.0, 0.5, 0.4, -1.0]])
    expected = 0.0
    for row, inside in zip(cosine.tolist(), INSIDE.tolist(), strict=True):
        shares = [math.exp(value / 0.2) for value in row]
        expected -= math.log(sum(share for share, right in zip(shares, inside, strict=True) if right) / sum(shares))
    found = phrase_regions(cosine, INSIDE, torch.tensor(2), temperature=0.2)
    assert found.item() == pytest.approx(expected / 2, abs=1e-6)


def test_the_share_of_attention_to_patches_counts_whatever_the_class_token_gets():
    attention = torch.tensor([[0.1, 0.2, 0.1, 0.1], [0.02, 0.06, 0.01, 0.01]])  # the rest went elsewhere
    expected = -(math.log(0.2 / 0.5) + math.log(0.06 / 0.1)) / 2
    assert fused_phrase_regions(attention.log(), INSIDE, torch.tensor(2)).item() == pytest.approx(expected, abs=1e-6)


def test_devices_with_unequally_many_phrases_average_to_the_mean_over_phrases():
    cosine = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    inside = INSIDE[[0, 1, 1, 0, 1]]
    whole = phrase_regions(cosine, inside, torch.tensor(5))
    parts = [phrase_regions(cosine[rows], inside[rows], torch.tensor(2.5)) for rows in (slice(0, 1), slice(1, 5))]
    assert torch.allclose(sum(parts) / 2, whole)


def test_no_phrase_is_no_loss_and_has_a_gradient():
    nothing = torch.zeros(0, 4, requires_grad=True)
    loss = phrase_regions(nothing, INSIDE[:0], torch.tensor(0))
    loss.backward()
    assert loss.item() == 0 and nothing.grad is not None and nothing.grad.shape == (0, 4)


def test_everything_inside_costs_nothing():
    assert phrase_regions(torch.randn(2, 4), torch.ones(2, 4, dtype=torch.bool), torch.tensor(2)).item() == pytest.approx(0, abs=1e-6)


def test_a_temperature_of_zero_is_refused():
    with pytest.raises(InputError, match="temperature=0"):
        phrase_regions(torch.zeros(2, 4), INSIDE, torch.tensor(2), temperature=0)
