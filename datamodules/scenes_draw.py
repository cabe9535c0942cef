"""Draw a scene of the generated set, and read off what is seen of each thing: its box and what hides it.

Shapes are inequalities on a grid finer than the pixels (`FINE` x `FINE` points each), so edges are smooth and boxes exact.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from datamodules.scenes_world import SIDE, Background, Scene, Thing

FINE = 3
Array = NDArray[np.float32]
PixelBox = tuple[int, int, int, int]  # x1, y1, x2, y2: first pixel, and one past the last


class Picture(NamedTuple):
    """A drawn scene."""

    pixels: NDArray[np.uint8]  # (SIDE, SIDE, 3)
    boxes: tuple[PixelBox, ...]  # per thing: around the part of it that is seen
    hidden: list[list[float]]  # hidden[i][j]: the share of thing i that thing j hides


def draw(scene: Scene) -> Picture:
    """The picture of a scene; the same scene gives the same pixels."""
    noise = np.random.Generator(np.random.SFC64(scene.noise_seed))
    canvas = _background(scene.background, noise)
    covers = np.zeros((len(scene.things), SIDE, SIDE), dtype=np.float32)
    for cover, thing in zip(covers, scene.things, strict=True):
        _paint(canvas, cover, thing)
    canvas += noise.standard_normal(canvas.shape, dtype=np.float32) * np.float32(scene.noise)
    pixels = np.clip(np.rint(canvas), 0, 255).astype(np.uint8)

    solid = covers > 0.5
    hidden = [
        [float((behind & front).sum() / behind.sum()) if j > i else 0.0 for j, front in enumerate(solid)] for i, behind in enumerate(solid)
    ]
    boxes = tuple(_box(mask & ~solid[row + 1 :].any(axis=0)) for row, mask in enumerate(solid))
    return Picture(pixels, boxes, hidden)


def _box(mask: NDArray[np.bool_]) -> PixelBox:
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _paint(canvas: Array, cover: Array, thing: Thing) -> None:
    """Lay the thing over the canvas, and write the share of each pixel that it covers into ``cover``."""
    reach = thing.radius + 1.0
    left, top = max(0, int(thing.x - reach)), max(0, int(thing.y - reach))
    right, bottom = min(SIDE, int(thing.x + reach) + 2), min(SIDE, int(thing.y + reach) + 2)
    across = ((np.arange((right - left) * FINE, dtype=np.float32) + 0.5) / FINE + (left - thing.x)) / thing.radius
    down = ((np.arange((bottom - top) * FINE, dtype=np.float32) + 0.5) / FINE + (top - thing.y)) / thing.radius
    turn = np.deg2rad(np.float32(thing.angle))
    x = across[None, :] * np.cos(turn) + down[:, None] * np.sin(turn)  # the thing's own axes: it fills [-1, 1] x [-1, 1]
    y = down[:, None] * np.cos(turn) - across[None, :] * np.sin(turn)

    inside = INSIDE[thing.shape](x, y)
    core = _shrunk(inside, FINE + 1)
    marks = core & _marked(thing, x * np.float32(thing.radius), y * np.float32(thing.radius))
    share, core_share, marks_share = _share(inside), _share(core), _share(marks)
    light = np.float32(1.0) - np.float32(0.1) * np.clip(down[FINE // 2 :: FINE], -1, 1)[:, None]  # lit from above
    base = np.array(thing.rgb, np.float32)
    window = canvas[top:bottom, left:right]
    window *= (1 - share)[..., None]
    window += ((share - core_share) * np.float32(0.45) + (core_share - marks_share) * light)[..., None] * base  # a dark rim, the body
    window += (marks_share * light)[..., None] * second_tone(thing.rgb)
    cover[top:bottom, left:right] = share


def _share(fine: NDArray[np.bool_]) -> Array:
    """How much of each pixel is true: (H * FINE, W * FINE) -> (H, W)."""
    counts = np.zeros((fine.shape[0] // FINE, fine.shape[1] // FINE), dtype=np.uint8)
    for row in range(FINE):
        for column in range(FINE):
            counts += fine[row::FINE, column::FINE]
    return counts.astype(np.float32) / np.float32(FINE * FINE)


def _shrunk(mask: NDArray[np.bool_], steps: int) -> NDArray[np.bool_]:
    """The mask less a rim of ``steps`` points."""
    padded = np.pad(mask, steps)
    height, width = mask.shape
    kept = mask.copy()
    for down, across in ((0, steps), (2 * steps, steps), (steps, 0), (steps, 2 * steps)):
        kept &= padded[down : down + height, across : across + width]
    return kept


def second_tone(rgb: tuple[int, int, int]) -> Array:
    """The colour of the marks: dark on light things, pale on dark ones, always of the thing's own hue."""
    base = np.array(rgb, np.float32)
    brightness = float(base @ np.array([0.299, 0.587, 0.114], np.float32))
    return base * np.float32(0.5) if brightness > 125 else base + (255 - base) * np.float32(0.62)


def _marked(thing: Thing, x: Array, y: Array) -> NDArray[np.bool_]:
    """Where the texture's second tone lies; x and y in pixels from the thing's centre."""
    if thing.texture == "plain":
        return np.zeros(x.shape, dtype=bool)
    period = 4.5 + 0.25 * thing.radius
    across, down = x / period, y / period
    if thing.texture == "striped":
        return _fraction(across + 0.6 * down) < 0.45
    if thing.texture == "dotted":
        across, down = _fraction(across) - 0.5, _fraction(down) - 0.5
        return across * across + down * down < 0.1
    return (np.floor(across * 1.5) + np.floor(down * 1.5)) % 2 == 0


def _fraction(x: Array) -> Array:
    return x - np.floor(x)


def _background(background: Background, noise: np.random.Generator) -> Array:
    grid = np.linspace(-1.0, 1.0, SIDE, dtype=np.float32)
    turn = np.deg2rad(np.float32(background.angle))
    along = grid[None, :] * np.cos(turn) + grid[:, None] * np.sin(turn)
    if background.kind == "gradient":
        shade = 24.0 * along
    elif background.kind == "striped":
        shade = 9.0 * np.sign(np.sin(along * np.float32(22.0)))
    elif background.kind == "grainy":
        shade = np.kron(noise.standard_normal((SIDE // 4, SIDE // 4), dtype=np.float32) * 12.0, np.ones((4, 4), np.float32))
    else:
        shade = np.zeros((SIDE, SIDE), np.float32)
    return np.asarray(np.array(background.rgb, np.float32) + shade[..., None] - np.float32(8.0), dtype=np.float32)


def _star(x: Array, y: Array) -> NDArray[np.bool_]:
    """Five points: in polar form, the edge between a tip and a notch is a straight line."""
    tip, notch = 1.05, 0.45
    y = y - np.float32(0.08)  # a star reaches further up than down: its middle is the middle of its box
    angle = np.abs(np.mod(np.arctan2(x, -y) + np.pi / 5, 2 * np.pi / 5) - np.pi / 5)  # 0 at a tip, pi/5 at a notch
    edge = tip * notch * np.sin(np.pi / 5) / (tip * np.sin(angle) + notch * np.sin(np.pi / 5 - angle))
    return np.asarray(x * x + y * y <= edge * edge)


def _heart(x: Array, y: Array) -> NDArray[np.bool_]:
    x, y = x * np.float32(1.16), 0.14 - y * np.float32(1.14)
    core = x * x + y * y - 1.0
    return np.asarray(core * core * core - x * x * y * y * y <= 0)


def _triangle(x: Array, y: Array) -> NDArray[np.bool_]:
    return np.asarray((y <= 0.86) & (np.abs(x) * 1.75 <= 0.92 + y))


def _cross(x: Array, y: Array) -> NDArray[np.bool_]:
    near, far = np.minimum(np.abs(x), np.abs(y)), np.maximum(np.abs(x), np.abs(y))
    return np.asarray((near <= 0.32) & (far <= 0.94))


def _ring(x: Array, y: Array) -> NDArray[np.bool_]:
    distance = x * x + y * y
    return np.asarray((distance <= 0.98**2) & (distance >= 0.5**2))


INSIDE: dict[str, Callable[[Array, Array], NDArray[np.bool_]]] = {
    "circle": lambda x, y: np.asarray(x * x + y * y <= 0.96**2),
    "square": lambda x, y: np.asarray(np.maximum(np.abs(x), np.abs(y)) <= 0.82),
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
    "heart": _heart,
    "ring": _ring,
    "diamond": lambda x, y: np.asarray(np.abs(x) / 0.78 + np.abs(y) / 0.99 <= 1.0),
}
