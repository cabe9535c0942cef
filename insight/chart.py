"""A line chart as SVG text: small, sharp at any size, its colours left to the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape, quoteattr

STYLE = Path(__file__).with_name("page.css")  # of every page of this project that is written into a file
WIDTH, HEIGHT = 360, 190
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 20, 24  # margins
LETTER = 5.2  # of a mark's name: its width
MOST_POINTS = 300  # of a line; more are averaged
FEW_POINTS = 40  # up to so many are marked


class Line(NamedTuple):
    """One line: ``style`` is a class of the style sheet."""

    label: str
    style: str
    points: Sequence[tuple[float, float]]


def line_chart(title: str, lines: Sequence[Line], marks: Sequence[tuple[float, str]] = ()) -> str:
    """The chart; ``marks`` are vertical lines with a name (where a stage begins). Points that are not finite are left out."""
    lines = [line._replace(points=thin([point for point in line.points if math.isfinite(point[1])])) for line in lines]
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points]
    if not xs:
        return ""
    low_x = min([*xs, *(x for x, _ in marks)])
    high_x = max(max(xs), low_x + 1)
    x_ticks, y_ticks = [x for x in ticks(low_x, high_x, 4) if low_x <= x <= high_x], ticks(min(ys), max(ys), 4)
    low_y, high_y = y_ticks[0], y_ticks[-1]

    def place(x: float, y: float) -> tuple[str, str]:
        across = LEFT + (x - low_x) / (high_x - low_x) * (WIDTH - LEFT - RIGHT)
        up = HEIGHT - BOTTOM - (y - low_y) / (high_y - low_y) * (HEIGHT - TOP - BOTTOM)
        return f"{across:.1f}", f"{up:.1f}"

    size = f'viewBox="0 0 {WIDTH} {HEIGHT}"'
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" {size} role="img" aria-label={quoteattr(title)}>']
    for y in y_ticks:
        _, up = place(low_x, y)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{up}" y2="{up}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{up}" dy=".32em" text-anchor="end">{number(y)}</text>')
    for x in x_ticks:
        across, _ = place(x, low_y)
        parts.append(f'<text class="tick" x="{across}" y="{HEIGHT - 6}" text-anchor="middle">{number(x)}</text>')
    end = 0.0  # of the name before, on the lower line
    for x, name in marks:
        across, _ = place(x, low_y)
        parts.append(f'<line class="mark" x1="{across}" x2="{across}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        raised = float(across) < end
        parts.append(f'<text class="mark-name" x="{across}" y="{TOP - (14 if raised else 5)}">{escape(name)}</text>')
        end = 0.0 if raised else float(across) + LETTER * len(name)
    for line in lines:
        placed = [place(x, y) for x, y in line.points]
        parts.append(f'<g class="{line.style}"><title>{escape(line.label)}</title>')
        parts.append(f'<polyline points="{" ".join(",".join(one) for one in placed)}"/>')
        if len(placed) <= FEW_POINTS:
            parts += [
                f'<circle cx="{across}" cy="{up}" r="2.4"><title>{escape(line.label)}, step {number(x)}: {y:.4g}</title></circle>'
                for (across, up), (x, y) in zip(placed, line.points, strict=True)
            ]
        parts.append("</g>")
    return "".join([*parts, "</svg>"])


def thin(points: Sequence[tuple[float, float]], most: int = MOST_POINTS) -> list[tuple[float, float]]:
    """At most ``most`` points: means of neighbours.

    >>> thin([(0, 1.0), (1, 3.0), (2, 5.0), (3, 7.0)], 2)
    [(0.5, 2.0), (2.5, 6.0)]
    """
    size = math.ceil(len(points) / most)
    if size <= 1:
        return list(points)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers that enclose ``low`` to ``high``.

    >>> ticks(0.13, 0.92, 4)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    if high <= low:
        pad = abs(low) * 0.1 or 1.0
        low, high = low - pad, high + pad
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = min((factor * power for factor in (1, 2, 2.5, 5, 10)), key=lambda size: abs(size - rough))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def number(value: float) -> str:
    """Short, without a useless zero.

    >>> [number(value) for value in (0.0, 0.25, 12000.0, -3.0, 0.00012)]
    ['0', '.25', '12k', '-3', '1.2e-04']
    """
    if value == 0:
        return "0"
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    if abs(value) < 0.001:
        return f"{value:.1e}"
    text = f"{value:.4g}"
    return text.replace("0.", ".", 1) if abs(value) < 1 else text
