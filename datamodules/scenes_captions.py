"""Captions of the generated set "scenes": five a picture, as different people would write them, each phrase tied to its things.

Every caption is true of its picture, and every phrase about things denotes exactly the things that fit it: "a red circle" is
said only where one red circle is, otherwise "two red circles" or "a small red circle".
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

from datamodules.scenes_draw import Picture
from datamodules.scenes_world import NEAR_PHRASES, RELATIONS, Scene, Thing, clearly, is_near, place_in_picture

# Repeats are weights: the plain word comes most often.
NOUNS: dict[str | None, tuple[tuple[str, str], ...]] = {
    "circle": (("circle", "circles"),) * 4 + (("disc", "discs"), ("ball", "balls"), ("round shape", "round shapes")),
    "square": (("square", "squares"),) * 5 + (("box", "boxes"),),
    "triangle": (("triangle", "triangles"),),
    "star": (("star", "stars"),),
    "cross": (("cross", "crosses"),) * 4 + (("plus sign", "plus signs"),),
    "heart": (("heart", "hearts"),),
    "ring": (("ring", "rings"),) * 4 + (("hoop", "hoops"),),
    "diamond": (("diamond", "diamonds"),),
    None: (("shape", "shapes"), ("object", "objects"), ("thing", "things")),
}
ADJECTIVES = {
    "large": ("large", "large", "big", "huge"),
    "small": ("small", "small", "little", "tiny"),
    "plain": ("plain",),
    "striped": ("striped", "striped", "stripy"),
    "dotted": ("dotted", "spotted"),
    "checkered": ("checkered", "checked"),
}
NUMBERS = {2: ("two", "two", "two", "a pair of"), 3: ("three",), 4: ("four",)}
BACKGROUND_WORDS = {
    "plain": ("", "", "plain"),
    "gradient": ("", "shaded"),
    "grainy": ("", "grainy", "rough"),
    "striped": ("", "striped", "lined"),
}
PLACES = {
    "left": ("on the left", "on the left side"),
    "right": ("on the right", "on the right side"),
    "top": ("at the top", "near the top"),
    "bottom": ("at the bottom", "near the bottom"),
    "centre": ("in the middle", "in the centre"),
    "top left": ("in the top left corner", "at the top left", "in the upper left"),
    "top right": ("in the top right corner", "at the top right", "in the upper right"),
    "bottom left": ("in the bottom left corner", "at the bottom left", "in the lower left"),
    "bottom right": ("in the bottom right corner", "at the bottom right", "in the lower right"),
}
OPENINGS: tuple[tuple[str, ...], ...] = (  # a word in angle brackets is a phrase that nothing in the picture answers to
    (),
    (),
    ("there is",),
    ("I can see",),
    ("<a picture>", "of"),
    ("<this image>", "shows"),
    ("<someone>", "drew"),
)


class Description(NamedTuple):
    """What a phrase says of the things it means; None where it is silent."""

    size: str | None = None
    texture: str | None = None
    colour: str | None = None
    shape: str | None = None

    def fits(self, thing: Thing) -> bool:
        return all(said is None or said == getattr(thing, attribute) for attribute, said in zip(self._fields, self, strict=True))

    def matches(self, things: Sequence[Thing]) -> frozenset[int]:
        return frozenset(row for row, thing in enumerate(things) if self.fits(thing))


class Wording(NamedTuple):
    """A description in words; the colour stays apart so that two phrases can trade it."""

    number: str  # "" for one thing: the article follows from the next word
    size: str
    texture: str
    colour: str
    noun: str

    def text(self) -> str:
        words = " ".join(word for word in (self.size, self.texture, self.colour, self.noun) if word)
        return f"{self.number} {words}" if self.number else f"{'an' if words[0] in 'aeio' else 'a'} {words}"


class Mention(NamedTuple):
    """A phrase on its way into a caption."""

    text: str
    members: frozenset[int]  # the things that it means; empty for the background and for what is not visible
    kind: str = "other"  # other | scene | notvisual, as in Flickr30k Entities


class CaptionPhrase(NamedTuple):
    start: int
    end: int
    members: frozenset[int]
    kind: str


class Caption(NamedTuple):
    text: str
    phrases: tuple[CaptionPhrase, ...]


Part = str | Mention


def assemble(parts: Sequence[Part]) -> Caption:
    """Join the parts to one sentence with a capital and a full stop, and note where each phrase came to lie."""
    text = ""
    phrases = []
    for part in parts:
        words = part if isinstance(part, str) else part.text
        text += "" if not text or words == "," else " "
        if isinstance(part, Mention):
            phrases.append(CaptionPhrase(len(text), len(text) + len(words), part.members, part.kind))
        text += words
    return Caption(text[0].upper() + text[1:] + ".", tuple(phrases))


def describe(lot: random.Random, things: Sequence[Thing], members: frozenset[int], detail: float) -> Description | None:
    """A description that fits exactly ``members``, richer with ``detail`` (0 to 1); None when words can't single them out."""
    shared = {
        attribute: value
        for attribute in Description._fields
        for value in {getattr(things[row], attribute) for row in members}
        if all(getattr(things[row], attribute) == value for row in members)
    }
    keep = {"colour", "shape"} - ({lot.choice(("colour", "shape"))} if lot.random() < 0.12 else set())
    keep |= {"size"} if lot.random() < detail else set()
    keep |= {"texture"} if lot.random() < (0.1 * detail if shared.get("texture") == "plain" else detail) else set()
    spare = [attribute for attribute in Description._fields if attribute not in keep]
    lot.shuffle(spare)
    for num_spare in range(len(spare) + 1):
        said = {attribute: value for attribute, value in shared.items() if attribute in keep or attribute in spare[:num_spare]}
        description = Description(**said)
        if description.matches(things) == members:
            return description
    return None


def put_in_words(lot: random.Random, description: Description, things: Sequence[Thing], count: int = 1) -> Wording:
    """Choose the words; "round shape" is no name for a circle where a ring is about."""
    nouns = NOUNS[description.shape]
    if any(thing.shape == "ring" for thing in things):
        nouns = tuple(noun for noun in nouns if noun[0] != "round shape")
    noun = lot.choice(nouns)[0 if count == 1 else 1]
    size = lot.choice(ADJECTIVES[description.size]) if description.size else ""
    texture = lot.choice(ADJECTIVES[description.texture]) if description.texture else ""
    return Wording(lot.choice(NUMBERS[count]) if count > 1 else "", size, texture, description.colour or "", noun)


def make_captions(lot: random.Random, scene: Scene, picture: Picture) -> list[Caption]:
    """Five captions: one that lists everything, two about relations, one about a part, one as it comes; in any order."""
    writer = _Writer(lot, scene, picture)
    as_it_comes = lot.choice((writer.part, writer.relation, writer.counting))
    recipes = [writer.everything, writer.relation, writer.relation, writer.part, as_it_comes]
    captions: list[Caption] = []
    for recipe in recipes:
        caption = recipe()
        for _ in range(4):
            if caption.text not in {other.text for other in captions}:
                break
            caption = recipe()
        captions.append(caption)
    lot.shuffle(captions)
    return captions


class _Writer:
    """Writes captions of one picture."""

    def __init__(self, lot: random.Random, scene: Scene, picture: Picture) -> None:
        self.lot, self.scene, self.things, self.hidden = lot, scene, scene.things, picture.hidden

    def mention(self, members: frozenset[int], detail: float) -> Mention | None:
        description = describe(self.lot, self.things, members, detail)
        if description is None:
            return None
        return Mention(put_in_words(self.lot, description, self.things, len(members)).text(), members)

    def opening(self, num_things: int = 1) -> list[Part]:
        opening = self.lot.choice(OPENINGS)
        if opening == ("there is",) and num_things > 1:
            opening = ("there are",)
        return [Mention(word[1:-1], frozenset(), "notvisual") if word.startswith("<") else word for word in opening]

    def background(self) -> list[Part]:
        word = self.lot.choice(BACKGROUND_WORDS[self.scene.background.kind])
        noun = self.lot.choice(("background", "background", "backdrop"))
        return ["on", Mention(" ".join(f"a {word} {self.scene.background.colour} {noun}".split()), frozenset(), "scene")]

    def units(self, merge_shapes: float) -> list[frozenset[int]]:
        """The things in groups that words can tell apart: same colour and shape together, at times all of one shape."""
        units: dict[tuple[str, ...], set[int]] = {}
        merged = {thing.shape for thing in self.things if self.lot.random() < merge_shapes}
        for row, thing in enumerate(self.things):
            units.setdefault((thing.shape,) if thing.shape in merged else (thing.shape, thing.colour), set()).add(row)
        members = [frozenset(rows) for rows in units.values()]
        self.lot.shuffle(members)
        return members

    def everything(self) -> Caption:
        """ "A red circle, two small stars and a blue square on a grey background." """
        units = self.units(merge_shapes=0.15)
        mentions = [mention for unit in units if (mention := self.mention(unit, 0.25 if len(units) > 2 else 0.4)) is not None]
        parts = self.opening(len(mentions[0].members))
        for row, mention in enumerate(mentions):
            if row:
                parts.append("and" if row == len(mentions) - 1 else ",")
            parts.append(mention)
        return assemble([*parts, *(self.background() if self.lot.random() < 0.5 else [])])

    def relation(self) -> Caption:
        """ "To the left of a blue square is a red circle." """
        singles = [frozenset([row]) for row in range(len(self.things))]
        groups = [unit for unit in self.units(merge_shapes=0.5) if len(unit) > 1]
        found = []
        for first in singles + groups:
            for second in singles:
                if first & second:
                    continue
                pairs = [(one, other) for one in first for other in second]
                for name in RELATIONS:
                    if all(clearly(name, one, other, self.things, self.hidden) for one, other in pairs):
                        found.append((first, second, name))
                if all(is_near(self.things[one], self.things[other]) for one, other in pairs) and self.lot.random() < 0.3:
                    found.append((first, second, "near"))
        self.lot.shuffle(found)
        for first, second, name in found:
            one, other = self.mention(first, 0.3), self.mention(second, 0.2)
            if one is not None and other is not None:
                return assemble(self._join(one, other, name))
        return self.part()

    def _join(self, one: Mention, other: Mention, name: str) -> list[Part]:
        said = self.lot.choice(NEAR_PHRASES if name == "near" else RELATIONS[name].phrases)
        verb = "is" if len(one.members) == 1 else "are"
        style = self.lot.random()
        if style < 0.3:
            return [one, verb, said, other]
        if style < 0.45 and name not in ("front", "behind") and not said.endswith("than"):
            return [said, other, "there", verb, one]
        if style < 0.55 and name in ("left", "right", "above", "below"):
            return [one, "sits" if verb == "is" else "sit", said, other]
        return [*self.opening(len(one.members)), one, said, other]

    def part(self) -> Caption:
        """ "There is a striped star in the top left corner." """
        rows = list(range(len(self.things)))
        self.lot.shuffle(rows)
        mention = None
        for row in rows:
            mention = mention or self.mention(frozenset([row]), 0.55)
        if mention is None:  # everything has a twin
            return self.counting()
        (row,) = mention.members
        place = place_in_picture(self.things[row])
        parts: list[Part] = [*self.opening(), mention]
        if place is not None and self.lot.random() < 0.6:
            return assemble([*parts, self.lot.choice(PLACES[place])])
        return assemble([*parts, *(self.background() if self.lot.random() < 0.6 else [])])

    def counting(self) -> Caption:
        """ "There are two red circles." Every thing counts that fits the words; a lone thing is told as a part."""
        groups = set()
        for attributes in (("colour", "shape"), ("shape",), ("colour",), ("size",), ("size", "shape"), ("texture",)):
            for thing in self.things:
                members = Description(**{attribute: getattr(thing, attribute) for attribute in attributes}).matches(self.things)
                if attributes != ("texture",) or thing.texture != "plain":
                    groups.add(members)
        some = sorted((sorted(group) for group in groups if 1 < len(group) < len(self.things)), key=str)  # the order is part of version 1
        members = frozenset(self.lot.choice(some or [list(range(len(self.things)))]))
        mention = self.mention(members, 0.2)
        assert mention is not None  # a group was made by a description that fits nothing else
        rest = [row for row in range(len(self.things)) if row not in members]
        parts: list[Part] = [*self.opening(len(members)), mention]
        other = self.mention(frozenset(rest[:1]), 0.3) if rest else None
        if other is not None and self.lot.random() < 0.5:
            return assemble([*parts, "and", other])
        return assemble([*parts, *(self.background() if self.lot.random() < 0.5 else [])])
