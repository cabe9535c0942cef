"""Sheets of methods of explanation: their maps side by side, and their score card as a table. Needs numpy, pillow and matplotlib only.

B examples, g patches per side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from insight.interpret.draw_parts import (
    BOX_COLOURS,
    CAPTION,
    HEADER,
    MARGIN,
    PANEL,
    SCALE,
    STEP,
    TITLE,
    badge,
    blank,
    boxes,
    finish,
    overlay,
    panel,
    photograph,
)
from insight.interpret.maps import MapFacts, MethodFacts, Verdict
from insight.interpret.sheet import ALARM, FAINT, INK

MOST_ROWS = 6  # of the sheet of maps
HIGHEST = 8.0  # times an even map: beyond it the colour stays the same, so that one peaked map does not make the others of its row pale


class Column(NamedTuple):
    """One score of the table."""

    score: str
    title: str
    better: str  # "max", "min" or ""


COLUMNS = (
    Column("pointing_game_v1", "pointing\ngame", "max"),
    Column("energy_in_box_v1", "energy\nin box", "max"),
    Column("other_object_rate_v1", "other\nobject", "min"),
    Column("specificity_v1", "specific-\nity", "max"),
    Column("deletion_image_token_drop_v1", "deletion\nimage", "min"),
    Column("insertion_image_token_drop_v1", "insertion\nimage", "max"),
    Column("deletion_text_word_drop_v1", "deletion\ntext", "min"),
    Column("insertion_text_word_drop_v1", "insertion\ntext", "max"),
    Column("forwards_per_pair", "passes\nforward", ""),
    Column("backwards_per_pair", "passes\nback", ""),
    Column("seconds_per_pair", "ms per\npair", ""),
)


# --- what is painted ---
def relative(map_gg: np.ndarray) -> np.ndarray:
    """Positive values in multiples of their mean: 1 = what an even map has everywhere. Nothing positive: zero."""
    positive_gg = np.clip(np.nan_to_num(map_gg.astype(np.float64), nan=0.0, posinf=0.0), 0, None)
    mean = float(positive_gg.mean())
    return positive_gg / mean if mean > 0 else positive_gg


def common_range(maps: Sequence[np.ndarray]) -> tuple[float, float]:
    """One colour range for all of a row: from an even map to the largest, at least to 1.5 and at most to ``HIGHEST``."""
    return 1.0, min(HIGHEST, max(1.5, *(float(one.max()) for one in maps)))


def shown_rows(facts: MapFacts) -> list[tuple[int, int | None]]:
    """(example, phrase) of each row of the sheet: the first phrase of each example, or the whole caption where none has a map."""
    phrased: list[tuple[int, int | None]] = [(row, 0) for row, example in enumerate(facts.examples) if example.phrases]
    return (phrased or [(row, None) for row in range(len(facts.examples))])[:MOST_ROWS]


def maps_of(arrays: Mapping[str, np.ndarray], methods: Sequence[str], row: int, phrase: int | None) -> dict[str, np.ndarray]:
    """By method, its map of the phrase (None: of the whole caption); methods without one are left out."""
    found = {}
    for name in methods:
        array = arrays.get(f"method/{name}/image" if phrase is None else f"method/{name}/phrases")
        if array is not None:
            found[name] = relative(array[row] if phrase is None else array[row, phrase])
    return found


# --- sheets ---
def draw_methods_sheet(arrays: Mapping[str, np.ndarray], facts: MapFacts) -> Image.Image:
    """Per example the picture with a phrase's boxes, and beside it each method's map of the phrase."""
    rows, methods = shown_rows(facts), list(facts.methods)
    height = TITLE + STEP + CAPTION
    sheet = blank(STEP + 20 + len(methods) * STEP + SCALE, len(rows) * height)
    for place, (row, number) in enumerate(rows):
        example, top = facts.examples[row], HEADER + place * height
        text = example.caption if number is None else f"“{example.phrases[number].text}” in: {example.caption}"
        panel(sheet, 0, top, photograph(arrays["picture"][row]), example.filename, colour=FAINT)
        heats = maps_of(arrays, methods, row, number)
        for index, name in enumerate(methods):
            left = STEP + 20 + index * STEP
            if name in heats:
                panel(sheet, left, top, overlay(arrays["picture"][row], heats[name], *common_range(list(heats.values()))), name, size=11)
        if number is not None:
            phrase = example.phrases[number]
            for left in (0, *(STEP + 20 + index * STEP for index, name in enumerate(methods) if name in heats)):
                boxes(sheet, left, top, phrase, {phrase.entity: BOX_COLOURS[0]})
        for index, name in enumerate(methods):
            if name in heats:
                badge(sheet, STEP + 20 + index * STEP, top, facts.verdicts.get(name))
        if heats:
            sheet.scale(MARGIN + STEP + 20 + len(methods) * STEP, top + TITLE, PANEL, *common_range(list(heats.values())))
        sheet.text(MARGIN, top + TITLE + STEP - 4, text, 11, width=sheet.width - 2 * MARGIN, italic=True)
    note = (
        f"Colour: positive values, 1× = an even map (nothing is painted up to it), from {HIGHEST:g}× on the same; one scale for a row. "
        f"Boxes: the phrase, by people. {checked(facts.verdicts, methods)}"
    )
    return finish(sheet, "What each method says the score comes from", facts, note)


def draw_score_sheet(facts: MapFacts) -> Image.Image:
    """The score card: a line per method, the best figure of a column bold."""
    scored = {name: one for name, one in facts.methods.items() if one.scores}
    columns = [column for column in COLUMNS if any(column.score in one.scores for one in scored.values())]
    widths, line, first = 104, 30, 140
    sheet = blank(first + len(columns) * widths + 190, 56 + line * len(scored))
    for index, column in enumerate(columns):
        arrow = {"max": " ↑", "min": " ↓", "": ""}[column.better]
        for part, words in enumerate(f"{column.title}{arrow}".split("\n")):
            sheet.text(MARGIN + first + (index + 1) * widths - 8, HEADER + 15 * part, words, 9, FAINT, align="right")
    sheet.text(MARGIN + first + len(columns) * widths + 24, HEADER + 15, "randomisation check", 9, FAINT)
    for number, (name, one) in enumerate(scored.items()):
        top = HEADER + 44 + number * line
        sheet.text(MARGIN, top, name, 11, bold=True, width=first, lines=1)
        for index, column in enumerate(columns):
            if column.score in one.scores:
                bold = is_best(column, one, list(scored.values()))
                sheet.text(MARGIN + first + (index + 1) * widths - 8, top, figure(column, one), 10.5, bold=bold, align="right")
        words, colour = verdict_words(facts.verdicts.get(name))
        sheet.text(MARGIN + first + len(columns) * widths + 24, top, words, 10, colour)
    phrases = sum(len(example.phrases) for example in facts.examples)
    note = (
        f"{len(facts.examples)} pairs, {phrases} marked phrases, the same in every validation. ↑ higher is better, ↓ lower; deletion and "
        "insertion in units of the score of what is explained. ± half of the 95 % interval, drawn by picture."
    )
    return finish(sheet, "Score card of the explanations", facts, note)


def figure(column: Column, one: MethodFacts) -> str:
    value = one.scores[column.score]
    if column.score == "seconds_per_pair":
        return f"{1000 * value:.1f}"
    if column.score in one.intervals:
        low, high = one.intervals[column.score]
        return f"{value:.2f} ±{(high - low) / 2:.2f}"
    return f"{value:.2f}" if column.better else f"{value:.0f}"


def is_best(column: Column, method: MethodFacts, methods: Sequence[MethodFacts]) -> bool:
    """Deletion and insertion are in units of the score, so they compare within one family alone."""
    of_score = column.score.startswith(("deletion", "insertion"))
    rivals = [one for one in methods if column.score in one.scores and (not of_score or one.family == method.family)]
    values = [one.scores[column.score] for one in rivals]
    return column.better != "" and len(values) > 1 and method.scores[column.score] == (max if column.better == "max" else min)(values)


# --- what the randomisation check says ---
def verdict_words(verdict: Verdict | None) -> tuple[str, str]:
    """For people, and in which colour."""
    if verdict is None:
        return "at the stage's end", FAINT
    return (f"passed (ρ {verdict.rho:.2f})", INK) if verdict.passed else (f"FAILED (ρ {verdict.rho:.2f})", ALARM)


def checked(verdicts: Mapping[str, Verdict], shown: Sequence[str]) -> str:
    """A sentence for the foot of a sheet."""
    missing = [name for name in shown if name not in verdicts]
    if not missing:
        return "Red: the map hardly changed when the model's weights were shuffled."
    if len(missing) == len(shown):
        return "Randomisation check: at the stage's end."
    return f"Not yet checked by randomisation: {', '.join(missing)}."
