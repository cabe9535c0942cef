"""A sheet of paper measured in pixels: panels are pasted into one array, text and boxes go over it. Quick: one picture, one axes."""

from __future__ import annotations

import textwrap

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from PIL import Image

DPI = 100
INK, FAINT, ALARM = "#1b1f24", "#59636e", "#c22f2f"
HEAT: Colormap = LinearSegmentedColormap.from_list("heat", ["#1a1a40", "#5b2a86", "#c2306e", "#f4743b", "#ffd23f", "#fffbe0"])
LETTER = 0.57  # mean width of a letter of DejaVu Sans, in font sizes


class Sheet:
    """Places are pixels from the top left. It belongs to no window and to no global state."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self._paper = np.full((height, width, 3), 255, dtype=np.uint8)
        self._figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
        self._canvas = FigureCanvasAgg(self._figure)
        self._axes = self._figure.add_axes((0, 0, 1, 1))
        self._axes.set_axis_off()
        self._axes.set_xlim(0, width)
        self._axes.set_ylim(height, 0)

    def paste(self, left: float, top: float, pixels_HW3: np.ndarray) -> None:
        """``pixels_HW3`` in 0..1."""
        row, column = round(top), round(left)
        self._paper[row : row + pixels_HW3.shape[0], column : column + pixels_HW3.shape[1]] = (pixels_HW3.clip(0, 1) * 255).round()

    def text(
        self,
        left: float,
        top: float,
        text: str,
        size: float = 10,
        colour: str = INK,
        width: float | None = None,
        lines: int = 1,
        align: str = "left",
        italic: bool = False,
        bold: bool = False,
    ) -> None:
        """``width``: wrap to so many pixels, at most ``lines`` lines, then "..."."""
        text = " ".join(text.split())
        if width is not None:
            letters = max(4, int(width / (size * DPI / 72 * LETTER)))
            text = "\n".join(textwrap.wrap(text, letters, max_lines=lines, placeholder="..."))
        style, weight = ("italic" if italic else "normal"), ("bold" if bold else "normal")
        self._axes.text(
            left, top, text, size=size, color=colour, va="top", ha=align, fontstyle=style, fontweight=weight, parse_math=False
        )  # a caption may hold dollar signs

    def box(self, left: float, top: float, width: float, height: float, colour: str) -> None:
        """An outline that shows on light and on dark."""
        self._axes.add_patch(Rectangle((left, top), width, height, fill=False, edgecolor="black", linewidth=3.4, alpha=0.75))
        self._axes.add_patch(Rectangle((left, top), width, height, fill=False, edgecolor=colour, linewidth=1.7))

    def badge(self, left: float, top: float, width: float, height: float, text: str) -> None:
        """White words on red: what must not be overlooked."""
        self._axes.add_patch(Rectangle((left, top), width, height, facecolor=ALARM, edgecolor="none"))
        self._axes.text(left + width / 2, top + height / 2, text, size=7.5, color="white", va="center", ha="center", fontweight="bold")

    def scale(self, left: float, top: float, height: int, low: float, high: float, width: int = 10) -> None:
        """A colour bar from ``low`` (bottom) to ``high`` (top), marked in multiples."""
        shades = HEAT(np.linspace(1, 0, height))[:, None, :3]
        self.paste(left, top, np.broadcast_to(shades, (height, width, 3)))
        for value in MaxNLocator(nbins=4).tick_values(low, high):
            if low <= value <= high:
                place = top + height * (1 - (value - low) / (high - low))
                self._axes.plot([left + width, left + width + 4], [place, place], color=FAINT, linewidth=0.8)
                self._axes.text(left + width + 6, place, f"{value:.3g}×", size=8, color=FAINT, va="center", ha="left")

    def image(self) -> Image.Image:
        """The finished sheet."""
        self._figure.figimage(self._paper, origin="upper", zorder=-1)  # pixel for pixel, nothing is resampled
        self._canvas.draw()
        return Image.fromarray(np.asarray(self._canvas.buffer_rgba())[..., :3])
