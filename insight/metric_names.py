"""The one list of metric names: the same on screen, in MLflow and in files."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from insight.errors import InputError
from insight.metrics import DIRECTIONS, RECALL_AT
from insight.stages import nearest


class MetricName(NamedTuple):
    """A metric, or a family of them, by the words that ``<...>`` stands for (``WORDS``; any word where nothing is listed)."""

    template: str
    splits: tuple[str, ...]  # what <split> stands for
    better: str  # "max", "min" or "" (neither)
    meaning: str
    repeats: bool = True  # whether the same run gives it again on the same device; what a clock or the machine says does not


WORDS = {
    "<direction>": DIRECTIONS,
    "<k>": tuple(map(str, RECALL_AT)),
    "<pairs>": ("seen", "unseen"),
    "<side>": ("image", "text"),
    "<tower>": ("image", "text"),
}
METRIC_NAMES = (
    MetricName("<split>/loss", ("train", "val"), "min", "weighted sum of the stage's loss terms"),
    MetricName("<split>/loss/<term>", ("train", "val"), "min", "one term of the loss, weighted"),
    MetricName("<split>/learning_rate", ("train",), "", "rate of the first parameter group"),
    MetricName("<split>/learning_rate/<part>", ("train",), "", "rate of a part of the model, the largest where it has several"),
    MetricName("<split>/gradient_norm", ("train",), "", "length of the whole gradient, before it is clipped"),
    MetricName("<split>/gradient_norm/<part>", ("train",), "", "length of a part's gradient, before it is clipped"),
    MetricName("<split>/pairs_per_second", ("train",), "max", "captions trained on in a second, validations left out", repeats=False),
    MetricName("<split>/<what>_per_second", ("train",), "max", "the same of another task's examples", repeats=False),
    MetricName("<split>/scale", ("train",), "", "factor of the cosine in the contrastive losses: 1 / temperature"),
    MetricName("<split>/alignment", ("val",), "min", "mean squared distance of a picture and its caption"),
    MetricName("<split>/uniformity_<tower>", ("val",), "min", "how evenly embeddings lie on the sphere; 0 = all in one point"),
    MetricName("<split>/effective_rank_<tower>", ("val",), "max", "in how many directions embeddings differ"),
    MetricName("<split>/<direction>_recall_at_<k>", ("val", "test"), "max", "fraction of queries with a right answer among the first k"),
    MetricName("<split>/<direction>_median_rank", ("val", "test"), "min", "median rank of the best right answer, 1 = first"),
    MetricName("<split>/<direction>_mean_rank", ("val", "test"), "min", "mean rank of the best right answer, 1 = first"),
    MetricName("<split>/mean_recall", ("val", "test"), "max", "mean of the six recalls"),
    MetricName("<split>/reranked_<direction>_recall_at_<k>", ("test",), "max", "recall after the matching head re-ordered the first"),
    MetricName("<split>/reranked_<direction>_median_rank", ("test",), "min", "median rank after re-ranking"),
    MetricName("<split>/reranked_<direction>_mean_rank", ("test",), "min", "mean rank after re-ranking"),
    MetricName("<split>/reranked_mean_recall", ("test",), "max", "mean of the six recalls after re-ranking"),
    MetricName("<split>/hard_negative_accuracy_<pairs>", ("test",), "max", "right caption above its twin with swapped attributes"),
    MetricName("<split>/reranked_hard_negative_accuracy_<pairs>", ("test",), "max", "the same by the matching head"),
    MetricName("<split>/baseline/<name>/<what>", ("test",), "", "the figure of that name, of a baseline"),
    MetricName("insight/<method>/pointing_game_v1", (), "max", "phrases whose map is highest inside their boxes"),
    MetricName("insight/<method>/energy_in_box_v1", (), "max", "part of a phrase's map inside its boxes"),
    MetricName("insight/<method>/other_object_rate_v1", (), "min", "phrases whose map is highest on another object"),
    MetricName("insight/<method>/specificity_v1", (), "max", "pointing game - other-object rate, where there is another object"),
    MetricName("insight/<method>/deletion_<side>_<removal>_v1", (), "min", "mean score while the most important goes first"),
    MetricName("insight/<method>/insertion_<side>_<removal>_v1", (), "max", "mean score while the most important comes first"),
    MetricName("insight/<method>/randomisation_rho_v1", (), "", "rank correlation with maps of shuffled weights; near 0 is right"),
    MetricName("insight/<method>/randomisation_passed_v1", (), "max", "1 = the maps depend on the weights"),
    MetricName("insight/<method>/infidelity_v1", (), "min", "squared error of what a map says that removals cost, in units of the score"),
    MetricName("insight/<method>/max_sensitivity_v1", (), "min", "largest relative change of a map under a small change of the pixels"),
    MetricName("insight/<method>/map_stability_v1", (), "", "rank correlation with the maps of the validation before"),
    MetricName("insight/<method>/forwards_per_pair", (), "min", "passes forward that a map takes"),
    MetricName("insight/<method>/backwards_per_pair", (), "min", "passes back that a map takes"),
    MetricName("insight/<method>/seconds_per_pair", (), "min", "wall seconds that a map takes", repeats=False),
    MetricName("insight/<method>/<score>", (), "", "any other figure of an interpretation method"),
    MetricName("insight/<callback>_fraction", (), "min", "share of validation time that looking into the model takes", repeats=False),
    MetricName("insight/drift_warnings", (), "min", "warnings of the drift callback in this validation"),
    MetricName("sweep/value", (), "", "what a trial of a sweep reached: its own metric, at the step of its number"),
    MetricName("sweep/best", (), "", "the best of the trials so far"),
    MetricName("system/<what>", (), "", "what the machine is doing, under MLflow's own names", repeats=False),
)


def metric_names(splits: Iterable[str] = ("train", "val", "test")) -> list[str]:
    """Every name, with ``<split>`` filled in; other placeholders stay."""
    splits = tuple(splits)
    return [name for one in METRIC_NAMES for name in _spelled(one) if not one.splits or name.split("/")[0] in splits]


def check_metric_name(name: str) -> MetricName:
    """The entry of ``METRIC_NAMES`` that a name belongs to.

    Raises:
        InputError: there is none; it names the nearest.

    >>> check_metric_name("val/mean_recall").better
    'max'
    """
    for one in METRIC_NAMES:
        for spelled in _spelled(one):
            if re.fullmatch(re.sub(r"<\w+>", r"[A-Za-z0-9_]+", spelled), name):
                return one
    raise InputError(f"no metric is called '{name}'{nearest(name, metric_names())}")


def repeats(name: str) -> bool:
    """Whether a repeated run gives the same value; unknown names count as such.

    >>> repeats("val/mean_recall"), repeats("system/cpu_utilization_percentage")
    (True, False)
    """
    try:
        return check_metric_name(name).repeats
    except InputError:
        return True


def _spelled(one: MetricName) -> list[str]:
    """The names of one entry; placeholders for any word stay."""
    names = [one.template]
    for placeholder, words in {"<split>": one.splits, **WORDS}.items():
        names = [name.replace(placeholder, word) for name in names for word in (words if placeholder in name else ("",))]
    return names
