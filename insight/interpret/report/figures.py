"""The parts of the report that hold numbers: score cards, curves over the training, drift; as plain data for ``report.html``."""

from __future__ import annotations

from typing import NamedTuple

from insight.chart import Line, line_chart
from insight.interpret.draw_methods import COLUMNS, Column, figure, is_best, verdict_words
from insight.interpret.drift import MAP_STABILITY
from insight.interpret.localisation import PROTOCOL
from insight.interpret.report.files import RunFiles, StageFiles
from insight.metrics import RECALL_AT

DRAWN = ("pointing_game", "energy_in_box", "other_object_rate", "insertion_image_token_drop")
CURVES = tuple(f"{name}_{PROTOCOL}" for name in DRAWN)
BESIDE = (Column(f"infidelity_{PROTOCOL}", "infidelity", "min"), Column(f"max_sensitivity_{PROTOCOL}", "largest\nsensitivity", "min"))
STYLES = 8  # colours of the style sheet's lines


# --- what the run reached ---
def recalls(run: RunFiles) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Columns, and a line for each stage's validation and for the test."""
    names = [f"{direction}_recall_at_{k}" for direction in ("image_to_text", "text_to_image") for k in (RECALL_AT[0], RECALL_AT[-1])]
    sources = [(f"val, after {stage.name}", "val/", stage.metrics) for stage in run.stages] + [("test", "test/", run.test)]
    lines = []
    for label, prefix, found in sources:
        figures = [f"{found[prefix + name]:.3f}" if prefix + name in found else "–" for name in names]
        if set(figures) != {"–"}:
            lines.append((label, figures))
    return names, lines


# --- score cards ---
class Cell(NamedTuple):
    text: str
    best: bool = False


class Scored(NamedTuple):
    """One method."""

    name: str
    function: str
    cells: list[Cell]
    verdict: str
    failed: bool
    cascade: list[tuple[str, str]]  # layers shuffled so far, rank correlation


class Card(NamedTuple):
    """The score card at the end of one stage."""

    stage: str
    when: str
    columns: list[str]
    lines: list[Scored]
    pairs: int
    phrases: int


def card(stage: StageFiles) -> Card | None:
    """None: nothing was scored."""
    scored = [one.facts for one in stage.scored if any(method.scores for method in one.facts.methods.values())]
    if not scored:
        return None
    facts = scored[-1]
    beside = {name: check.scores for name, check in stage.checks.items()}
    methods = {name: one for name, one in facts.methods.items() if one.scores}
    columns = [column for column in COLUMNS if any(column.score in one.scores for one in methods.values())]
    later = [column for column in BESIDE if any(column.score in found for found in beside.values())]
    lines = []
    for name, one in methods.items():
        cells = [
            Cell(figure(column, one), is_best(column, one, list(methods.values()))) if column.score in one.scores else Cell("–")
            for column in columns
        ]
        cells += [Cell(f"{found:.3g}" if (found := beside.get(name, {}).get(column.score)) is not None else "–") for column in later]
        verdict = facts.verdicts.get(name)
        words = "not checked" if verdict is None else verdict_words(verdict)[0]
        cascade = [(layers, f"{rho:.2f}") for layers, rho in stage.checks[name].cascade.items()] if name in stage.checks else []
        lines.append(Scored(name, one.function, cells, words, verdict is not None and not verdict.passed, cascade))
    titles = [_title(column) for column in [*columns, *later]]
    phrases = sum(len(example.phrases) for example in facts.examples)
    return Card(stage.name, f"epoch {facts.epoch}, step {facts.step:,}", titles, lines, len(facts.examples), phrases)


def _title(column: Column) -> str:
    words = column.title.replace("-\n", "").replace("\n", " ")
    return f"{words} {dict(max='↑', min='↓').get(column.better, '')}".strip()


# --- over the training ---
class Chart(NamedTuple):
    name: str
    svg: str


def method_styles(run: RunFiles) -> dict[str, str]:
    """By method, its class in the style sheet, the same in every chart."""
    names = dict.fromkeys(name for stage in run.stages for one in stage.scored for name in one.facts.methods)
    names |= dict.fromkeys(name for stage in run.stages for entry in stage.drift for name in entry.stability)
    return {name: f"line{index % STYLES}" for index, name in enumerate(names)}


def curves(run: RunFiles) -> list[Chart]:
    """Scores of all methods over the optimiser steps of all stages."""
    points: dict[str, dict[str, list[tuple[float, float]]]] = {score: {} for score in CURVES}
    for stage, begin in _begins(run):
        for one in stage.scored:
            for name, method in one.facts.methods.items():
                for score in CURVES:
                    if score in method.scores:
                        points[score].setdefault(name, []).append((begin + one.facts.step, method.scores[score]))
    return [_chart(f"insight/<method>/{score}", found, run) for score, found in points.items() if found]


def stability(run: RunFiles) -> Chart | None:
    """How alike the maps of neighbouring validations are."""
    points: dict[str, list[tuple[float, float]]] = {}
    for stage, begin in _begins(run):
        for entry in stage.drift:
            for name, rho in entry.stability.items():
                points.setdefault(name, []).append((begin + entry.step, rho))
    return _chart(f"insight/<method>/{MAP_STABILITY}", points, run) if points else None


def _begins(run: RunFiles) -> list[tuple[StageFiles, int]]:
    """Each stage with the optimiser steps that were done before it."""
    found, begin = [], 0
    for stage in run.stages:
        found.append((stage, begin))
        begin += stage.steps
    return found


def _chart(name: str, points: dict[str, list[tuple[float, float]]], run: RunFiles) -> Chart:
    styles = method_styles(run)
    lines = [Line(method, styles[method], found) for method, found in points.items()]
    return Chart(name, line_chart(name, lines, [(begin, stage.name) for stage, begin in _begins(run)]))


# --- drift ---
class Event(NamedTuple):
    stage: str
    epoch: int
    kind: str
    message: str


class Drift(NamedTuple):
    validations: int
    events: list[Event]
    chart: Chart | None


def drift(run: RunFiles) -> Drift:
    events = [
        Event(stage.name, entry.epoch, one.kind, one.message) for stage in run.stages for entry in stage.drift for one in entry.warnings
    ]
    return Drift(sum(len(stage.drift) for stage in run.stages), events, stability(run))
