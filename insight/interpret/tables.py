"""The score cards of a stage as one table: ``scores.csv``, a line for each validation, method and score."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from insight.interpret.maps import MapFacts, load_facts, write_atomically

FOLDER, TABLE = "score_card", "scores.csv"  # in a stage's folder
MAPS = "maps"  # likewise: what is captured of attention


class Line(NamedTuple):
    stage: str
    epoch: int
    step: int
    method: str
    score: str  # as in ``insight/<method>/<score>``
    value: float


def scored_validations(folder: Path) -> Iterator[tuple[Path, MapFacts]]:
    """The files of a stage's ``score_card`` folder in the order of training."""
    for sidecar in sorted(folder.glob("epoch*.json")):
        yield sidecar.with_suffix(".safetensors"), load_facts(sidecar)


def lines(folder: Path) -> Iterator[Line]:
    for _, facts in scored_validations(folder):
        for method, one in facts.methods.items():
            for score, value in one.scores.items():
                yield Line(facts.stage, facts.epoch, facts.step, method, score, value)


def write_table(folder: Path) -> Path:
    """From the files that are there, so that a resumed run has each validation once. Returns the table."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Line._fields)
    writer.writerows(lines(folder))
    path = folder / TABLE
    write_atomically(path, lambda temporary: temporary.write_text(text.getvalue(), encoding="utf-8"))
    return path
