"""The world of the generated set "scenes": what a scene holds, what is true in it, and how one is drawn by lot.

Pure and seeded: a scene depends on (version, seed, split, index) alone, never on how many pictures come before it.
Lengths are pixels of the 128 x 128 picture; x runs to the right, y down; things are listed back to front.
"""

from __future__ import annotations

import random
from typing import NamedTuple

VERSION = 1  # of everything that decides pictures and captions; its difficulty was fixed before the first training
SIDE = 128

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 38, 38),
    "orange": (245, 140, 24),
    "yellow": (243, 218, 45),
    "green": (46, 150, 60),
    "blue": (38, 84, 208),
    "purple": (128, 48, 168),
    "pink": (246, 130, 190),
    "black": (32, 32, 36),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "heart", "ring", "diamond")
TEXTURES = ("plain", "striped", "dotted", "checkered")
SIZES = ("large", "small")
RADII = {"large": (19.0, 23.0), "small": (11.0, 13.0)}  # half the side: 30-36 % and 17-20 % of the picture

BACKGROUND_COLOURS: dict[str, tuple[int, int, int]] = {
    "white": (246, 246, 244),
    "grey": (168, 170, 174),
    "tan": (214, 190, 150),
    "pale blue": (178, 208, 236),
    "pale green": (190, 224, 186),
}
BACKGROUND_KINDS = ("plain", "gradient", "grainy", "striped")

# Two colours x two shapes each. Swapping the colours of two held-out things of one block gives two held-out things again, so
# that neither a true sentence nor its swapped negative is the more familiar one. Every colour and shape is trained elsewhere.
HELD_OUT_BLOCKS = (
    (("red", "green"), ("star", "heart")),
    (("blue", "orange"), ("circle", "ring")),
    (("yellow", "purple"), ("square", "cross")),
)
HELD_OUT = frozenset((colour, shape) for colours, shapes in HELD_OUT_BLOCKS for colour in colours for shape in shapes)
SEEN = tuple((colour, shape) for colour in COLOURS for shape in SHAPES if (colour, shape) not in HELD_OUT)


class Thing(NamedTuple):
    """One object of a scene."""

    shape: str
    colour: str
    size: str
    texture: str
    x: float  # centre
    y: float
    radius: float  # half the side of the square that it fills
    angle: float  # degrees
    rgb: tuple[int, int, int]

    @property
    def seen(self) -> bool:
        """Whether training holds this colour on this shape."""
        return (self.colour, self.shape) not in HELD_OUT


class Background(NamedTuple):
    kind: str
    colour: str
    rgb: tuple[int, int, int]
    angle: float  # degrees: the way that a gradient or stripes run


class Scene(NamedTuple):
    """Everything that is decided about a picture but the grain of its noise, which ``noise_seed`` decides."""

    things: tuple[Thing, ...]  # back to front
    background: Background
    noise: float  # standard deviation, grey levels
    noise_seed: int

    @property
    def seen(self) -> bool:
        return all(thing.seen for thing in self.things)


def picture_random(seed: int, split: str, index: int, purpose: str) -> random.Random:
    """The picture's own generator for one purpose; a string seed is hashed, the same on every machine."""
    return random.Random(f"scenes-v{VERSION}/{seed}/{split}/{index}/{purpose}")


def is_unseen_index(split: str, index: int) -> bool:
    """Two test pictures in five hold colour x shape pairs that training never shows."""
    return split == "test" and index % 5 in (1, 3)


def sample_scene(seed: int, split: str, index: int) -> Scene:
    """Draw the scene of one picture by lot."""
    lot = picture_random(seed, split, index, "scene")
    pairs = _sample_pairs(lot, unseen=is_unseen_index(split, index))
    things = None
    while things is None:
        things = _try_layout(lot, pairs)
    colour = lot.choice(list(BACKGROUND_COLOURS))
    rgb = _jitter(lot, _shift(BACKGROUND_COLOURS[colour], lot.randint(-9, 5)), 3)
    background = Background(lot.choice(BACKGROUND_KINDS), colour, rgb, lot.uniform(0.0, 360.0))
    return Scene(things, background, noise=lot.uniform(3.0, 9.0), noise_seed=lot.getrandbits(63))


def _sample_pairs(lot: random.Random, unseen: bool) -> list[tuple[str, str]]:
    """(colour, shape) of two to four things; uniform over what is allowed, so that swaps of colours are equally likely scenes."""
    count = lot.choices((2, 3, 4), weights=(40, 45, 15))[0]
    pairs: list[tuple[str, str]] = []
    if unseen:
        colours, shapes = lot.choice(HELD_OUT_BLOCKS)
        first_colour, other_colour = lot.sample(colours, 2)
        first_shape, other_shape = lot.sample(shapes, 2)
        partner = lot.choice(("both held out", "colour of the block", "shape of the block"))
        if partner == "colour of the block":
            other_shape = lot.choice([shape for shape in SHAPES if shape not in shapes])
        elif partner == "shape of the block":
            other_colour = lot.choice([colour for colour in COLOURS if (colour, other_shape) not in HELD_OUT])
        pairs = [(first_colour, first_shape), (other_colour, other_shape)]
    while len(pairs) < count:
        if pairs and not unseen and lot.random() < 0.15:
            pairs.append(lot.choice(pairs))  # "two red circles"
        else:
            pairs.append(lot.choice(SEEN))
    lot.shuffle(pairs)
    return pairs


def _try_layout(lot: random.Random, pairs: list[tuple[str, str]]) -> tuple[Thing, ...] | None:
    """Sizes, textures and places for the pairs; None when they did not fit. At most one pair of things overlaps."""
    overlap = lot.random() < 0.35
    sizes = [lot.choice(SIZES) for _ in pairs]
    if sizes.count("large") > 2 and len(pairs) > 2:
        return None
    things: list[Thing] = []
    for (colour, shape), size in zip(pairs, sizes, strict=True):
        radius = lot.uniform(*RADII[size])
        partner = things[0] if overlap and len(things) == 1 else None
        place = _find_place(lot, radius, things, partner)
        if place is None:
            return None
        texture = lot.choices(TEXTURES, weights=(40, 20, 20, 20))[0]
        things.append(Thing(shape, colour, size, texture, *place, radius, lot.uniform(-10.0, 10.0), _jitter(lot, COLOURS[colour], 12)))
    lot.shuffle(things)
    return tuple(things)


def _find_place(lot: random.Random, radius: float, things: list[Thing], partner: Thing | None) -> tuple[float, float] | None:
    """A centre at which the thing is whole, overlaps ``partner`` (by less than half) and keeps off every other thing."""
    low, high = radius + 2.0, SIDE - radius - 2.0
    for _ in range(60):
        x, y = lot.uniform(low, high), lot.uniform(low, high)
        if partner is not None:
            distance = ((x - partner.x) ** 2 + (y - partner.y) ** 2) ** 0.5
            near, far = max(radius, partner.radius), min(radius, partner.radius)
            if not near + 0.3 * far <= distance <= near + 0.65 * far:
                continue
        others = [thing for thing in things if thing is not partner]
        if all(max(abs(x - other.x), abs(y - other.y)) >= radius + other.radius + 3.0 for other in others):
            return round(x, 2), round(y, 2)
    return None


def _jitter(lot: random.Random, rgb: tuple[int, int, int], amount: int) -> tuple[int, int, int]:
    red, green, blue = (_byte(channel + lot.randint(-amount, amount)) for channel in rgb)
    return red, green, blue


def _shift(rgb: tuple[int, int, int], amount: int) -> tuple[int, int, int]:
    """Lighter or darker, the hue kept."""
    red, green, blue = (_byte(channel + amount) for channel in rgb)
    return red, green, blue


def _byte(value: int) -> int:
    return min(255, max(0, value))


class Relation(NamedTuple):
    """How people say it; the n-th phrase of a relation and of its inverse are each other's mirror image."""

    phrases: tuple[str, ...]
    inverse: str


RELATIONS: dict[str, Relation] = {
    "left": Relation(("left of", "to the left of", "on the left of", "on the left side of"), "right"),
    "right": Relation(("right of", "to the right of", "on the right of", "on the right side of"), "left"),
    "above": Relation(("above", "over", "higher than"), "below"),
    "below": Relation(("below", "under", "lower than"), "above"),
    "front": Relation(("in front of", "partly covering"), "behind"),
    "behind": Relation(("behind", "partly covered by"), "front"),
}
NEAR_PHRASES = ("next to", "beside", "near", "close to")
CLEARLY_APART = 18.0  # pixels between centres before "left of" is said
CLEARLY_HIDDEN = 0.05  # share of a thing that another hides before "behind" is said


def clearly(relation: str, first: int, second: int, things: tuple[Thing, ...], hidden: list[list[float]]) -> bool:
    """Whether anybody would say that thing ``first`` is left of (above, behind, ...) thing ``second``.

    ``hidden[i][j]`` is the share of thing i that thing j hides (see `datamodules.scenes_draw.draw`).
    """
    if relation in ("front", "behind"):
        back, front = (second, first) if relation == "front" else (first, second)
        return hidden[back][front] >= CLEARLY_HIDDEN
    if hidden[first][second] or hidden[second][first]:
        return False  # an overlapping pair is told by its depth only: "over" would be read two ways
    right, down = things[second].x - things[first].x, things[second].y - things[first].y
    ahead, aside = {"left": (right, down), "right": (-right, down), "above": (down, right), "below": (-down, right)}[relation]
    return ahead >= CLEARLY_APART and ahead >= 0.8 * abs(aside)


def possibly(relation: str, first: int, second: int, things: tuple[Thing, ...], hidden: list[list[float]]) -> bool:
    """Whether somebody could say so: false only where the sentence is plainly wrong."""
    if relation in ("front", "behind"):
        back, front = (second, first) if relation == "front" else (first, second)
        return hidden[back][front] > 0
    right, down = things[second].x - things[first].x, things[second].y - things[first].y
    return {"left": right, "right": -right, "above": down, "below": -down}[relation] > -4.0


def is_near(first: Thing, second: Thing) -> bool:
    """Whether the two stand close, neither far apart nor one over the other."""
    gap = max(abs(first.x - second.x), abs(first.y - second.y)) - first.radius - second.radius
    return 0.0 < gap <= 14.0


def place_in_picture(thing: Thing) -> str | None:
    """The part of the picture where the thing plainly lies, or None between two parts."""
    column, row = _third(thing.x, "left", "right"), _third(thing.y, "top", "bottom")
    if column is None or row is None:
        return None
    if row == "centre":
        return column
    return row if column == "centre" else f"{row} {column}"


def _third(at: float, low: str, high: str) -> str | None:
    share = at / SIDE
    if share < 0.33:
        return low
    if share > 0.67:
        return high
    return "centre" if 0.42 < share < 0.58 else None
