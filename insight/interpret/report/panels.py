"""Pictures of the report: every photo is in the page once, as a background; maps are small pictures that lie over it.

g patches per side.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from insight.interpret.draw_parts import BOX_COLOURS, opacity, upsample
from insight.interpret.maps import BoxedPhrase, Verdict
from insight.interpret.sheet import HEAT

SHADES = 64
CELLS = 5  # pixels of a map's picture for each patch; the browser goes on from there


class Outline(NamedTuple):
    """A box over a panel, in percent of its side."""

    left: float
    top: float
    width: float
    height: float
    colour: str


class Scale(NamedTuple):
    """What the colours of a row mean: nothing is painted up to ``low``, from ``high`` on the colour stays the same."""

    low: float
    high: float


class Panel(NamedTuple):
    """A photo, with or without a map over it."""

    photo: str  # class in the style sheet
    title: str
    alt: str
    heat: str = ""  # address of the map's picture
    outlines: tuple[Outline, ...] = ()
    warning: str = ""  # the method failed the randomisation check
    point: tuple[float, float] | None = None  # in percent


class Row(NamedTuple):
    """Panels that share a scale."""

    panels: list[Panel]
    scale: Scale | None


class Photos:
    """The photos of one page, each once."""

    def __init__(self, quality: int) -> None:
        self.quality = quality
        self._names: dict[bytes, str] = {}

    def add(self, picture_HW3: np.ndarray) -> str:
        """uint8 -> its class in the style sheet."""
        buffer = io.BytesIO()
        Image.fromarray(picture_HW3).save(buffer, "JPEG", quality=self.quality, optimize=True)
        return self._names.setdefault(buffer.getvalue(), f"photo{len(self._names)}")

    def style(self) -> str:
        """Rules for a style sheet."""
        return "\n".join(
            f".{name} {{ background-image: url(data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}); }}"
            for jpeg, name in self._names.items()
        )


def heat_picture(heat_gg: np.ndarray, scale: Scale) -> str:
    """The map in colour, transparent where nothing is painted: ``data:image/png;base64,...``, about a kilobyte."""
    strength = np.clip((upsample(heat_gg, CELLS * len(heat_gg)) - scale.low) / (scale.high - scale.low), 0, 1)
    shades = np.linspace(0, 1, SHADES)
    picture = Image.frombytes("P", strength.shape, (strength * (SHADES - 1)).round().astype(np.uint8).tobytes())
    picture.putpalette((HEAT(shades)[:, :3] * 255).round().astype(np.uint8).tobytes())
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True, transparency=(opacity(shades) * 255).round().astype(np.uint8).tobytes())
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def map_panel(
    photo: str,
    heat_gg: np.ndarray,
    scale: Scale,
    title: str,
    of: str,
    outlines: Sequence[Outline] = (),
    verdict: Verdict | None = None,
    point: tuple[float, float] | None = None,
) -> Panel:
    """A map over its photo. ``of``: what it is a map of, for those who cannot see it."""
    alt = f"{of}: {highest(heat_gg)}"
    warning = "" if verdict is None or verdict.passed else f"ρ {verdict.rho:.2f}"
    return Panel(photo, title, alt, heat_picture(heat_gg, scale), tuple(outlines), warning, point)


def highest(heat_gg: np.ndarray) -> str:
    """Where a map is highest, in words.

    >>> highest(np.array([[0.0, 3.0], [0.0, 0.0]]))
    'highest, 3.0× even, at 75 % from the left and 25 % from the top'
    """
    if heat_gg.max() <= 0:
        return "nothing positive anywhere"
    row, column = np.unravel_index(int(heat_gg.argmax()), heat_gg.shape)
    across, down = ((index + 0.5) / len(heat_gg) for index in (column, row))
    return f"highest, {heat_gg.max():.1f}× even, at {across:.0%} from the left and {down:.0%} from the top".replace("%", " %")


def outlines(phrase: BoxedPhrase, colour: str) -> tuple[Outline, ...]:
    """The phrase's boxes."""
    percent = [[round(100 * one, 2) for one in (x1, y1, x2 - x1, y2 - y1)] for x1, y1, x2, y2 in phrase.boxes]
    return tuple(Outline(left, top, width, height, colour) for left, top, width, height in percent)


def colours_of(phrases: Sequence[BoxedPhrase]) -> dict[str, str]:
    """By entity, in their order."""
    entities = dict.fromkeys(phrase.entity for phrase in phrases if phrase.boxes)
    return {entity: BOX_COLOURS[index % len(BOX_COLOURS)] for index, entity in enumerate(entities)}


def gradient() -> str:
    """The colour scale from left to right, as CSS, over the grey that a darkened photo has."""
    stops = []
    for share in np.linspace(0, 1, 9):
        red, green, blue = (round(255 * one) for one in HEAT(share)[:3])
        stops.append(f"rgb({red} {green} {blue} / {opacity(share):.2f}) {share:.1%}")
    return f"linear-gradient(90deg, {', '.join(stops)}), linear-gradient(#6a6a6a, #6a6a6a)"
