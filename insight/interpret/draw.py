"""Pictures of attention maps, for people. Reads what ``maps.py`` wrote; needs numpy and matplotlib only.

``python -m insight.interpret.draw MAPS.safetensors --out FOLDER`` draws a file again.

B examples, H heads, T text tokens, N image tokens of which row 0 is the class token, g patches per side.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from insight.errors import InputError
from insight.interpret.maps import BoxedPhrase, MapFacts, WordSpan, load_maps, write_atomically

PANEL = 208  # pixels a side of one picture on the sheet
DPI = 100
INK, FAINT = "#1b1f24", "#6a737d"
HEAT: Colormap = LinearSegmentedColormap.from_list("heat", ["#1a1a40", "#5b2a86", "#c2306e", "#f4743b", "#ffd23f", "#fffbe0"])
BOX_COLOURS = ("#00e5ff", "#7dff5a", "#ff6bd6", "#ffffff", "#6ba8ff", "#ffa94d")
WORDS_PER_ROW = 7


# --- one panel ---
def upsample(heat_gg: np.ndarray, size: int) -> np.ndarray:
    """(g, g) -> (size, size), bilinear between the centres of the patches."""
    return np.asarray(Image.fromarray(heat_gg.astype(np.float32)).resize((size, size), Image.Resampling.BILINEAR))


def overlay(picture_HW3: np.ndarray, heat_gg: np.ndarray, low: float, high: float, size: int = PANEL) -> np.ndarray:
    """Heat over a greyed, darkened picture: (size, size, 3) in 0..1. At ``low`` the picture shows, at ``high`` the colour does."""
    photo = np.asarray(Image.fromarray(picture_HW3).resize((size, size), Image.Resampling.BICUBIC), dtype=np.float32) / 255
    grey = photo @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    base = 0.62 * (0.75 * grey[..., None] + 0.25 * photo) + 0.04
    strength = np.clip((upsample(heat_gg, size) - low) / (high - low), 0, 1)
    opacity = (0.9 * strength**0.75)[..., None]
    return base * (1 - opacity) + HEAT(strength)[..., :3] * opacity


def colour_range(*heats: np.ndarray) -> tuple[float, float]:
    """One scale for all of them, from 0 to the largest value; never empty, whatever the model gives."""
    largest = max(float(np.nan_to_num(heat, nan=0.0, posinf=0.0).max()) for heat in heats)
    return 0.0, max(largest, 1e-6)


def patch_heat(weights_N: np.ndarray, grid: int) -> np.ndarray:
    """Weights over [class token, patches] -> (g, g), in multiples of what even attention would give to each of the N tokens."""
    heat_N = np.nan_to_num(weights_N.astype(np.float32), nan=0.0, posinf=0.0)
    return heat_N[1:].reshape(grid, grid) * len(heat_N)


def word_heat(weights_TN: np.ndarray, word: WordSpan, grid: int) -> np.ndarray:
    """Mean over the word's tokens, as ``patch_heat``."""
    return patch_heat(weights_TN[list(word.positions)].astype(np.float32).mean(axis=0), grid)


def phrases_of(word: WordSpan, phrases: tuple[BoxedPhrase, ...]) -> list[BoxedPhrase]:
    """Phrases with boxes whose characters the word is a part of."""
    return [phrase for phrase in phrases if phrase.boxes and word.start < phrase.end and phrase.start < word.end]


# --- sheets ---
def draw_class_sheet(arrays: dict[str, np.ndarray], facts: MapFacts, layer: str) -> Figure:
    """A row per example: the picture, rollout, every head of ``layer``; what the class token reads."""
    heads_BHN = arrays[f"class/{layer}"]
    num_heads = heads_BHN.shape[1]
    sheet = _Sheet(columns=2.28 + num_heads + 0.34, height=1.4 * len(facts.examples))
    for row, example in enumerate(facts.examples):
        picture, top = arrays["picture"][row], 1.4 * row + 0.08
        rolled = patch_heat(arrays["rollout"][row], facts.grid)
        heats = [patch_heat(heads_BHN[row, head], facts.grid) for head in range(num_heads)]
        sheet.picture(row, 0, picture, example.filename)
        low, high = float(rolled.min()), max(float(rolled.max()), float(rolled.min()) + 1e-6)
        sheet.heat(top, 1, picture, rolled, (low, high), "rollout, all layers")
        sheet.scale(top, 2, (low, high))
        shared = colour_range(*heats)
        for head, heat in enumerate(heats):
            sheet.heat(top, 2.28 + head, picture, heat, shared, f"head {head}")
        sheet.scale(top, 2.28 + num_heads, shared)
        sheet.caption(top + 1, example.caption)
    return sheet.finish(
        f"What the class token looks at: {layer}",
        facts,
        "Colour: attention paid to a patch, as a multiple of even attention (1 = every token alike). "
        "One scale for all heads of a row; rollout has its own, from its least to its most.",
    )


def draw_word_sheet(arrays: dict[str, np.ndarray], facts: MapFacts, layer: str) -> Figure:
    """Per example the picture with its boxes, and each word beside its own heat map, mean over the heads of ``layer``."""
    words_BTN = arrays[f"words/{layer}"]
    shown = [[word for word in one.words if any(letter.isalnum() for letter in word.text)] for one in facts.examples]
    lines = [max(1, -(-len(words) // WORDS_PER_ROW)) for words in shown]
    columns = 1.12 + max(1, min(WORDS_PER_ROW, max((len(words) for words in shown), default=1))) + 0.34
    sheet = _Sheet(columns=columns, height=sum(1.17 * num_lines + 0.36 for num_lines in lines))
    top = 0.0
    for row, (example, words) in enumerate(zip(facts.examples, shown, strict=True)):
        picture = arrays["picture"][row]
        entities = list(dict.fromkeys(phrase.entity for phrase in example.phrases if phrase.boxes))
        colours = {entity: BOX_COLOURS[index % len(BOX_COLOURS)] for index, entity in enumerate(entities)}
        sheet.caption(top, example.caption)
        top += 0.28
        axes = sheet.picture(top, 0, picture, example.filename)
        for phrase in example.phrases:
            _draw_boxes(axes, phrase, colours[phrase.entity] if phrase.boxes else "")
        heats = [word_heat(words_BTN[row], word, facts.grid) for word in words]
        if heats:
            shared = colour_range(*heats)
            for index, (word, heat) in enumerate(zip(words, heats, strict=True)):
                line, place = divmod(index, WORDS_PER_ROW)
                axes = sheet.heat(top + line * 1.17, 1.12 + place, picture, heat, shared, word.text, size=11)
                for phrase in phrases_of(word, example.phrases):
                    _draw_boxes(axes, phrase, colours[phrase.entity])
            sheet.scale(top, 1.12 + min(len(words), WORDS_PER_ROW), shared)
        top += 1.17 * lines[row] + 0.08
    return sheet.finish(
        f"Where each word looks: {layer}, mean over heads",
        facts,
        "Colour: attention paid by the word to a patch, as a multiple of even attention (1 = every image token alike), one scale per picture. "
        "Boxes: where people say the word's phrase is.",
    )


def draw_maps(path: str | Path, folder: str | Path) -> list[Path]:
    """Draw a file of maps: ``STEM-class-LAYER.png`` for each shown layer, ``STEM-words.png`` where text reads the image."""
    arrays, facts = load_maps(path)
    figures = {f"class-{layer}": draw_class_sheet(arrays, facts, layer) for layer in facts.shown if f"class/{layer}" in arrays}
    crossing = next((name.removeprefix("words/") for name in sorted(arrays, reverse=True) if name.startswith("words/")), None)
    if crossing is not None:
        figures["words"] = draw_word_sheet(arrays, facts, crossing)
    if not figures:
        raise InputError(f"{path}: nothing to draw in it; left out for their size: {', '.join(facts.left_out) or 'nothing'}")
    Path(folder).mkdir(parents=True, exist_ok=True)
    written = []
    for name, figure in figures.items():
        target = Path(folder) / f"{Path(path).stem}-{name}.png"
        write_atomically(target, lambda temporary, figure=figure: figure.savefig(temporary, format="png", dpi=DPI))  # type: ignore[misc]
        written.append(target)
    return written


def _draw_boxes(axes: Axes, phrase: BoxedPhrase, colour: str) -> None:
    for x1, y1, x2, y2 in phrase.boxes:
        place = ((x1 * PANEL - 0.5, y1 * PANEL - 0.5), (x2 - x1) * PANEL, (y2 - y1) * PANEL)
        axes.add_patch(Rectangle(*place, fill=False, edgecolor="black", linewidth=3.4, alpha=0.75))
        axes.add_patch(Rectangle(*place, fill=False, edgecolor=colour, linewidth=1.7))


class _Sheet:
    """Panels placed in units of one panel, from the top left of what is below the title."""

    LEFT, TOP, BOTTOM, GAP = 0.12, 0.62, 0.34, 0.045

    def __init__(self, columns: float, height: float) -> None:
        self.columns = max(columns, 4.5)
        self.width = self.columns + 2 * self.LEFT
        self.height = self.TOP + height + self.BOTTOM
        self.figure = Figure(figsize=(self.width * PANEL / DPI, self.height * PANEL / DPI), dpi=DPI, facecolor="white")
        FigureCanvasAgg(self.figure)

    def _axes(self, top: float, left: float, width: float, height: float) -> Axes:
        bottom = 1 - (self.TOP + top + height) / self.height
        return self.figure.add_axes(((self.LEFT + left) / self.width, bottom, width / self.width, height / self.height))

    def picture(self, top: float, left: float, picture_HW3: np.ndarray, title: str) -> Axes:
        photo = Image.fromarray(picture_HW3).resize((PANEL, PANEL), Image.Resampling.BICUBIC)
        return self._panel(top, left, np.asarray(photo) / 255, textwrap.shorten(title, 28, placeholder="..."), 8, FAINT)

    def heat(
        self,
        top: float,
        left: float,
        picture_HW3: np.ndarray,
        heat_gg: np.ndarray,
        limits: tuple[float, float],
        title: str,
        size: float = 9,
    ) -> Axes:
        return self._panel(top, left, overlay(picture_HW3, heat_gg, *limits), title, size, INK)

    def _panel(self, top: float, left: float, pixels: np.ndarray, title: str, size: float, colour: str) -> Axes:
        axes = self._axes(top, left, 1 - self.GAP, 1 - self.GAP)
        axes.imshow(pixels.clip(0, 1), interpolation="none", aspect="auto")
        axes.set_axis_off()
        axes.set_title(title, fontsize=size, color=colour, pad=3, parse_math=False)
        return axes

    def scale(self, top: float, left: float, limits: tuple[float, float]) -> None:
        axes = self._axes(top, left, 0.06, 1 - self.GAP)
        bar = self.figure.colorbar(ScalarMappable(Normalize(*limits), HEAT), cax=axes)
        bar.ax.tick_params(labelsize=7, length=2, color=FAINT, labelcolor=FAINT, pad=1)
        bar.outline.set_visible(False)  # type: ignore[operator]
        bar.locator.set_params(nbins=4)  # type: ignore[attr-defined]
        bar.formatter = "{x:.3g}×"  # type: ignore[assignment]
        bar.update_ticks()

    def caption(self, top: float, caption: str) -> None:
        self._text(self.TOP + top + 0.02, f"“{' '.join(caption.split())}”", 10, INK, lines=2, style="italic")

    def finish(self, title: str, facts: MapFacts, note: str) -> Figure:
        self._text(0.08, title, 13, INK, lines=1, weight="bold")
        when = f"epoch {facts.epoch} · step {facts.step}"
        self._text(0.25, f"stage {facts.stage} · {when}" if facts.stage else when, 10, FAINT, lines=1)
        self._text(self.height - self.BOTTOM + 0.04, note, 8, FAINT, lines=2)
        return self.figure

    def _text(self, top: float, text: str, size: float, colour: str, lines: int, style: str = "normal", weight: str = "normal") -> None:
        letters = int(self.columns * PANEL / (size * 0.78))  # a letter of DejaVu Sans is about 0.78 points wide at 100 dots per inch
        wrapped = "\n".join(textwrap.wrap(text, letters, max_lines=lines, placeholder=" ..."))
        self.figure.text(
            self.LEFT / self.width,
            1 - top / self.height,
            wrapped,
            fontsize=size,
            color=colour,
            va="top",
            ha="left",
            fontstyle=style,
            fontweight=weight,
            parse_math=False,
        )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Draw attention maps from their raw file.")
    parser.add_argument("maps", type=Path, help="NAME.safetensors, with NAME.json beside it")
    parser.add_argument("--out", type=Path, default=Path("."), help="folder for the pictures")
    parsed = parser.parse_args(arguments)
    try:
        draw_maps(parsed.maps, parsed.out)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
