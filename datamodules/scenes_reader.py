"""A perfect reader of the captions of "scenes": what a caption claims, and whether it is true of a scene.

It is the inverse of `datamodules.scenes_captions`, and knows nothing but the words: of a caption's phrases it uses where they stand, not
which things its writer meant.
"""

from __future__ import annotations

from typing import NamedTuple

from datamodules.scenes_captions import ADJECTIVES, BACKGROUND_WORDS, NOUNS, NUMBERS, PLACES, Caption, Description
from datamodules.scenes_draw import Picture
from datamodules.scenes_world import BACKGROUND_COLOURS, COLOURS, NEAR_PHRASES, RELATIONS, SIZES, Scene, clearly, is_near, place_in_picture

NOUN_OF = {word: (shape, number == 0) for shape, nouns in NOUNS.items() for noun in nouns for number, word in enumerate(noun)}
MEANING = {word: value for value, words in ADJECTIVES.items() for word in words}
NUMBER_OF = {word: number for number, words in NUMBERS.items() for word in words}
SAID = {phrase: name for name, relation in RELATIONS.items() for phrase in relation.phrases} | dict.fromkeys(NEAR_PHRASES, "near")
PLACE_OF = {phrase: place for place, phrases in PLACES.items() for phrase in phrases}
KIND_OF = {word: kind for kind, words in BACKGROUND_WORDS.items() for word in words if word}


class Group(NamedTuple):
    """Exactly ``number`` things fit ``description``."""

    description: Description
    number: int


class Reading(NamedTuple):
    """Everything that a caption claims."""

    groups: tuple[Group, ...]
    relation: str | None  # of the first group to the second
    place: str | None  # of the only group
    background: tuple[frozenset[str], str] | None  # kinds that its word allows, colour


def read(caption: Caption) -> Reading:
    """What the words say.

    Raises:
        ValueError: a phrase or a joining word that no writer of this set uses.
    """
    groups, background, between, end = [], None, "", 0
    for phrase in caption.phrases:
        words = caption.text[phrase.start : phrase.end]
        between += caption.text[end : phrase.start].lower()
        end = phrase.end
        if phrase.kind == "scene":
            background = _background(words)
        elif phrase.kind == "other":
            groups.append(_group(words.lower()))
            between += "<>"
    between = (between + caption.text[end:].lower()).rstrip(".")
    joined = " ".join(between.replace("<>", " <> ").split())
    relation = _longest(SAID, joined) if len(groups) == 2 else None
    place = _longest(PLACE_OF, joined) if len(groups) == 1 else None
    if relation is not None and joined.startswith(relation):  # "left of a square there is a circle"
        groups.reverse()
    return Reading(tuple(groups), None if relation is None else SAID[relation], None if place is None else PLACE_OF[place], background)


def is_true(reading: Reading, scene: Scene, picture: Picture) -> bool:
    """Whether anybody would say so of this scene."""
    things, hidden = scene.things, picture.hidden
    members = [sorted(group.description.matches(things)) for group in reading.groups]
    if any(len(rows) != group.number for rows, group in zip(members, reading.groups, strict=True)):
        return False
    if reading.background is not None:
        kinds, colour = reading.background
        if scene.background.colour != colour or scene.background.kind not in kinds:
            return False
    if reading.place is not None and any(place_in_picture(things[row]) != reading.place for row in members[0]):
        return False
    if reading.relation is None:
        return True
    pairs = [(one, other) for one in members[0] for other in members[1]]
    if reading.relation == "near":
        return all(one != other and is_near(things[one], things[other]) for one, other in pairs)
    return all(one != other and clearly(reading.relation, one, other, things, hidden) for one, other in pairs)


def _group(words: str) -> Group:
    number = next((word for word in sorted(NUMBER_OF, key=len, reverse=True) if words.startswith(word + " ")), None)
    rest = words.removeprefix(number) if number else words.split(" ", 1)[1]
    noun = max((noun for noun in NOUN_OF if rest.endswith(" " + noun) or rest == noun), key=len, default=None)
    if noun is None:
        raise ValueError(f"no thing of scenes is called '{words}'")
    said: dict[str, str | None] = {"shape": NOUN_OF[noun][0]}
    for word in rest.removesuffix(noun).split():
        value = MEANING.get(word, word)
        attribute = "colour" if value in COLOURS else "size" if value in SIZES else "texture"
        if attribute == "texture" and word not in MEANING:
            raise ValueError(f"'{word}' in '{words}' is no word of scenes")
        said[attribute] = value
    return Group(Description(**said), NUMBER_OF[number] if number else 1)


def _background(words: str) -> tuple[frozenset[str], str]:
    colour = next((colour for colour in sorted(BACKGROUND_COLOURS, key=len, reverse=True) if f" {colour} " in words), None)
    if colour is None:
        raise ValueError(f"no background of scenes is '{words}'")
    word = words.split(colour)[0].removeprefix("a ").strip()
    return frozenset([KIND_OF[word]] if word else BACKGROUND_WORDS), colour


def _longest(phrases: dict[str, str], text: str) -> str | None:
    found = [phrase for phrase in phrases if f" {phrase} " in f" {text} "]
    return max(found, key=len, default=None)
