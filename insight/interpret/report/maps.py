"""The parts of the report that show maps, as plain data for ``report.html``.

g patches per side.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from insight.interpret.draw import attention_range, last_crossing, patch_heat, phrases_of, word_heat
from insight.interpret.draw_methods import common_range, maps_of, relative, shown_rows
from insight.interpret.maps import BoxedPhrase, Example, MapFacts, Verdict
from insight.interpret.report.files import RunFiles, StageFiles, Validation
from insight.interpret.report.panels import Outline, Panel, Photos, Scale, colours_of, map_panel, outlines
from insight.interpret.search import WITHIN, told, wrong_regions

LONGEST_CAPTION = 300  # letters


class Amount(NamedTuple):
    """How much is shown."""

    retrievals: int = 5  # of the best, and of the worst
    phrases: int = 4  # maps beside each of them
    examples: int = 5  # rows of methods and of words
    words: int = 14  # of a caption
    films: int = 3  # examples, for each method of the film
    epochs: int = 10  # of the film
    findings: int = 8
    quality: int = 85  # of photos


class Piece(NamedTuple):
    """A part of a caption, in the colour of its phrase."""

    text: str
    colour: str = ""


class Heat(NamedTuple):
    """One map of a row."""

    title: str
    of: str  # for those who cannot see it
    map_gg: np.ndarray
    outlines: tuple[Outline, ...] = ()
    verdict: Verdict | None = None
    point: tuple[float, float] | None = None  # in percent


class Row(NamedTuple):
    """A caption, and panels that share a scale."""

    caption: list[Piece]
    panels: list[Panel]
    scale: Scale | None
    note: str = ""


def row_of(
    picture_HW3: np.ndarray, example: Example, heats: Sequence[Heat], photos: Photos, note: str = "", scale: Scale | None = None
) -> Row:
    """The photo with all boxes, and its maps beside it on one scale."""
    photo, colours = photos.add(picture_HW3), colours_of(example.phrases)
    everything = tuple(one for phrase in example.phrases if phrase.boxes for one in outlines(phrase, colours[phrase.entity]))
    if heats and scale is None:
        scale = Scale(*common_range([one.map_gg for one in heats]))
    panels = [Panel(photo, example.filename, f"photo: {shortened(example.caption)}", outlines=everything)]
    if scale is not None:
        panels += [map_panel(photo, one.map_gg, scale, one.title, one.of, one.outlines, one.verdict, one.point) for one in heats]
    return Row(pieces(example.caption, example.phrases), panels, scale, note)


def pieces(caption: str, phrases: Sequence[BoxedPhrase]) -> list[Piece]:
    """The caption cut at its phrases with boxes; of two that overlap, the first."""
    colours, shown = colours_of(phrases), shortened(caption)
    found, place = [], 0
    for phrase in sorted((one for one in phrases if one.boxes), key=lambda one: one.start):
        if place <= phrase.start and phrase.end <= len(shown):
            found += [Piece(shown[place : phrase.start]), Piece(shown[phrase.start : phrase.end], colours[phrase.entity])]
            place = phrase.end
    return [piece for piece in [*found, Piece(shown[place:])] if piece.text]


def shortened(text: str) -> str:
    return text if len(text) <= LONGEST_CAPTION else f"{text[: LONGEST_CAPTION - 3]}..."


# --- retrievals ---
class Retrievals(NamedTuple):
    method: str
    pairs: int  # that were looked at
    best: list[Row]
    worst: list[Row]


def retrievals(search: Validation, num_pictures: int | None, photos: Photos, amount: Amount) -> Retrievals:
    """The captions that found their picture best, and those that found it worst, among those that the search looked at."""
    facts, arrays = search.facts, search.arrays()
    method = next(iter(facts.methods))
    order = sorted(range(len(facts.examples)), key=lambda row: how_good(facts.examples[row], method))
    count = min(amount.retrievals, len(order) // 2)

    def shown(row: int) -> Row:
        example = facts.examples[row]
        of = f" of {num_pictures:,}" if num_pictures else ""
        note = f"the caption finds its picture at rank {example.ranks['text_to_image']:,}{of}; "
        note += f"the picture one of its captions at rank {example.ranks['image_to_text']:,}"
        return row_of(arrays["picture"][row], example, _told(arrays, facts, row, method, amount), photos, note)

    return Retrievals(method, len(order), [shown(row) for row in order[:count]], [shown(row) for row in order[len(order) - count :][::-1]])


def how_good(example: Example, method: str) -> tuple[float, ...]:
    """Smallest = best."""
    found = (example.ranks.get(direction, math.inf) for direction in ("text_to_image", "image_to_text"))
    return *found, -example.score.get(method, 0.0)


def _told(arrays: dict[str, np.ndarray], facts: MapFacts, row: int, method: str, amount: Amount) -> list[Heat]:
    """The method's map of the caption, and of its first phrases."""
    example, verdict, heats = facts.examples[row], facts.verdicts.get(method), []
    whole = arrays.get(f"method/{method}/image")
    if whole is not None:
        heats.append(Heat("whole caption", f"{method} for the whole caption", relative(whole[row]), (), verdict))
    phrased, colours = arrays.get(f"method/{method}/phrases"), colours_of(example.phrases)
    if phrased is not None:
        for number, phrase in enumerate(example.phrases[: amount.phrases]):
            boxes = outlines(phrase, colours[phrase.entity])
            text = shortened(phrase.text)
            heats.append(Heat(text, f"{method} for “{text}”", relative(phrased[row, number]), boxes, verdict))
    return heats


# --- methods side by side ---
def methods(stage: StageFiles, photos: Photos, amount: Amount) -> list[Row]:
    """Each method's map of a phrase (of the caption where nothing is marked), at the stage's last scored validation."""
    facts, arrays = stage.scored[-1].facts, stage.scored[-1].arrays()
    rows = []
    for row, number in shown_rows(facts)[: amount.examples]:
        example, text = facts.examples[row], "the caption"
        boxes: tuple[Outline, ...] = ()
        if number is not None:
            phrase = example.phrases[number]
            boxes, text = outlines(phrase, colours_of(example.phrases)[phrase.entity]), f"“{shortened(phrase.text)}”"
            example = dataclasses.replace(example, phrases=(phrase,))
        maps = maps_of(arrays, list(facts.methods), row, number)
        heats = [Heat(name, f"{name} for {text}", map_gg, boxes, facts.verdicts.get(name)) for name, map_gg in maps.items()]
        rows.append(row_of(arrays["picture"][row], example, heats, photos))
    return rows


# --- words ---
def words(run: RunFiles, photos: Photos, amount: Amount) -> tuple[str, list[Row]]:
    """Which layer, and what each word reads, at the run's last look; no rows where text does not read the picture."""
    looked = [one for stage in run.stages for one in stage.looked]
    if not looked:
        return "", []
    facts, arrays = looked[-1].facts, looked[-1].arrays()
    layer = last_crossing(arrays)
    if layer is None:
        return "", []
    verdict, rows = facts.verdicts.get("words"), []
    for row, example in enumerate(facts.examples[: amount.examples]):
        shown = [word for word in example.words if any(letter.isalnum() for letter in word.text)][: amount.words]
        colours = colours_of(example.phrases)
        heats = []
        for word in shown:
            boxes = tuple(one for phrase in phrases_of(word, example.phrases) for one in outlines(phrase, colours[phrase.entity]))
            map_gg = word_heat(arrays[f"words/{layer}"][row], word, facts.grid)
            heats.append(Heat(shortened(word.text), f"what “{shortened(word.text)}” reads", map_gg, boxes, verdict))
        scale = Scale(*attention_range([one.map_gg for one in heats])) if heats else None
        rows.append(row_of(arrays["picture"][row], example, heats, photos, scale=scale))
    return layer, rows


# --- film ---
class Film(NamedTuple):
    """A method over the validations of all stages; a row for each example."""

    method: str
    rows: list[Row]


def films(run: RunFiles, photos: Photos, amount: Amount) -> list[Film]:
    """Of every method that the score card follows; of the callback's rollout where there is no score card."""
    frames = [(stage, one) for stage in run.stages for one in stage.scored]
    if frames:
        names = dict.fromkeys(name for _, one in frames for name in one.facts.methods)
        return [film for name in names if (film := _film(name, frames, photos, amount)).rows]
    return [_rollout(run, photos, amount)]


def _film(method: str, frames: list[tuple[StageFiles, Validation]], photos: Photos, amount: Amount) -> Film:
    shown = [(stage, one.facts, one.arrays()) for stage, one in spread(frames, amount.epochs) if method in one.facts.methods]
    last_facts, last_arrays = shown[-1][1:]
    rows = []
    for row, number in shown_rows(last_facts)[: amount.films]:
        example = last_facts.examples[row]
        phrase = None if number is None else example.phrases[number]
        boxes = () if phrase is None else outlines(phrase, colours_of(example.phrases)[phrase.entity])
        text = "the caption" if phrase is None else f"“{shortened(phrase.text)}”"
        heats = []
        for stage, facts, arrays in shown:
            maps = maps_of(arrays, [method], row, number)
            if method in maps and same(facts.examples, row, example):
                when = f"{stage.name} {facts.epoch}"
                heats.append(Heat(when, f"{method} for {text} after {when}", maps[method], boxes, facts.verdicts.get(method)))
        if heats:
            kept = dataclasses.replace(example, phrases=() if phrase is None else (phrase,))
            rows.append(row_of(last_arrays["picture"][row], kept, heats, photos))
    return Film(method, rows)


def _rollout(run: RunFiles, photos: Photos, amount: Amount) -> Film:
    frames = spread([(stage, one) for stage in run.stages for one in stage.looked], amount.epochs)
    shown = [(stage, one.facts, one.arrays()) for stage, one in frames]
    last_facts, last_arrays = shown[-1][1:]
    rows = []
    for row, example in enumerate(last_facts.examples[: amount.films]):
        heats = [
            Heat(f"{stage.name} {facts.epoch}", f"rollout after {stage.name} {facts.epoch}", map_gg, (), facts.verdicts.get("rollout"))
            for stage, facts, arrays in shown
            if "rollout" in arrays and same(facts.examples, row, example)
            for map_gg in [patch_heat(arrays["rollout"][row], facts.grid)]
        ]
        if heats:
            low = min(float(one.map_gg.min()) for one in heats)  # the residual keeps rollout close to even
            scale = Scale(low, max(low + 0.1, *(float(one.map_gg.max()) for one in heats)))
            rows.append(row_of(last_arrays["picture"][row], example, heats, photos, scale=scale))
    return Film("rollout", rows)


def spread(frames: list[tuple[StageFiles, Validation]], most: int) -> list[tuple[StageFiles, Validation]]:
    """At most so many, evenly, the first and the last among them."""
    if len(frames) <= most:
        return frames
    return [frames[round(index * (len(frames) - 1) / (most - 1))] for index in range(most)]


def same(examples: Sequence[Example], row: int, example: Example) -> bool:
    """Whether a validation looked at this pair in this row."""
    return row < len(examples) and (examples[row].filename, examples[row].caption) == (example.filename, example.caption)


# --- right answer, wrong region ---
class Findings(NamedTuple):
    summary: str
    total: int
    rows: list[Row]


def findings(search: Validation, photos: Photos, amount: Amount) -> Findings | None:
    """None: the file has no map of a phrase (these data mark none)."""
    facts, arrays = search.facts, search.arrays()
    method = next(iter(facts.methods))
    phrased = arrays.get(f"method/{method}/phrases")
    if phrased is None:
        return None
    found, rows = wrong_regions(phrased, facts.examples, WITHIN), []
    first = {one.example: one for one in reversed(found)}  # of each caption, its clearest
    for one in [one for one in found if first[one.example] is one][: amount.findings]:
        example = facts.examples[one.example]
        phrase, colours = example.phrases[one.phrase], colours_of(example.phrases)
        text = shortened(phrase.text)
        where = "points elsewhere: at nothing that is marked" if one.elsewhere else "points at another object"
        note = (
            f"“{text}” {where}; {one.energy_in_box:.0%} of the map lies in its boxes, which are {one.area_of_box:.0%} of the "
            f"picture; its caption finds the picture at rank {one.rank}"
        ).replace("%", " %")
        point = (round(100 * one.highest[0], 1), round(100 * one.highest[1], 1))
        boxes = outlines(phrase, colours[phrase.entity])
        map_gg, verdict = relative(phrased[one.example, one.phrase]), facts.verdicts.get(method)
        heat = Heat(f"{method}: {text}", f"{method} for “{text}”", map_gg, boxes, verdict, point)
        rows.append(row_of(arrays["picture"][one.example], example, [heat], photos, note))
    return Findings(told(found, facts, method, WITHIN, 0), len(found), rows)
