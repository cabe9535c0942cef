"""A sheet of pictures with what the model wrote of them, and what people wrote. Needs numpy, pillow and matplotlib only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from insight.interpret.draw_parts import FOOTER, HEADER, MARGIN, photograph
from insight.interpret.sheet import FAINT, INK, Sheet

SIDE = 150  # pixels of a picture
COLUMNS = 2
WIDTH, HEIGHT = 620, 176  # of one entry
MOST = 24  # entries
WRITTEN = 3  # captions of people that are shown


class Captioned(NamedTuple):
    """One entry."""

    picture: np.ndarray  # (height, width, 3) uint8
    filename: str
    generated: str
    written: Sequence[str]
    cider_d: float


def draw_captions(entries: Sequence[Captioned], title: str, note: str) -> Image.Image:
    """At most ``MOST`` entries, in the order given."""
    entries = entries[:MOST]
    lines = -(-len(entries) // COLUMNS)
    sheet = Sheet(COLUMNS * WIDTH + 2 * MARGIN, HEADER + lines * HEIGHT + FOOTER)
    sheet.text(MARGIN, 14, title, 14, bold=True)
    sheet.text(MARGIN, 42, note, 9.5, FAINT, width=sheet.width - 2 * MARGIN, lines=1)
    for place, entry in enumerate(entries):
        left, top = MARGIN + place % COLUMNS * WIDTH, HEADER + place // COLUMNS * HEIGHT
        sheet.paste(left, top, photograph(entry.picture, SIDE))
        words, width = left + SIDE + 14, WIDTH - SIDE - 30
        sheet.text(words, top, entry.generated or "(nothing)", 11, INK, width=width, lines=2, bold=True)
        for row, text in enumerate(entry.written[:WRITTEN]):
            sheet.text(words, top + 44 + 34 * row, text, 9, INK, width=width, lines=2, italic=True)
        sheet.text(words, top + SIDE - 2, f"CIDEr-D {entry.cider_d:.2f} · {entry.filename}", 8.5, FAINT, width=width, lines=1)
    foot = "Bold: the model. Italic: people, at most three of each picture's captions. CIDEr-D: 0 to 10."
    sheet.text(MARGIN, sheet.height - FOOTER + 8, foot, 8.5, FAINT)
    return sheet.image()
