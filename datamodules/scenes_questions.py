"""Questions about the pictures of the generated set "scenes", each with its one answer: a pure function of (version, seed, split, index).

They are asked of the same worlds as the captions are, and change nothing about pictures or captions. Answers are drawn before questions,
as evenly as the picture allows, so that who does not look at it gets little right. What a question says of things is said of one thing
only, or counts all that it fits; and outside the unseen test pictures none names a colour x shape pair that training lacks.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import combinations, permutations
from typing import NamedTuple

from datamodules.scenes_captions import Description, put_in_words
from datamodules.scenes_world import COLOURS, HELD_OUT, RELATIONS, SHAPES, SIZES, TEXTURES, Scene, Thing, clearly, picture_random

VERSION = 1  # of everything that decides questions and answers
NUMBERS = ("0", "1", "2", "3", "4")
ANSWERS = (*COLOURS, *SHAPES, *SIZES, *TEXTURES, *NUMBERS, "yes", "no")
COUNT_WEIGHTS = {0: 2, 1: 2, 2: 3, 3: 5, 4: 5}  # large groups are rare: asked for where they are

TEMPLATES = {
    "colour": ("what colour is {the}?", "which colour does {the} have?"),
    "shape": ("what shape is {the}?", "which shape does {the} have?"),
    "size": ("is {the} large or small?", "what size is {the}?"),
    "texture": ("what pattern does {the} have?", "is {the} plain, striped, dotted or checkered?"),
    "count": ("{how_many} are there?", "{how_many} can you see?"),
    "exists": ("is there {one}?", "does the picture show {one}?"),
    "relation": ("is {the} {said} {other}?",),
}
KINDS = tuple(TEMPLATES)
SIDEWAYS = ("left", "right", "above", "below")  # relations that need no drawing to be told


class Question(NamedTuple):
    text: str
    kind: str  # one of KINDS
    answer: str  # one of ANSWERS


def make_questions(seed: int, split: str, index: int, scene: Scene) -> tuple[Question, ...]:
    """One question of each kind that the picture allows, in the order of KINDS; most pictures allow all."""
    lot = picture_random(seed, split, index, f"questions-v{VERSION}")
    return tuple(question for kind in KINDS if (question := _ASK[kind](lot, kind, scene)) is not None)


def _attribute(lot: random.Random, kind: str, scene: Scene) -> Question | None:
    """Asks one attribute of a thing that the others single out; the answer first, evenly over those that are there."""
    things = scene.things
    pointed: dict[str, list[tuple[int, Description]]] = {}
    for row, thing in enumerate(things):
        for description in _descriptions(thing, without=kind):
            if description.matches(things) == {row}:
                pointed.setdefault(getattr(thing, kind), []).append((row, description))
    if not pointed:
        return None
    answer = lot.choice(sorted(pointed))
    row, description = lot.choice(pointed[answer])
    return _question(lot, kind, answer, {"the": _the(lot, description, things)})


def _count(lot: random.Random, kind: str, scene: Scene) -> Question:
    things = scene.things
    asked: dict[int, list[Description]] = {}
    for description in _groups(scene):
        asked.setdefault(len(description.matches(things)), []).append(description)
    counts = sorted(asked)
    count = lot.choices(counts, weights=[COUNT_WEIGHTS[count] for count in counts])[0]
    description = lot.choice(asked[count])
    how_many = put_in_words(lot, description, things, count=2)._replace(number="how many").text()
    return _question(lot, kind, str(count), {"how_many": how_many})


def _exists(lot: random.Random, kind: str, scene: Scene) -> Question:
    """The colour of one thing on the shape of another, or on its own: where possible a false question has no false word."""
    things = scene.things
    there = {(thing.colour, thing.shape) for thing in things}
    mixed = {(one.colour, other.shape) for one in things for other in things} - there
    some = {(one.colour, shape) for one in things for shape in SHAPES} - there
    false = sorted(pair for pair in mixed if _may_be_named(scene, *pair)) or sorted(pair for pair in some if _may_be_named(scene, *pair))
    answer = lot.choice(("yes", "no"))
    colour, shape = lot.choice(sorted(there) if answer == "yes" else false)
    description = Description(colour=colour, shape=shape)
    return _question(lot, kind, answer, {"one": put_in_words(lot, description, things).text()})


def _relation(lot: random.Random, kind: str, scene: Scene) -> Question | None:
    """A clear relation of two things that stand apart, or its opposite."""
    things = scene.things
    nothing_hidden = [[0.0] * len(things) for _ in things]
    found = [
        (one, other, name)
        for one, other in permutations(range(len(things)), 2)
        for name in SIDEWAYS
        if _apart(things[one], things[other]) and clearly(name, one, other, things, nothing_hidden)
    ]
    lot.shuffle(found)
    for one, other, name in found:
        first, second = (_simplest(lot, things, row) for row in (one, other))
        if first is not None and second is not None:
            answer = lot.choice(("yes", "no"))
            said = lot.choice(RELATIONS[name if answer == "yes" else RELATIONS[name].inverse].phrases)
            words = {"the": _the(lot, first, things), "said": said, "other": _the(lot, second, things)}
            return _question(lot, kind, answer, words)
    return None


_ASK: dict[str, Callable[[random.Random, str, Scene], Question | None]] = {
    **dict.fromkeys(("colour", "shape", "size", "texture"), _attribute),
    "count": _count,
    "exists": _exists,
    "relation": _relation,
}


def _question(lot: random.Random, kind: str, answer: str, words: dict[str, str]) -> Question:
    return Question(lot.choice(TEMPLATES[kind]).format_map(words), kind, answer)


def _the(lot: random.Random, description: Description, things: Sequence[Thing]) -> str:
    return put_in_words(lot, description, things)._replace(number="the").text()


def _descriptions(thing: Thing, without: str) -> list[Description]:
    """By one or two of the thing's attributes, ``without`` left out; colour or shape is always among them."""
    names = [name for name in Description._fields if name != without]
    chosen = [some for count in (1, 2) for some in combinations(names, count) if {"colour", "shape"} & set(some)]
    return [Description(**{name: getattr(thing, name) for name in some}) for some in chosen]


def _simplest(lot: random.Random, things: Sequence[Thing], row: int) -> Description | None:
    """Colour and shape where they single the thing out, else with its size."""
    thing = things[row]
    for attributes in (("colour", "shape"), ("size", "colour", "shape")):
        description = Description(**{name: getattr(thing, name) for name in attributes})
        if description.matches(things) == {row}:
            return description
    return None


def _groups(scene: Scene) -> list[Description]:
    """What can be counted: colours, shapes, both, sizes, and textures that people see as such."""
    pairs = {(one.colour, other.shape) for one in scene.things for other in scene.things}
    return [
        *(Description(colour=colour) for colour in COLOURS),
        *(Description(shape=shape) for shape in SHAPES),
        *(Description(colour=colour, shape=shape) for colour, shape in sorted(pairs) if _may_be_named(scene, colour, shape)),
        *(Description(size=size) for size in SIZES),
        *(Description(texture=texture) for texture in TEXTURES if texture != "plain"),
    ]


def _may_be_named(scene: Scene, colour: str, shape: str) -> bool:
    """A pair that training lacks would give its answer away: always no in training."""
    return (colour, shape) not in HELD_OUT or not scene.seen


def _apart(one: Thing, other: Thing) -> bool:
    return max(abs(one.x - other.x), abs(one.y - other.y)) >= one.radius + other.radius
