"""Gates: what a version must show before it gets an alias. One function each; which ones run, and how strict they are, is in configs/gates.

A gate takes ``candidate`` and ``holder`` (the version that has the alias now, or None); its other parameters are its settings, which
the YAML gives by name. Adding one: a function here (or anywhere), its test, and an entry in a YAML of configs/gates.
"""

from __future__ import annotations

import dataclasses
import inspect
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from insight.bootstrap import Interval
from insight.errors import InputError
from insight.export.bundle import Bundle
from insight.export.card import SECTIONS, missing_sections
from insight.metrics import chance_recall
from insight.query_ranks import QueryRanks, recall_difference, recall_interval
from insight.stages import Call, check_arguments, load

NONE = "-"
SUBJECTS = {"candidate", "holder"}


@dataclasses.dataclass(frozen=True)
class Subject:
    """A version under examination.

    Args:
        address: ``models:/NAME/VERSION``.
        bundle: Fetched and loaded.
        ranks: Of every query of its test; None: the run was not tested.
        metrics: Figures of its run, by name: those of the whole run, and the last stage's ``insight/`` ones.
        fingerprint: Of its data, as the run recorded it in MLflow; None: not recorded.
    """

    address: str
    bundle: Bundle
    ranks: QueryRanks | None
    metrics: Mapping[str, float]
    fingerprint: str | None


class Verdict(NamedTuple):
    """What a gate found. ``absent``: its subject was not measured, so it says neither yes nor no."""

    state: Literal["holds", "fails", "absent"]
    figure: str
    threshold: str
    holder: str = NONE
    note: str = ""


Gate = Callable[..., Verdict]


def bind_gates(gates: Mapping[str, Call]) -> dict[str, tuple[Gate, Call]]:
    """Each gate with its function.

    Raises:
        InputError: an unknown function, an unknown argument or a missing one. It names the key.
    """
    bound = {}
    for name, call in gates.items():
        function = load(call.function, f"gates.{name}.function")
        if not inspect.signature(function).parameters.keys() >= SUBJECTS:
            raise InputError(f"gates.{name}.function: {call.function} is no gate: it takes no candidate and holder")
        missing = set(check_arguments(function, call.arguments, f"gates.{name}.arguments", SUBJECTS)) - SUBJECTS
        if missing:
            raise InputError(f"gates.{name}.arguments: {call.function} needs {', '.join(sorted(missing))}")
        bound[name] = (function, call)
    return bound


def run_gates(gates: Mapping[str, tuple[Gate, Call]], candidate: Subject, holder: Subject | None) -> dict[str, Verdict]:
    """Every gate's verdict. One that cannot be answered (no ranks, other queries) fails and says why."""
    verdicts = {}
    for name, (function, call) in gates.items():
        try:
            verdicts[name] = function(candidate=candidate, holder=holder, **call.arguments)
        except InputError as error:
            verdicts[name] = Verdict("fails", NONE, NONE, NONE, str(error))
    return verdicts


# --- quality ---
def recall_not_below_holder(
    candidate: Subject, holder: Subject | None, metric: str, margin: float = 0.0, confidence: float = 0.95, samples: int = 2000
) -> Verdict:
    """The recall is not below the holder's: by paired bootstrap over the queries of the same split, it may as well be equal or better.

    Fails when even the upper end of the interval of (candidate - holder) is below ``-margin``.
    """
    own = recall_interval(_ranks(candidate), metric, confidence, samples)
    if holder is None:
        return Verdict("holds", interval(own), "not below the holder", NONE, f"{metric}; there is no holder yet")
    theirs = recall_interval(_ranks(holder), metric, confidence, samples)
    found = recall_difference(_ranks(candidate), _ranks(holder), metric, confidence, samples)
    return Verdict(
        "fails" if found.high < -margin else "holds",
        f"{own.value:.3f}, difference {interval(found, '+')}",
        f"difference not below {0 - margin:g}",
        f"{theirs.value:.3f}",
        metric,
    )


def recall_above_chance(candidate: Subject, holder: Subject | None, metric: str, confidence: float = 0.95) -> Verdict:
    """Even the lower end of the recall's interval is above what a random order would reach."""
    ranks = _ranks(candidate)
    own = recall_interval(ranks, metric, confidence)
    counts = torch.bincount(ranks.picture_C, minlength=len(ranks.filenames)).tolist()
    chance = chance_recall(len(counts), counts).get(metric.removeprefix("test/"))
    if chance is None:
        raise InputError(f"{metric}: its chance level is known for the first 1, 5 and 10 only")
    return Verdict(
        "holds" if own.low > chance else "fails",
        interval(own),
        f"above chance, {chance:.3f}",
        f"{recall_interval(holder.ranks, metric, confidence).value:.3f}" if holder and holder.ranks else NONE,
        metric,
    )


def figure_within(
    candidate: Subject,
    holder: Subject | None,
    metric: str,
    at_least: float | None = None,
    at_most: float | None = None,
    required: bool = False,
) -> Verdict:
    """A figure of the run (faithfulness, robustness: ``insight/<method>/<score>``) is within bounds; absent where it was not measured.

    ``required``: not measured is a failure.
    """
    if at_least is None and at_most is None:
        raise InputError(f"{metric}: give at_least or at_most")
    bounds = " and ".join(f"{word} {value:g}" for word, value in (("at least", at_least), ("at most", at_most)) if value is not None)
    theirs = holder.metrics.get(metric) if holder else None
    shown = NONE if theirs is None else f"{theirs:.3f}"
    value = candidate.metrics.get(metric)
    if value is None:
        return Verdict("fails" if required else "absent", NONE, bounds, shown, f"{metric} was not measured by this run")
    inside = (at_least is None or value >= at_least) and (at_most is None or value <= at_most)
    return Verdict("holds" if inside else "fails", f"{value:.3f}", bounds, shown, metric)


# --- cost ---
def latency(candidate: Subject, holder: Subject | None, at_most_ms: float, repeats: int = 20) -> Verdict:
    """Median time of one use of the model on this machine's CPU, e.g. to compare a picture with a caption (``Bundle.use``). In turns."""
    subjects = [one for one in (candidate, holder) if one is not None]
    times: list[list[float]] = [[] for _ in subjects]
    for round_number in range(repeats + 2):
        for one, measured in zip(subjects, times, strict=True):
            begin = time.perf_counter()
            one.bundle.use()
            if round_number >= 2:  # the first ones warm up
                measured.append(1000 * (time.perf_counter() - begin))
    medians = [statistics.median(one) for one in times]
    note = f"{torch.get_num_threads()} threads, {platform.machine()}"
    return Verdict(
        "holds" if medians[0] <= at_most_ms else "fails",
        f"{medians[0]:.2f} ms",
        f"at most {at_most_ms:g} ms",
        f"{medians[1]:.2f} ms" if holder else NONE,
        note,
    )


def size(candidate: Subject, holder: Subject | None, at_most_mb: float) -> Verdict:
    """Bytes of the weights file, in units of 1,000,000."""
    sizes = [(one.bundle.folder / "weights.safetensors").stat().st_size / 1e6 for one in (candidate, holder) if one is not None]
    return Verdict(
        "holds" if sizes[0] <= at_most_mb else "fails",
        f"{sizes[0]:.2f} MB",
        f"at most {at_most_mb:g} MB",
        f"{sizes[1]:.2f} MB" if holder else NONE,
    )


# --- provenance ---
def data_fingerprint_known(candidate: Subject, holder: Subject | None, known: list[str] | None = None) -> Verdict:
    """The bundle and the run in MLflow name the same data and, where ``known`` is given, data that somebody has approved."""
    own, theirs = str(candidate.bundle.data.get("fingerprint") or ""), str(holder.bundle.data.get("fingerprint") or "") if holder else ""
    threshold = "as the run recorded it" if known is None else f"one of {len(known)} that are known"
    shown = theirs[:12] or NONE
    if not own or candidate.fingerprint != own:
        return Verdict("fails", own[:12] or NONE, threshold, shown, f"the run recorded {(candidate.fingerprint or 'none')[:12]}")
    if known is not None and own not in known:
        return Verdict("fails", own[:12], threshold, shown, f"not among them: {own}")
    note = "other data than the holder's" if theirs and theirs != own else ""
    return Verdict("holds", own[:12], threshold, shown, note)


def card_complete(candidate: Subject, holder: Subject | None, sections: list[str] | None = None) -> Verdict:
    """The model card has these sections (null: all that there are), none of them empty or not measured, and its pictures."""
    asked = list(SECTIONS) if sections is None else sections
    unknown = [title for title in asked if title not in SECTIONS]
    if unknown:
        raise InputError(f"a model card has no section '{unknown[0]}'; there are: {', '.join(SECTIONS)}")

    def lacking(subject: Subject) -> list[str]:
        return missing_sections(Path(subject.bundle.folder) / "card", asked)

    lost = lacking(candidate)
    shown = f"{len(asked) - len(lacking(holder))} sections" if holder else NONE
    return Verdict("fails" if lost else "holds", f"{len(asked) - len(lost)} sections", f"all {len(asked)}", shown, ", ".join(lost))


def example_reproduced(candidate: Subject, holder: Subject | None, at_most: float = 1e-4) -> Verdict:
    """The bundle says here of its example what it said where it was made."""
    error = candidate.bundle.example_error()
    shown = f"{holder.bundle.example_error():.1e}" if holder else NONE
    return Verdict("holds" if error <= at_most else "fails", f"{error:.1e}", f"at most {at_most:g}", shown, "largest difference")


def _ranks(subject: Subject) -> QueryRanks:
    if subject.ranks is None:
        raise InputError(f"{subject.address} keeps no ranks of its test's queries: train it with run.test=true")
    return subject.ranks


def interval(found: Interval, sign: str = "") -> str:
    """
    >>> interval(Interval(0.1, -0.05, 0.25), "+")
    '+0.100 (-0.050 to +0.250)'
    """
    return f"{found.value:{sign}.3f} ({found.low:{sign}.3f} to {found.high:{sign}.3f})"
