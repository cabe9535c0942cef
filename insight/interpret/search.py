"""Right answer, wrong region: captions that find their own picture while the explanation of a phrase lies outside of the phrase's boxes.

    python -m insight.interpret.search RUN_FOLDER [--stage NAME] [--method NAME] [--within 10] [--top 20] [--output FILE.json]

Reads what the score card left at the end of a stage (``STAGE/score_card/validation.safetensors`` and ``.json``); needs no model.

A phrase is found where its caption ranks its own picture among the first ``within`` and the centre of the map's highest cell is in none of
the phrase's boxes (ties: in none with any of the highest cells). It is ``elsewhere`` if that cell is in no marked box of the picture at
all: what the model goes by is nothing that people speak of. Otherwise it takes one object for another. What lies elsewhere comes first;
among equals, the one with the least of its positive values in marked boxes.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from insight.errors import InputError
from insight.interpret.localisation import area_inside, centres_inside, energy_inside
from insight.interpret.maps import Example, MapFacts, load_maps, write_atomically
from insight.interpret.tables import FOLDER
from insight.stages import nearest

VALIDATION = "validation.safetensors"
WITHIN, TOP = 10, 20


class Finding(NamedTuple):
    """One phrase whose caption is retrieved right, and whose explanation lies outside of its boxes."""

    example: int  # row of the file
    phrase: int  # of the example
    filename: str
    caption: str
    text: str  # of the phrase
    rank: int  # of the picture for the caption, 1 = first
    elsewhere: bool  # the highest cell is in no marked box at all
    energy_in_box: float  # part of the map's positive values in the phrase's boxes
    energy_marked: float  # in any marked box of the caption
    area_of_box: float  # what an even map would have in the phrase's boxes
    highest: tuple[float, float]  # centre of the highest cell, x and y as fractions of the picture


def wrong_regions(map_BQgg: np.ndarray, examples: tuple[Example, ...], within: int = WITHIN) -> list[Finding]:
    """All findings, the clearest first.

    Args:
        map_BQgg: A map for each phrase of each example, in the order of ``example.phrases``.
        within: Ranks that count as retrieved right.

    Raises:
        InputError: ``within`` below 1, or examples without ranks.
    """
    if within < 1:
        raise InputError(f"within={within}: must be at least 1")
    found = []
    for row, example in enumerate(examples):
        if "text_to_image" not in example.ranks:
            raise InputError(f"'{example.filename}' has no rank: only validation.safetensors has, which a stage leaves at its end")
        if example.ranks["text_to_image"] > within:
            continue
        for number in range(len(example.phrases)):
            finding = _finding(map_BQgg[row, number].astype(np.float64), row, example, number)
            if finding is not None:
                found.append(finding)
    return sorted(found, key=lambda one: (not one.elsewhere, one.energy_marked, one.energy_in_box, one.example, one.phrase))


def _finding(map_gg: np.ndarray, row: int, example: Example, number: int) -> Finding | None:
    """None: the explanation touches the phrase's boxes, or there is nothing positive in it."""
    phrase, grid = example.phrases[number], map_gg.shape[-1]
    best_gg = map_gg == map_gg.max()
    if map_gg.max() <= 0 or (centres_inside(phrase.boxes, grid) & best_gg).any():
        return None
    marked = [box for one in example.phrases for box in one.boxes]
    line, column = np.argwhere(best_gg)[0].tolist()
    return Finding(
        row,
        number,
        example.filename,
        example.caption,
        phrase.text,
        example.ranks["text_to_image"],
        not (centres_inside(marked, grid) & best_gg).any(),
        energy_inside(map_gg, phrase.boxes),
        energy_inside(map_gg, marked),
        float(area_inside(phrase.boxes, grid).mean()),
        ((column + 0.5) / grid, (line + 0.5) / grid),
    )


def with_ranks(facts: MapFacts, rank_of: Mapping[int, Mapping[str, int]]) -> MapFacts:
    """The facts with each example's ranks, by its row."""
    examples = tuple(dataclasses.replace(one, ranks=dict(rank_of[row])) for row, one in enumerate(facts.examples))
    return dataclasses.replace(facts, examples=examples)


# --- of a run ---
def validation_file(run_dir: Path, stage: str | None = None) -> Path:
    """What the score card left at the end of a stage; None = of the last stage that has it.

    Raises:
        InputError: no such stage, or none has left anything.
    """
    files = {path.parent.parent.name: path for path in sorted(run_dir.glob(f"*/{FOLDER}/{VALIDATION}"))}
    if not files:
        raise InputError(
            f"{run_dir}: no stage has left {FOLDER}/{VALIDATION}; give the folder of a run whose score_card callback was on, with "
            "search_examples above 0, and at least one finished stage"
        )
    if stage is None:
        return list(files.values())[-1]
    named = {name.partition("-")[2] or name: path for name, path in files.items()} | files
    if stage not in named:
        raise InputError(f"--stage {stage}: not among the stages that left {VALIDATION}{nearest(stage, named)}")
    return named[stage]


def search_run(
    run_dir: Path, stage: str | None = None, method: str | None = None, within: int = WITHIN
) -> tuple[list[Finding], MapFacts, dict[str, np.ndarray], str]:
    """Findings of a run, what they are of, the arrays, and the method's name.

    Raises:
        InputError: as ``validation_file``; a method that the file lacks; data without phrase boxes.
    """
    path = validation_file(run_dir, stage)
    arrays, facts = load_maps(path)
    method = method or next(iter(facts.methods), "")
    if method not in facts.methods:
        raise InputError(f"--method {method}: {path} has no maps of it{nearest(method, facts.methods)}")
    if f"method/{method}/phrases" not in arrays:
        raise InputError(f"{path}: {method} has no map of a phrase; these data mark no phrases with boxes")
    return wrong_regions(arrays[f"method/{method}/phrases"], facts.examples, within), facts, arrays, method


def told(findings: list[Finding], facts: MapFacts, method: str, within: int, top: int) -> str:
    """The list for people."""
    right = [one for one in facts.examples if one.ranks["text_to_image"] <= within]
    phrases = sum(len(one.phrases) for one in right)
    elsewhere = sum(one.elsewhere for one in findings)
    lines = [
        f"{len(right)} of {len(facts.examples)} captions find their picture among the first {within}; of their {phrases} phrases, {method} "
        f"points outside the phrase's boxes in {len(findings)}: {elsewhere} elsewhere, {len(findings) - elsewhere} at another object"
    ]
    for one in findings[:top]:
        where = "elsewhere" if one.elsewhere else "another object"
        lines.append(
            f"  {one.filename}  '{one.text}'  {where} at ({one.highest[0]:.2f}, {one.highest[1]:.2f})  in its boxes "
            f"{one.energy_in_box:.2f} of the map, {one.area_of_box:.2f} of the area  rank {one.rank}  '{one.caption}'"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Search one run; 2 and a message on standard error when that cannot be done."""
    parser = argparse.ArgumentParser(description="Captions that find their picture while the explanation lies outside the phrase's box.")
    parser.add_argument("run", type=Path, help="folder of a run")
    parser.add_argument("--stage", help="name of a stage; default: the last")
    parser.add_argument("--method", help="default: the one that the score card searches with")
    parser.add_argument("--within", type=int, default=WITHIN, help="ranks that count as retrieved right")
    parser.add_argument("--top", type=int, default=TOP, help="findings that are listed")
    parser.add_argument("--output", type=Path, help="write all findings to this JSON file too")
    parsed = parser.parse_args(arguments)
    try:
        findings, facts, _, method = search_run(parsed.run, parsed.stage, parsed.method, parsed.within)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stdout.write(told(findings, facts, method, parsed.within, parsed.top) + "\n")
    if parsed.output:
        content: dict[str, Any] = {"method": method, "within": parsed.within, "findings": [one._asdict() for one in findings]}
        text = json.dumps(content, ensure_ascii=False, indent=1)
        write_atomically(parsed.output, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
