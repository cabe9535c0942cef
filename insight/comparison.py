"""Two tested models side by side: every figure with its interval, whether the difference is real, and the queries that tell them apart.

B pictures, C captions, Q queries. Differences are second minus first, by paired bootstrap over pictures (``insight.bootstrap``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from insight.bootstrap import Interval, mean_interval
from insight.errors import InputError
from insight.metric_names import check_metric_name
from insight.metrics import DIRECTIONS, RECALL_AT
from insight.query_ranks import QueryRanks, recall_difference, recall_interval

RECALLS = tuple(f"test/{direction}_recall_at_{k}" for direction in DIRECTIONS for k in RECALL_AT)
MEAN_RECALL = "test/mean_recall"


class Figure(NamedTuple):
    """One metric of both models. Without ranks of the same queries there is no interval of the difference."""

    name: str
    first: float | None
    second: float | None
    first_interval: Interval | None = None
    second_interval: Interval | None = None
    difference: Interval | None = None
    better: str = ""  # "max" or "min" is better, "": neither

    @property
    def significant(self) -> bool | None:
        """Whether 0 lies outside of the difference's interval; None where nobody can say."""
        return None if self.difference is None else not self.difference.low <= 0 <= self.difference.high

    @property
    def winner(self) -> str:
        """``first`` or ``second`` where the difference is significant and one of the two is better, else empty."""
        if not self.significant or self.difference is None or not self.better:
            return ""
        return "second" if (self.difference.value > 0) == (self.better == "max") else "first"


def mean_recall_of_pictures(ranks: QueryRanks) -> Tensor:
    """(B,): numbers whose mean is the mean of the six recalls. A picture's captions count with it, each as much as any other caption."""
    found_B = torch.zeros(len(ranks.filenames), dtype=torch.float64)
    for k in RECALL_AT:
        found_B += (ranks.ranks["image_to_text"] <= k).double()
        hit_C = (ranks.ranks["text_to_image"] <= k).double()
        found_B += torch.zeros_like(found_B).index_add(0, ranks.picture_C, hit_C) * (len(found_B) / len(hit_C))
    return found_B / (len(DIRECTIONS) * len(RECALL_AT))


def compare_figures(
    first: Mapping[str, float], second: Mapping[str, float], first_ranks: QueryRanks | None, second_ranks: QueryRanks | None
) -> list[Figure]:
    """Every figure of either test, the recalls first and with intervals where there are ranks.

    Raises:
        InputError: both have ranks, of different queries: then the difference of two recalls means nothing.
    """
    if first_ranks is not None and second_ranks is not None and first_ranks.queries != second_ranks.queries:
        sizes = [f"{len(one.filenames)} pictures and {len(one.captions)} captions" for one in (first_ranks, second_ranks)]
        raise InputError(f"the two were tested on different queries ({sizes[0]}; {sizes[1]})")
    names = [name for name in (MEAN_RECALL, *RECALLS) if name in first or name in second]
    names += [name for name in sorted({*first, *second}) if name not in names and "/baseline/" not in name]
    return [_figure(name, first, second, first_ranks, second_ranks) for name in names]


def _figure(
    name: str, first: Mapping[str, float], second: Mapping[str, float], first_ranks: QueryRanks | None, second_ranks: QueryRanks | None
) -> Figure:
    one: Interval | None = None
    two: Interval | None = None
    difference: Interval | None = None
    if name == MEAN_RECALL:
        first_B, second_B = (None if ranks is None else mean_recall_of_pictures(ranks) for ranks in (first_ranks, second_ranks))
        one, two = (None if values is None else mean_interval(values) for values in (first_B, second_B))
        if first_B is not None and second_B is not None:
            difference = mean_interval(second_B - first_B)
    elif name in RECALLS:
        one, two = (None if ranks is None else recall_interval(ranks, name) for ranks in (first_ranks, second_ranks))
        if first_ranks is not None and second_ranks is not None:
            difference = recall_difference(second_ranks, first_ranks, name)
    return Figure(name, first.get(name), second.get(name), one, two, difference, _better(name))


def _better(name: str) -> str:
    try:
        return check_metric_name(name).better
    except InputError:  # a run of another release may have figures that this one does not know
        return ""


class Query(NamedTuple):
    """A query that both models answered."""

    row: int
    first_rank: int
    second_rank: int


def telling_queries(first: QueryRanks, second: QueryRanks, direction: str, count: int) -> dict[str, list[Query]]:
    """At most ``count`` queries of each kind: ``second`` found more than ``first`` did, the other way round, and ``neither`` found.

    What tells most is where one has a right answer high up and the other far down, so they are ordered by the ratio of the ranks; no two
    captions are of the same picture.
    """
    ranks = zip(first.ranks[direction].tolist(), second.ranks[direction].tolist(), strict=True)
    rows = [Query(row, *both) for row, both in enumerate(ranks)]
    shown = first.best[direction].shape[1]
    seconds = [query for query in rows if query.second_rank <= shown < query.first_rank]
    firsts = [query for query in rows if query.first_rank <= shown < query.second_rank]
    neither = [query for query in rows if min(query.first_rank, query.second_rank) > shown]
    kinds = {
        "second": sorted(seconds, key=lambda query: (query.second_rank / query.first_rank, query.row)),
        "first": sorted(firsts, key=lambda query: (query.first_rank / query.second_rank, query.row)),
        "neither": sorted(neither, key=lambda query: (-query.first_rank - query.second_rank, query.row)),
    }
    picture_C = first.picture_C.tolist()
    used: set[int] = set()
    chosen: dict[str, list[Query]] = {}
    for kind, found in kinds.items():
        chosen[kind] = []
        for query in found:
            picture = query.row if direction == "image_to_text" else picture_C[query.row]
            if picture not in used and len(chosen[kind]) < count:
                used.add(picture)
                chosen[kind].append(query)
    return chosen
