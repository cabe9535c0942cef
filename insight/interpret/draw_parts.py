"""What the sheets share: panels with pictures and maps, boxes, badges, the head and the foot. Needs numpy, pillow and matplotlib only.

g patches per side.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from insight.interpret.maps import BoxedPhrase, MapFacts, Verdict
from insight.interpret.sheet import FAINT, HEAT, Sheet

PANEL = 176  # pixels a side of one picture on the sheet
STEP = PANEL + 8
SCALE = 66  # pixels that a colour bar and its figures need
MARGIN, HEADER, FOOTER = 22, 74, 44
TITLE = 22  # pixels above a panel, for its title
CAPTION = 28
PANELS_PER_LINE = 7
BOX_COLOURS = ("#00e5ff", "#7dff5a", "#ff6bd6", "#ffffff", "#6ba8ff", "#ffa94d")


def upsample(heat_gg: np.ndarray, size: int) -> np.ndarray:
    """(g, g) -> (size, size), smooth between the centres of the patches, never outside the values given."""
    smooth = Image.fromarray(heat_gg.astype(np.float32)).resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(smooth).clip(heat_gg.min(), heat_gg.max())


def overlay(picture_HW3: np.ndarray, heat_gg: np.ndarray, low: float, high: float, size: int = PANEL) -> np.ndarray:
    """Heat over a greyed, darkened picture: (size, size, 3) in 0..1. The picture shows up to ``low``, the colour at ``high``."""
    photo = photograph(picture_HW3, size)
    grey = photo @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    base = 0.66 * (0.8 * grey[..., None] + 0.2 * photo) + 0.06
    strength = np.clip((upsample(heat_gg, size) - low) / (high - low), 0, 1)
    opacity_HW1 = opacity(strength)[..., None]
    return base * (1 - opacity_HW1) + HEAT(strength)[..., :3] * opacity_HW1


def opacity(strength: np.ndarray) -> np.ndarray:
    """Of the colour over a picture; ``strength`` in 0..1."""
    return 0.88 * strength**0.7


def photograph(picture_HW3: np.ndarray, size: int = PANEL) -> np.ndarray:
    """uint8 -> (size, size, 3) in 0..1."""
    return np.asarray(Image.fromarray(picture_HW3).resize((size, size), Image.Resampling.BICUBIC), dtype=np.float32) / 255


# --- parts of a sheet ---
def blank(width: int, height: int) -> Sheet:
    return Sheet(max(760, width + 2 * MARGIN), HEADER + height + FOOTER)


def panel(
    sheet: Sheet, left: float, top: float, pixels: np.ndarray, title: str, size: float = 9, colour: str = "black", bold: bool = False
) -> None:
    sheet.text(MARGIN + left + PANEL / 2, top + 3, title, size, colour, width=PANEL, align="center", bold=bold)
    sheet.paste(MARGIN + left, top + TITLE, pixels)


def boxes(sheet: Sheet, left: float, top: float, phrase: BoxedPhrase, colours: dict[str, str]) -> None:
    for x1, y1, x2, y2 in phrase.boxes:
        place = (MARGIN + left + x1 * PANEL, top + TITLE + y1 * PANEL, (x2 - x1) * PANEL, (y2 - y1) * PANEL)
        sheet.box(*place, colours[phrase.entity])


def caption(sheet: Sheet, top: float, caption: str) -> None:
    sheet.text(MARGIN, top, f"“{caption}”", 11, width=sheet.width - 2 * MARGIN, italic=True)


def finish(sheet: Sheet, title: str, facts: MapFacts, note: str) -> Image.Image:
    when = f"epoch {facts.epoch} · step {facts.step}"
    sheet.text(MARGIN, 14, title, 14, bold=True)
    sheet.text(MARGIN, 42, f"stage {facts.stage} · {when}" if facts.stage else when, 10.5, FAINT)
    sheet.text(MARGIN, sheet.height - FOOTER + 4, note, 8.5, FAINT, width=sheet.width - 2 * MARGIN, lines=2)
    return sheet.image()


def badge(sheet: Sheet, left: float, top: float, verdict: Verdict | None) -> None:
    """Over the foot of a panel whose method failed the randomisation check: its map is no explanation of this model."""
    if verdict is not None and not verdict.passed:
        sheet.badge(MARGIN + left, top + TITLE + PANEL - 20, PANEL, 20, f"fails randomisation, ρ {verdict.rho:.2f}")
