"""Does a map point at what people marked? Protocol v1; a change of any rule below is a new version, since the rules move the figures a lot.

- A map is judged at its own resolution, never enlarged: (g, g) cells.
- It points at the centre of its highest cell. Of several equally high ones each counts its part: the expected value of choosing by lot.
- A centre on a box's edge is inside. A box without a cell's centre cannot be pointed at, and counts as missed.
- Energy is the part of the map's positive values that lies in the boxes; a cell counts by the part of its area. Nothing positive: 0.
- Another object is pointed at where the centre is in its boxes and not in the phrase's own. Phrases of pictures without another object
  have no such figure (NaN) and take no part in its mean.

P phrases, g cells a side. Boxes: (x1, y1, x2, y2) in fractions of the picture. Pure functions of numpy arrays in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from insight.data.batch import Box
from insight.errors import InputError

PROTOCOL = "v1"


class PhraseScores(NamedTuple):
    """One figure per phrase (P,), so that differences between methods can be resampled."""

    pointing: np.ndarray
    energy: np.ndarray
    other: np.ndarray  # NaN: there is no other object
    specificity: np.ndarray  # pointing - other; NaN: likewise

    def means(self) -> dict[str, float]:
        """Over phrases, named by the protocol; NaN where no phrase has the figure.

        >>> list(PhraseScores(*np.eye(4)).means())
        ['pointing_game_v1', 'energy_in_box_v1', 'other_object_rate_v1', 'specificity_v1']
        """
        names = ("pointing_game", "energy_in_box", "other_object_rate", "specificity")
        return {f"{name}_{PROTOCOL}": _mean(values) for name, values in zip(names, self, strict=True)}


def phrase_scores(maps_Pgg: np.ndarray, boxes: Sequence[Sequence[Box]], other_boxes: Sequence[Sequence[Box]]) -> PhraseScores:
    """Judge one map for each phrase.

    Args:
        boxes: Of each phrase.
        other_boxes: Of everything else that is marked in the phrase's picture.

    Raises:
        InputError: not one list of boxes for each map, a phrase without a box, a box that is no box, a map that is not finite.
    """
    maps_Pgg = _checked(maps_Pgg, boxes, other_boxes)
    grid = maps_Pgg.shape[-1]
    rows = []
    for map_gg, own, others in zip(maps_Pgg, boxes, other_boxes, strict=True):
        own_gg, best_gg = centres_inside(own, grid), map_gg == map_gg.max()
        pointing = float(own_gg[best_gg].mean())
        other = float((centres_inside(others, grid) & ~own_gg)[best_gg].mean()) if others else float("nan")
        rows.append((pointing, energy_inside(map_gg, own), other, pointing - other))
    return PhraseScores(*np.array(rows).T)


def centres_inside(boxes: Sequence[Box], grid: int) -> np.ndarray:
    """True = the cell's centre is in one of the boxes: (g, g), rows from the top. A phrase can be pointed at where any is True."""
    centre = (np.arange(grid) + 0.5) / grid
    inside_gg = np.zeros((grid, grid), dtype=bool)
    for x1, y1, x2, y2 in boxes:
        inside_gg |= ((centre >= y1) & (centre <= y2))[:, None] & ((centre >= x1) & (centre <= x2))
    return inside_gg


def energy_inside(map_gg: np.ndarray, boxes: Sequence[Box]) -> float:
    """Part of the map's positive values that lies in the union of the boxes (https://arxiv.org/abs/1910.01279)."""
    positive_gg = np.clip(map_gg, 0, None)
    total = float(positive_gg.sum())
    return float((positive_gg * area_inside(boxes, map_gg.shape[-1])).sum() / total) if total > 0 else 0.0


def area_inside(boxes: Sequence[Box], grid: int) -> np.ndarray:
    """Part of each cell that the union of the boxes covers: (g, g). Exact: all edges cut the picture into rectangles, each in or out."""
    edges_x, edges_y = _edges([box[0::2] for box in boxes], grid), _edges([box[1::2] for box in boxes], grid)
    middle_x, middle_y = (edges_x[:-1] + edges_x[1:]) / 2, (edges_y[:-1] + edges_y[1:]) / 2
    inside = np.zeros((len(middle_y), len(middle_x)), dtype=bool)
    for x1, y1, x2, y2 in boxes:
        inside |= ((middle_y > y1) & (middle_y < y2))[:, None] & ((middle_x > x1) & (middle_x < x2))
    area = inside * np.diff(edges_y)[:, None] * np.diff(edges_x)
    found_gg = np.zeros((grid, grid))
    np.add.at(found_gg, np.ix_((middle_y * grid).astype(int), (middle_x * grid).astype(int)), area)
    return found_gg * grid**2


# --- what any method must beat ---
def centre_map(grid: int) -> np.ndarray:
    """(g, g) highest in the picture's middle: the baseline that needs no model."""
    offset = (np.arange(grid) + 0.5) / grid - 0.5
    return -np.hypot(offset[:, None], offset)


def largest_segment_map(segment_N: np.ndarray, grid: int) -> np.ndarray:
    """(g, g) highest in the largest segment."""
    sizes = np.bincount(segment_N)
    return sizes[segment_N].reshape(grid, grid).astype(float)


def _edges(pairs: Sequence[Sequence[float]], grid: int) -> np.ndarray:
    return np.unique(np.concatenate([np.arange(grid + 1) / grid, *(np.clip(pair, 0, 1) for pair in pairs)]))


def _mean(values_P: np.ndarray) -> float:
    known = values_P[~np.isnan(values_P)]
    return float(known.mean()) if len(known) else float("nan")


def _checked(maps_Pgg: np.ndarray, boxes: Sequence[Sequence[Box]], other_boxes: Sequence[Sequence[Box]]) -> np.ndarray:
    maps_Pgg = np.asarray(maps_Pgg, dtype=np.float64)
    if maps_Pgg.ndim != 3 or maps_Pgg.shape[1] != maps_Pgg.shape[2] or not len(maps_Pgg):
        raise InputError(f"maps: expected (phrases, g, g) with at least one phrase, got {maps_Pgg.shape}")
    if not len(maps_Pgg) == len(boxes) == len(other_boxes):
        raise InputError(f"{len(maps_Pgg)} maps, boxes of {len(boxes)} phrases, others of {len(other_boxes)}: give one of each per phrase")
    for row, (map_gg, own, others) in enumerate(zip(maps_Pgg, boxes, other_boxes, strict=True)):
        if not np.isfinite(map_gg).all():
            raise InputError(f"the map of phrase {row} holds NaN or infinity: it points nowhere; look at the method that made it")
        if not own:
            raise InputError(f"phrase {row} has no box: leave phrases out that nobody marked")
        for x1, y1, x2, y2 in (*own, *others):
            if not (x1 < x2 and y1 < y2):
                raise InputError(f"phrase {row}: ({x1}, {y1}, {x2}, {y2}) is no box; it goes x1, y1, x2, y2 with x1 < x2 and y1 < y2")
    return maps_Pgg
