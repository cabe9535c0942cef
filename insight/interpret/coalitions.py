"""Which masks to ask for. M players, K masks, P permutations; True = kept. Every choice by lot is a function of its seed alone."""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from insight.errors import InputError

ENUMERATED = -1
LARGEST_ENUMERATION = 20  # players: 2 ** 20 masks of 20 bytes


class ShapleyDesign(NamedTuple):
    """Masks for KernelSHAP. The first two are the empty and the full one, which the fit meets exactly."""

    kept_KM: Tensor  # (K, M) bool
    weight_K: Tensor  # (K,) float64, what the mask stands for in the least squares; 0 for the first two
    stratum_K: Tensor  # (K,) int64: ENUMERATED, or the smaller size of the pair (a mask and its complement stand side by side)


def all_masks(players: int) -> Tensor:
    """(2 ** M, M); row r keeps player i if bit i of r is set.

    Raises:
        InputError: no player, or more than 20.
    """
    if not 1 <= players <= LARGEST_ENUMERATION:
        raise InputError(
            f"{players} players: all masks are listed for 1 to {LARGEST_ENUMERATION}; sample them, or take fewer segments and words"
        )
    return (torch.arange(2**players)[:, None] >> torch.arange(players)) & 1 > 0


def leave_one_out(players: int) -> Tensor:
    """(1 + M, M): everything, then everything but player 0, 1, ..."""
    _needs_players(players)
    return torch.cat([torch.ones(1, players, dtype=torch.bool), ~torch.eye(players, dtype=torch.bool)])


def random_masks(players: int, count: int, keep: float, seed: int) -> Tensor:
    """(K, M): every player is kept with probability ``keep``, independently."""
    _needs_players(players)
    if count < 1 or not 0 < keep < 1:
        raise InputError(
            f"masks={count}, keep={keep}: ask for at least 1 mask, and keep players with a probability between 0 and 1, e.g. 0.5"
        )
    return torch.rand(count, players, generator=torch.Generator().manual_seed(seed)) < keep


def permutation_masks(players: int, permutations: int, seed: int) -> tuple[Tensor, Tensor]:
    """Orders in which players join, each followed by its reverse: (P, M) int64, and their masks (P, M + 1, M), from nobody to everybody.

    The reverse halves what is left of the variance (https://arxiv.org/abs/2104.12199, section 4.1).

    Raises:
        InputError: the number is not even or below 2.
    """
    _needs_players(players)
    if permutations < 2 or permutations % 2:
        raise InputError(f"permutations={permutations}: each comes with its reverse, so ask for an even number from 2, e.g. 16")
    generator = torch.Generator().manual_seed(seed)
    half = torch.rand(permutations // 2, players, generator=generator).argsort(dim=1)
    order_PM = torch.stack([half, half.flip(1)], dim=1).flatten(0, 1)
    return order_PM, joining(order_PM)


def joining(order_PM: Tensor) -> Tensor:
    """(P, M) players in the order in which they join -> masks (P, M + 1, M), from nobody to everybody."""
    place_PM = order_PM.argsort(dim=1)
    return place_PM[:, None, :] < torch.arange(order_PM.shape[1] + 1, device=order_PM.device)[:, None]


def smallest_budget(players: int) -> int:
    """Masks without which KernelSHAP has nothing to draw from: every one, or six per player."""
    return min(2**players, 6 * players + 2)


def shapley_design(players: int, budget: int, seed: int) -> ShapleyDesign:
    """At most ``budget`` masks, chosen for KernelSHAP (https://arxiv.org/abs/1705.07874, theorem 2).

    The sizes that weigh most, 1 and M - 1, then 2 and M - 2, ..., are listed as long as the budget would ask for about all of their masks
    anyway. The others are strata: each gets its share of what is left, drawn without repetition, always with the complement
    (https://arxiv.org/abs/2012.01536, section 4.2). A budget of 2 ** M or more lists everything: the values are then exact.

    Raises:
        InputError: no player, or a budget below ``smallest_budget``.
    """
    _needs_players(players)
    if budget < smallest_budget(players):
        raise InputError(f"budget={budget}: KernelSHAP over {players} players needs at least {smallest_budget(players)} masks")
    mass = {size: _mass(players, size) for size in range(1, players // 2 + 1)}
    parts, pairs = [], (budget - 2) // 2
    for size in list(mass):
        if size > 1 and pairs * mass[size] < num_pairs(players, size) * sum(mass.values()):
            break
        parts.append((_subsets(players, size), mass.pop(size), ENUMERATED))
        pairs -= num_pairs(players, size)
    counts = _apportion(pairs, mass)
    drawn = [size for size, count in counts.items() if count]
    scale = sum(mass.values()) / sum(mass[size] for size in drawn) if drawn else 1.0  # a size without a draw is stood for by the others
    generator = torch.Generator().manual_seed(seed)
    parts += [(_draw(players, size, counts[size], generator), scale * mass[size], size) for size in drawn]
    ends = torch.tensor([[False], [True]]).expand(2, players)
    kept, weight, stratum = [ends], [torch.zeros(2, dtype=torch.float64)], [torch.full((2,), ENUMERATED)]
    for half, stands_for, name in parts:
        rows = 2 * len(half)
        kept.append(torch.stack([half, ~half], dim=1).flatten(0, 1))
        weight.append(torch.full((rows,), stands_for / rows, dtype=torch.float64))
        stratum.append(torch.full((rows,), name))
    return ShapleyDesign(torch.cat(kept), torch.cat(weight), torch.cat(stratum))


def num_pairs(players: int, size: int) -> int:
    """Pairs of a mask of this size and its complement."""
    return math.comb(players, size) // (2 if 2 * size == players else 1)


def _mass(players: int, size: int) -> float:
    """Weight that the Shapley kernel gives to all masks of this size and of the complement's, but for a constant."""
    return (1 if 2 * size == players else 2) / (size * (players - size))


def _subsets(players: int, size: int) -> Tensor:
    """One mask of every pair: (pairs, M)."""
    rows = torch.tensor(list(itertools.islice(itertools.combinations(range(players), size), num_pairs(players, size))))
    return torch.zeros(len(rows), players, dtype=torch.bool).scatter_(1, rows, True)


def _draw(players: int, size: int, count: int, generator: torch.Generator) -> Tensor:
    """``count`` different pairs of this size, one mask of each."""
    found = torch.zeros(0, players, dtype=torch.bool)
    while len(found) < count:
        chosen = torch.rand(2 * count, players, generator=generator).topk(size, dim=1).indices
        more = torch.zeros(len(chosen), players, dtype=torch.bool).scatter_(1, chosen, True)
        if 2 * size == players:
            more = torch.where(more[:, :1], more, ~more)  # the complement is of the same size: the pair's name is the half with player 0
        found = torch.unique(torch.cat([found, more]), dim=0)
    return found[torch.randperm(len(found), generator=generator)[:count]]


def _apportion(pairs: int, mass: dict[int, float]) -> dict[int, int]:
    """Whole numbers of pairs in proportion to the masses: the largest remainders are rounded up."""
    total = sum(mass.values())
    share = {size: pairs * part / total for size, part in mass.items()}
    counts = {size: int(part) for size, part in share.items()}
    for size in sorted(counts, key=lambda size: counts[size] - share[size])[: pairs - sum(counts.values())]:
        counts[size] += 1
    return counts


def _needs_players(players: int) -> None:
    if players < 1:
        raise InputError("there is nothing to leave out: the picture has no segment, or the caption no word")
