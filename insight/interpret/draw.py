"""Pictures of attention maps, for people. Reads what ``maps.py`` wrote; needs numpy, pillow and matplotlib only.

``python -m insight.interpret.draw MAPS.safetensors --out FOLDER`` draws a file again.

B examples, H heads, T text tokens, N image tokens of which row 0 is the class token, g patches per side.
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from insight.errors import InputError
from insight.interpret.draw_methods import draw_methods_sheet, draw_score_sheet
from insight.interpret.draw_parts import (
    BOX_COLOURS,
    CAPTION,
    HEADER,
    MARGIN,
    PANEL,
    PANELS_PER_LINE,
    SCALE,
    STEP,
    TITLE,
    badge,
    blank,
    boxes,
    caption,
    finish,
    overlay,
    panel,
    photograph,
)
from insight.interpret.maps import BoxedPhrase, MapFacts, WordSpan, load_maps, write_atomically
from insight.interpret.sheet import FAINT


# --- heat ---
def patch_heat(weights_N: np.ndarray, grid: int) -> np.ndarray:
    """Weights over [class token, patches] -> (g, g), in multiples of what even attention would give to each of the N tokens."""
    heat_N = np.nan_to_num(weights_N.astype(np.float32), nan=0.0, posinf=0.0)
    return heat_N[1:].reshape(grid, grid) * len(heat_N)


def word_heat(weights_TN: np.ndarray, word: WordSpan, grid: int) -> np.ndarray:
    """Mean over the word's tokens, as ``patch_heat``."""
    return patch_heat(weights_TN[list(word.positions)].astype(np.float32).mean(axis=0), grid)


def attention_range(heats: list[np.ndarray]) -> tuple[float, float]:
    """One colour range for all of them: from even attention to the largest, at least to 1.5, so that flat maps look flat."""
    return 1.0, max(1.5, *(float(heat.max()) for heat in heats))


def rollout_range(heat: np.ndarray) -> tuple[float, float]:
    """From the least to the largest, at least a tenth of even attention apart: the residual keeps rollout close to even."""
    low = float(heat.min())
    return low, max(low + 0.1, float(heat.max()))


# --- sheets ---
def draw_class_sheet(arrays: dict[str, np.ndarray], facts: MapFacts, layer: str) -> Image.Image:
    """Per example: the picture, rollout, every head of ``layer``; what the class token reads."""
    heads_BHN = arrays[f"class/{layer}"]
    num_heads = heads_BHN.shape[1]
    per_line = min(num_heads, PANELS_PER_LINE)
    num_lines = -(-num_heads // per_line)
    first = 2 * STEP + SCALE
    row_height = num_lines * (TITLE + STEP) + CAPTION
    sheet = blank(first + per_line * STEP + SCALE, len(facts.examples) * row_height)
    for row, example in enumerate(facts.examples):
        picture, top = arrays["picture"][row], HEADER + row * row_height
        rolled = patch_heat(arrays["rollout"][row], facts.grid)
        heats = [patch_heat(heads_BHN[row, head], facts.grid) for head in range(num_heads)]
        panel(sheet, 0, top, photograph(picture), example.filename, colour=FAINT)
        panel(sheet, STEP, top, overlay(picture, rolled, *rollout_range(rolled)), "rollout, all layers")
        badge(sheet, STEP, top, facts.verdicts.get("rollout"))
        sheet.scale(MARGIN + 2 * STEP, top + TITLE, PANEL, *rollout_range(rolled))
        for head, heat in enumerate(heats):
            line, place = divmod(head, per_line)
            painted = overlay(picture, heat, *attention_range(heats))
            panel(sheet, first + place * STEP, top + line * (TITLE + STEP), painted, f"head {head}")
            badge(sheet, first + place * STEP, top + line * (TITLE + STEP), facts.verdicts.get("class"))
        sheet.scale(MARGIN + first + per_line * STEP, top + TITLE, PANEL, *attention_range(heats))
        caption(sheet, top + num_lines * (TITLE + STEP) - 4, example.caption)
    note = (
        "Colour: attention that the class token (or what is pooled instead) pays to a patch, 1× = what it gets when attention is even; "
        "up to that nothing is painted. "
        "One scale for all heads of a row. Rollout has its own scale, from its least to its most."
    )
    return finish(sheet, f"What the class token looks at: {layer}", facts, note)


def draw_word_sheet(arrays: dict[str, np.ndarray], facts: MapFacts, layer: str) -> Image.Image:
    """Per example the picture with its boxes, and each word beside its own heat map, mean over the heads of ``layer``."""
    words_BTN = arrays[f"words/{layer}"]
    shown = [[word for word in one.words if any(letter.isalnum() for letter in word.text)] for one in facts.examples]
    lines = [max(1, -(-len(words) // PANELS_PER_LINE)) for words in shown]
    per_line = min(PANELS_PER_LINE, max(3, *(len(words) for words in shown)))
    first = STEP + 20
    sheet = blank(first + per_line * STEP + SCALE, sum(CAPTION + num_lines * (TITLE + STEP) + 12 for num_lines in lines))
    top = HEADER
    for row, (example, words, num_lines) in enumerate(zip(facts.examples, shown, lines, strict=True)):
        picture = arrays["picture"][row]
        entities = dict.fromkeys(phrase.entity for phrase in example.phrases if phrase.boxes)
        colours = {entity: BOX_COLOURS[index % len(BOX_COLOURS)] for index, entity in enumerate(entities)}
        caption(sheet, top, example.caption)
        top += CAPTION
        panel(sheet, 0, top, photograph(picture), example.filename, colour=FAINT)
        for phrase in example.phrases:
            boxes(sheet, 0, top, phrase, colours)
        heats = [word_heat(words_BTN[row], word, facts.grid) for word in words]
        for index, (word, heat) in enumerate(zip(words, heats, strict=True)):
            line, place = divmod(index, PANELS_PER_LINE)
            left, panel_top = first + place * STEP, top + line * (TITLE + STEP)
            phrases = phrases_of(word, example.phrases)
            panel(sheet, left, panel_top, overlay(picture, heat, *attention_range(heats)), word.text, size=11, bold=bool(phrases))
            for phrase in phrases:
                boxes(sheet, left, panel_top, phrase, colours)
            badge(sheet, left, panel_top, facts.verdicts.get("words"))
        if heats:
            sheet.scale(MARGIN + first + min(len(words), per_line) * STEP, top + TITLE, PANEL, *attention_range(heats))
        top += num_lines * (TITLE + STEP) + 12
    note = (
        "Colour: attention that the word pays to a patch, 1× = what it gets when attention is even; up to that nothing is painted. "
        "One scale for all words of a picture. Boxes: where people say that the word's phrase is; such words are bold."
    )
    return finish(sheet, f"Where each word looks: {layer}, mean over heads", facts, note)


def phrases_of(word: WordSpan, phrases: tuple[BoxedPhrase, ...]) -> list[BoxedPhrase]:
    """Phrases with boxes whose characters the word is a part of."""
    return [phrase for phrase in phrases if phrase.boxes and word.start < phrase.end and phrase.start < word.end]


def draw_maps(path: str | Path, folder: str | Path) -> list[Path]:
    """Draw a file of maps: ``STEM-class-LAYER.png`` for each shown layer, ``STEM-words.png`` where text reads the image; of methods of
    explanation ``STEM-methods.png`` and ``STEM-score_card.png``.

    Raises:
        FileNotFoundError: no such maps.
        InputError: the file holds nothing that can be drawn.
    """
    arrays, facts = load_maps(path)
    drawable = "picture" in arrays and "rollout" in arrays
    sheets = {f"class-{layer}": draw_class_sheet(arrays, facts, layer) for layer in facts.shown if drawable and f"class/{layer}" in arrays}
    crossing = last_crossing(arrays)
    if crossing is not None and "picture" in arrays:
        sheets["words"] = draw_word_sheet(arrays, facts, crossing)
    if facts.methods and "picture" in arrays:
        sheets["methods"] = draw_methods_sheet(arrays, facts)
    if any(one.scores for one in facts.methods.values()):
        sheets["score_card"] = draw_score_sheet(facts)
    if not sheets:
        raise InputError(f"{path}: nothing to draw in it; left out for their size: {', '.join(facts.left_out) or 'nothing'}")
    Path(folder).mkdir(parents=True, exist_ok=True)
    written = []
    for name, sheet in sheets.items():
        target = Path(folder) / f"{Path(path).stem}-{name}.png"
        write_atomically(target, functools.partial(sheet.save, format="PNG", compress_level=6))
        written.append(target)
    return written


def last_crossing(arrays: dict[str, np.ndarray]) -> str | None:
    """The last fusion layer's cross-attention, by the number in its name."""
    layers = [name.removeprefix("words/") for name in arrays if name.startswith("words/")]
    return max(layers, key=lambda layer: [int(part) for part in layer.split(".") if part.isdigit()], default=None)


def main(arguments: list[str] | None = None) -> int:
    """Draw one file; 2 and a message on standard error when that cannot be done."""
    parser = argparse.ArgumentParser(description="Draw attention maps from their raw file.")
    parser.add_argument("maps", type=Path, help="NAME.safetensors, with NAME.json beside it")
    parser.add_argument("--out", type=Path, default=Path(), help="folder for the pictures")
    parsed = parser.parse_args(arguments)
    try:
        draw_maps(parsed.maps, parsed.out)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    if hasattr(os, "nice"):
        os.nice(max(0, 10 - os.nice(0)))  # drawn beside a training: the training goes first, but one that is nice itself does not starve it
    sys.exit(main())
