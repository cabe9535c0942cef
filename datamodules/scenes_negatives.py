"""Hard negatives of the generated set "scenes": a true sentence about two things, and one with the same words that is false.

Pictures in which the two sentences trade places are drawn as often as these, so a guess that never looks is right half of the
time; and but for the kind "relation" both sentences are the same bag of words.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

from datamodules.scenes_captions import Description, Mention, Wording, assemble, put_in_words
from datamodules.scenes_draw import Picture
from datamodules.scenes_world import HELD_OUT, RELATIONS, Scene, Thing, clearly, possibly

TEMPLATES = ("{one} is {said} {other}", "{one} {said} {other}", "there is {one} {said} {other}")


class Claim(NamedTuple):
    """ "A <first> is <relation> a <second>": what a sentence says, apart from its words."""

    first: Description
    relation: str
    second: Description

    def num_held_out(self) -> int:
        return sum((said.colour, said.shape) in HELD_OUT for said in (self.first, self.second))


class Negative(NamedTuple):
    caption: str
    negative: str
    kind: str  # colours | sizes | objects | relation: what was swapped
    seen: bool  # neither sentence holds a colour x shape pair that training lacks


def is_clearly_true(claim: Claim, things: Sequence[Thing], hidden: list[list[float]]) -> bool:
    """Each phrase means one thing only, and anybody would say so."""
    first, second = claim.first.matches(things), claim.second.matches(things)
    return len(first) == len(second) == 1 and clearly(claim.relation, min(first), min(second), tuple(things), hidden)


def is_plainly_false(claim: Claim, things: Sequence[Thing], hidden: list[list[float]]) -> bool:
    """No two things of the picture could be meant."""
    first, second = claim.first.matches(things), claim.second.matches(things)
    return not any(possibly(claim.relation, one, other, tuple(things), hidden) for one in first for other in second if one != other)


def make_negatives(lot: random.Random, scene: Scene, picture: Picture) -> list[Negative]:
    """At most one of swapped colours, and one of another kind."""
    kinds = ["colours", lot.choice(("sizes", "objects", "relation"))]
    return [negative for kind in kinds if (negative := _make(lot, kind, scene, picture)) is not None]


def _make(lot: random.Random, kind: str, scene: Scene, picture: Picture) -> Negative | None:
    things, hidden = scene.things, picture.hidden
    pairs = [(one, other, name) for one in range(len(things)) for other in range(len(things)) if one != other for name in RELATIONS]
    lot.shuffle(pairs)
    pairs.sort(key=lambda pair: things[pair[0]].seen and things[pair[1]].seen)  # what training lacks comes first: stable, so still by lot
    for one, other, name in pairs:
        with_size = kind == "sizes" or lot.random() < 0.2
        claim = Claim(_full(things[one], with_size), name, _full(things[other], with_size))
        swapped = _swap(kind, claim)
        if swapped is None or not is_clearly_true(claim, things, hidden) or not is_plainly_false(swapped, things, hidden):
            continue
        if claim.num_held_out() != swapped.num_held_out():
            continue  # the stranger sentence would give itself away
        first, second = put_in_words(lot, claim.first, things), put_in_words(lot, claim.second, things)
        template, phrasing = lot.choice(TEMPLATES), lot.randrange(len(RELATIONS[name].phrases))
        caption = _say(template, first, RELATIONS[name].phrases[phrasing], second)
        if kind == "colours":
            first, second = first._replace(colour=second.colour), second._replace(colour=first.colour)
        elif kind == "sizes":
            first, second = first._replace(size=second.size), second._replace(size=first.size)
        elif kind == "objects":
            first, second = second, first
        negative = _say(template, first, RELATIONS[swapped.relation].phrases[phrasing], second)
        return Negative(caption, negative, kind, seen=claim.num_held_out() == 0)
    return None


def _full(thing: Thing, with_size: bool) -> Description:
    return Description(size=thing.size if with_size else None, colour=thing.colour, shape=thing.shape)


def _swap(kind: str, claim: Claim) -> Claim | None:
    """The claim with one thing swapped; None where that would say the same again, or what another kind says."""
    first, relation, second = claim
    if kind == "objects":
        return Claim(second, relation, first)
    if kind == "relation":
        return Claim(first, RELATIONS[relation].inverse, second)
    attribute = {"colours": "colour", "sizes": "size"}[kind]
    traded = getattr(second, attribute), getattr(first, attribute)
    if traded[0] == traded[1] or first.shape == second.shape:
        return None
    return Claim(first._replace(**{attribute: traded[0]}), relation, second._replace(**{attribute: traded[1]}))


def _say(template: str, first: Wording, relation: str, second: Wording) -> str:
    mentions = {"{one}": first.text(), "{said}": relation, "{other}": second.text()}
    return assemble([Mention(mentions[part], frozenset()) if part in mentions else part for part in template.split()]).text
