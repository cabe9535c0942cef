"""How tokens know their places without parameters: sinusoids, rotations, linear biases.

B batch, T tokens, S keys, A axes (1 = a text, 2 = rows and columns of a picture), D width, H heads, K width of one head.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from insight.errors import InputError

BASE = 10_000.0  # of the longest wave, in both papers


def waves(place_TA: Tensor, width: int) -> Tensor:
    """Angles ``place * BASE^(-2i / width)`` for i = 0 .. width/2 - 1: (..., T, A) -> (..., T, width / 2). Each axis gets an equal share.

    Raises:
        InputError: the width cannot be shared so.
    """
    axes = place_TA.shape[-1]
    if width % (2 * axes):
        raise InputError(f"positions of {axes} axes need a width that {2 * axes} divides, not {width}: choose another dim or other heads")
    pairs = width // (2 * axes)
    rate_P = BASE ** (-torch.arange(pairs, device=place_TA.device, dtype=torch.float32) / pairs)
    return (place_TA.float()[..., None] * rate_P).flatten(-2)


def sinusoids(place_TA: Tensor, width: int) -> Tensor:
    """(T, A) -> (T, D): all sines, then all cosines, of https://arxiv.org/abs/1706.03762, section 3.5."""
    angle_TK = waves(place_TA, width)
    return torch.cat([angle_TK.sin(), angle_TK.cos()], dim=-1)


class Rotation(NamedTuple):
    """A turn of every pair of channels (i, i + K/2) by an angle of the token's place: https://arxiv.org/abs/2104.09864, equation 34."""

    cos_TK: Tensor  # (T, K), or (B, 1, T, K) where samples differ
    sin_TK: Tensor

    def __call__(self, x_BHTK: Tensor) -> Tensor:
        """In x's precision."""
        first, second = x_BHTK.chunk(2, dim=-1)
        turned_BHTK = x_BHTK * self.cos_TK + torch.cat([-second, first], dim=-1) * self.sin_TK
        return turned_BHTK.to(x_BHTK.dtype)


def rotation(place_TA: Tensor, width: int) -> Rotation:
    """Of tokens at these places, (T, A) or (B, T, A), for heads of this width.

    Raises:
        InputError: the width of a head cannot be shared by the axes.
    """
    half_TK = waves(place_TA, width)
    angle_TK = torch.cat([half_TK, half_TK], dim=-1)
    if place_TA.ndim == 3:
        angle_TK = angle_TK[:, None]
    return Rotation(angle_TK.cos(), angle_TK.sin())


def text_places(start: int, length: int, device: torch.device) -> Tensor:
    """(T, 1): ``start``, ``start + 1``, ..."""
    return torch.arange(start, start + length, device=device)[:, None]


def grid_places(grid_size: int, device: torch.device) -> Tensor:
    """(1 + N, 2): row and column of each patch, counted from one; the class token is at (0, 0)."""
    line_g = torch.arange(1, grid_size + 1, device=device)
    return torch.cat([torch.zeros(1, 2, dtype=line_g.dtype, device=device), torch.cartesian_prod(line_g, line_g).reshape(-1, 2)])


def alibi_slopes(heads: int, device: torch.device) -> Tensor:
    """(H,): 2^(-8h / H) for h = 1 .. H where H is a power of two; else those of the next lower power, then every second one of the next
    higher: https://arxiv.org/abs/2108.12409, section 3 and the authors' code."""
    whole = 2 ** math.floor(math.log2(heads))
    slopes = [2.0 ** (-8 * head / whole) for head in range(1, whole + 1)]
    slopes += [2.0 ** (-4 * head / whole) for head in range(1, 2 * whole + 1, 2)][: heads - whole]
    return torch.tensor(slopes, device=device)


def score_bias(num_queries: int, num_keys: int, causal: bool, slopes_H: Tensor | None, device: torch.device) -> Tensor | None:
    """What is added to the scores, (1 or H, T, S) float32; -inf = may not be read. None = nothing.

    The last query stands where the last key stands, so that the queries are the newest tokens of a longer text.
    """
    if slopes_H is None and (not causal or num_queries == 1):
        return None
    query_T = torch.arange(num_keys - num_queries, num_keys, device=device)
    behind_TS = query_T[:, None] - torch.arange(num_keys, device=device)
    bias_HTS = torch.zeros(1, num_queries, num_keys, device=device) if slopes_H is None else -slopes_H[:, None, None] * behind_TS.abs()
    return bias_HTS.masked_fill(behind_TS < 0, -math.inf) if causal else bias_HTS
