"""How sure a mean over queries is: percentile bootstrap. Q queries, G groups of queries, S resamples.

B. Efron and R. Tibshirani, "An Introduction to the Bootstrap" (1993), section 13.3. For two models on the same queries, give the
differences query by query: resampling those is the paired bootstrap.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from torch import Tensor

from insight.errors import InputError

DRAWS_AT_ONCE = 4_000_000  # bounds the memory


class Interval(NamedTuple):
    """A mean and where it may as well lie."""

    value: float
    low: float
    high: float


def mean_interval(
    values_Q: Tensor, group_Q: Tensor | None = None, confidence: float = 0.95, samples: int = 2000, seed: int = 0
) -> Interval:
    """The mean of ``values_Q`` and its bootstrap interval; the same numbers for the same seed on every machine.

    Args:
        values_Q: One number per query: hit or miss, or the difference of two models' hits.
        group_Q: Which queries belong together (the captions of one picture) and are drawn together; None: every query on its own.
            Drawn one by one, the captions of a picture would count as independent and the interval would be too narrow.
        confidence: Probability between the two ends.
        samples: Resamples.
        seed: Of the draws.

    Raises:
        InputError: no query, a value that is not finite, or a setting out of range.

    >>> import torch
    >>> mean_interval(torch.ones(10))
    Interval(value=1.0, low=1.0, high=1.0)
    """
    if not 0 < confidence < 1:
        raise InputError(f"confidence={confidence}: must be between 0 and 1, e.g. 0.95")
    if samples < 1:
        raise InputError(f"samples={samples}: must be at least 1, e.g. 2000")
    values = values_Q.detach().double().cpu().numpy()
    if values.ndim != 1 or not len(values):
        raise InputError(f"a bootstrap needs one number per query, at least one query; got shape {tuple(values.shape)}")
    if not np.isfinite(values).all():
        raise InputError(f"a bootstrap of numbers that are not finite (first: query {int((~np.isfinite(values)).argmax())})")
    groups = np.arange(len(values)) if group_Q is None else np.unique(group_Q.cpu().numpy(), return_inverse=True)[1]
    if len(groups) != len(values):
        raise InputError(f"{len(values)} queries but {len(groups)} groups: give one group per query")
    sums_G, sizes_G = np.bincount(groups, weights=values), np.bincount(groups)
    generator = np.random.default_rng(seed)
    means = []
    for begin in range(0, samples, block := max(1, DRAWS_AT_ONCE // len(sums_G))):
        drawn_SG = generator.integers(len(sums_G), size=(min(block, samples - begin), len(sums_G)))
        means.append(sums_G[drawn_SG].sum(axis=1) / sizes_G[drawn_SG].sum(axis=1))
    low, high = np.quantile(np.concatenate(means), [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(values.mean()), float(low), float(high))
