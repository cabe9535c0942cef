"""Bootstrap intervals beside every possible resample, SciPy's bootstrap, and a case where the captions of a picture go together."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.stats
import torch

from insight import bootstrap
from insight.bootstrap import mean_interval
from insight.errors import InputError


def test_the_interval_is_that_of_all_resamples_there_are():
    values = torch.tensor([0.0, 1.0, 1.0, 4.0, 9.0])
    every = [np.mean(drawn) for drawn in itertools.product(values.tolist(), repeat=5)]  # 5 ** 5, equally likely
    found = mean_interval(values, confidence=0.8, samples=200_000)
    assert found.value == pytest.approx(3.0)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(every, [0.1, 0.9])), abs=1e-9)


def test_hits_and_misses_get_the_interval_that_scipy_gives():
    hits = (torch.rand(400, generator=torch.Generator().manual_seed(0)) < 0.3).float()
    found = mean_interval(hits, samples=20_000)
    known = scipy.stats.bootstrap((hits.numpy(),), np.mean, n_resamples=20_000, method="percentile", rng=1).confidence_interval
    assert (found.low, found.high) == pytest.approx((known.low, known.high), abs=0.0026)  # one query in 400


def test_paired_differences_get_the_interval_that_scipys_paired_bootstrap_gives():
    draw = torch.Generator().manual_seed(1)
    one = (torch.rand(300, generator=draw) < 0.5).float()
    two = torch.where(torch.rand(300, generator=draw) < 0.9, one, 1 - one)  # mostly the same queries
    found = mean_interval(one - two, samples=20_000)
    known = scipy.stats.bootstrap(
        (one.numpy(), two.numpy()),
        lambda a, b, axis: a.mean(axis=axis) - b.mean(axis=axis),
        paired=True,
        n_resamples=20_000,
        method="percentile",
        rng=1,
    ).confidence_interval
    assert (found.low, found.high) == pytest.approx((known.low, known.high), abs=0.0034)  # one query in 300


def test_groups_of_unequal_size_are_drawn_whole():
    values, groups = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0, 1.0]), torch.tensor([7, 7, 7, 2, 2, 5])
    parts = [values[groups == group].tolist() for group in (7, 2, 5)]
    every = [np.mean([*a, *b, *c]) for a, b, c in itertools.product(parts, repeat=3)]
    found = mean_interval(values, groups, confidence=0.6, samples=200_000)
    assert found.value == pytest.approx(4 / 6)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(every, [0.2, 0.8])), abs=1e-9)


def test_captions_that_hit_and_miss_together_make_the_interval_wider():
    hit = (torch.rand(200, generator=torch.Generator().manual_seed(2)) < 0.5).float()
    captions, pictures = hit.repeat_interleave(5), torch.arange(200).repeat_interleave(5)
    alone, together = mean_interval(captions), mean_interval(captions, pictures)
    assert (together.high - together.low) / (alone.high - alone.low) == pytest.approx(5**0.5, rel=0.1)
    assert together.high - together.low == pytest.approx(2 * 1.96 * (0.25 / 200) ** 0.5, rel=0.1)  # of 200 independent pictures


def test_the_interval_holds_the_truth_as_often_as_it_promises():
    draw = torch.Generator().manual_seed(3)
    held = 0
    for number in range(200):
        found = mean_interval((torch.rand(150, generator=draw) < 0.4).float(), samples=300, seed=number)
        held += found.low <= 0.4 <= found.high
    assert 0.90 <= held / 200 <= 0.99  # 95 % promised; three standard errors are 4.6 %


def test_drawing_in_blocks_gives_an_interval_for_the_same_mean(monkeypatch):
    values = torch.arange(50.0)
    whole = mean_interval(values)
    assert mean_interval(values) == whole != mean_interval(values, seed=1)
    monkeypatch.setattr(bootstrap, "DRAWS_AT_ONCE", 60)  # one resample at a time
    assert mean_interval(values) == whole  # the generator is read in the same order


@pytest.mark.parametrize(
    ("values", "changes", "said"),
    [
        (torch.ones(3), {"confidence": 1.0}, "confidence=1.0"),
        (torch.ones(3), {"samples": 0}, "samples=0"),
        (torch.empty(0), {}, "at least one query"),
        (torch.ones(2, 2), {}, "one number per query"),
        (torch.tensor([1.0, float("nan")]), {}, "first: query 1"),
        (torch.ones(3), {"group_Q": torch.zeros(2)}, "3 queries but 2 groups"),
    ],
)
def test_what_no_interval_can_be_made_of_is_refused(values, changes, said):
    with pytest.raises(InputError, match=said):
        mean_interval(values, **changes)
