"""Comparing two models: their figures beside the metrics' own, the choice of queries beside a search in plain Python."""

from __future__ import annotations

import pytest
import torch

from insight.bootstrap import Interval
from insight.comparison import Figure, compare_figures, mean_recall_of_pictures, telling_queries
from insight.errors import InputError
from insight.metrics import Ranks, retrieval_scores
from insight.query_ranks import QueryRanks

COUNTS = [5, 4, 6, 1, 5, 5, 2, 5, 5, 3] * 6


def ranks_of(seed: int, spread: float = 30.0, counts: list[int] = COUNTS) -> QueryRanks:
    """A model whose ranks are drawn; the smaller ``spread``, the better it is."""
    draw = torch.Generator().manual_seed(seed)
    names = [f"{number}.jpg" for number in range(len(counts))]
    captions = [f"{name}#{number}" for name, count in zip(names, counts, strict=True) for number in range(count)]
    lengths = {"image_to_text": len(names), "text_to_image": len(captions)}
    ranks = {one: (1 + spread * torch.rand(length, generator=draw) ** 2).long() for one, length in lengths.items()}
    best = {one: torch.randint(0, len(names), (length, 5), generator=draw) for one, length in lengths.items()}
    return QueryRanks(tuple(names), tuple(captions), tuple(f"text of {one}" for one in captions), ranks, best)


def figures_of(ranks: QueryRanks) -> dict[str, float]:
    scores = retrieval_scores(Ranks(ranks.ranks["image_to_text"], ranks.ranks["text_to_image"]))
    return {f"test/{name}": value for name, value in scores.items()}


def test_the_mean_over_pictures_is_the_mean_recall_for_unequal_numbers_of_captions():
    ranks = ranks_of(0)
    by_picture = mean_recall_of_pictures(ranks)
    assert by_picture.shape == (60,) and by_picture.mean().item() == pytest.approx(figures_of(ranks)["test/mean_recall"])


def test_a_better_model_wins_with_an_interval_that_holds_the_difference_of_the_figures():
    first, second = ranks_of(0), ranks_of(1, spread=8.0)
    figures = {one.name: one for one in compare_figures(figures_of(first), {**figures_of(second), "test/new": 1.0}, first, second)}
    assert next(iter(figures)) == "test/mean_recall"
    for name in ("test/mean_recall", "test/image_to_text_recall_at_5", "test/text_to_image_recall_at_10"):
        one = figures[name]
        assert (
            one.difference.value == pytest.approx(one.second - one.first)
            and one.difference.low < one.difference.value < one.difference.high
        )
        assert one.first_interval.value == pytest.approx(one.first) and one.second_interval.value == pytest.approx(one.second)
    assert figures["test/mean_recall"].winner == "second" and figures["test/mean_recall"].significant
    swapped = compare_figures(figures_of(second), figures_of(first), second, first)[0]
    assert swapped.winner == "first" and swapped.difference.value == pytest.approx(-figures["test/mean_recall"].difference.value)
    assert figures["test/image_to_text_mean_rank"].difference is None and figures["test/image_to_text_mean_rank"].better == "min"
    assert figures["test/new"] == Figure("test/new", None, 1.0)


def test_a_model_beside_itself_shows_no_difference():
    one = compare_figures(figures_of(ranks_of(0)), figures_of(ranks_of(0)), ranks_of(0), ranks_of(0))[0]
    assert tuple(one.difference) == (0.0, 0.0, 0.0) and one.significant is False and one.winner == ""


def test_equally_good_models_differ_significantly_about_as_often_as_the_level_says():
    found = 0
    for seed in range(100):
        first, second = ranks_of(2 * seed), ranks_of(2 * seed + 1)
        figures = compare_figures({"test/mean_recall": 0.0}, {"test/mean_recall": 0.0}, first, second)
        found += figures[0].significant
    assert found <= 14  # 5 expected; four standard errors above


def test_a_lower_figure_wins_where_lower_is_better():
    figure = Figure("a rank", 2.0, 1.0, difference=Interval(-1.0, -1.5, -0.5), better="min")
    assert figure.winner == "second"
    assert figure._replace(better="max").winner == "first" and figure._replace(better="").winner == ""
    assert figure._replace(difference=Interval(-1.0, -1.5, 0.0)).winner == ""  # 0 is within


def test_tests_on_different_queries_are_refused():
    with pytest.raises(InputError, match="60 pictures and 246 captions; 10 pictures and 41 captions"):
        compare_figures({}, {}, ranks_of(0), ranks_of(0, counts=COUNTS[:10]))


@pytest.mark.parametrize("direction", ["image_to_text", "text_to_image"])
def test_the_queries_that_tell_most_are_those_that_a_search_finds_each_picture_once(direction):
    first, second = ranks_of(3), ranks_of(4)
    chosen = telling_queries(first, second, direction, 4)
    one, two = first.ranks[direction].tolist(), second.ranks[direction].tolist()
    picture = list(range(60)) if direction == "image_to_text" else first.picture_C.tolist()
    assert [len(found) for found in chosen.values()] == [4, 4, 4]
    for kind, winner, loser in (("second", two, one), ("first", one, two)):
        assert all(winner[query.row] <= 5 < loser[query.row] for query in chosen[kind])
        ratio = min(winner[row] / loser[row] for row in range(len(one)) if winner[row] <= 5 < loser[row])
        best = chosen[kind][0]
        assert (best.first_rank, best.second_rank) == (one[best.row], two[best.row])
        if kind == "second":
            assert winner[best.row] / loser[best.row] == ratio
    assert all(min(query.first_rank, query.second_rank) > 5 for query in chosen["neither"])
    pictures = [picture[query.row] for found in chosen.values() for query in found]
    assert len(pictures) == len(set(pictures))
