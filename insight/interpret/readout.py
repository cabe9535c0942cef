"""From values under masks to a value for each player, with its estimated standard error. Pure functions in float64.

G games with the same players, K masks, M players, P pairs of masks or permutations.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from insight.errors import InputError
from insight.interpret.coalitions import ENUMERATED, ShapleyDesign, num_pairs


class Attribution(NamedTuple):
    """What each player is worth, and how far off chance may have put it."""

    value_GM: Tensor  # (G, M) float64
    standard_error_GM: Tensor  # (G, M) float64; 0 where nothing was left to chance


def read_kernel_shap(design: ShapleyDesign, value_GK: Tensor) -> Attribution:
    """Shapley values by weighted least squares that meets both ends (https://arxiv.org/abs/1705.07874, theorem 2).

    Every size of mask has a level of its own in the fit. A value that depends on the size alone gives all players the same, which the ends
    decide already, so with all masks the levels change nothing; with some, they take away what the size does to the value, by far the
    largest part of the error where a picture with few patches is another thing to the model than one with many.

    The error is that of the linearised fit under the design: only drawn strata have one, a pair of masks is one draw, and drawing without
    repetition counts. It does not know of sizes that the budget left out altogether, and near the smallest budget
    it is too small (about 4 of 5 values lie within two errors, from about 8 masks a player on 9 of 10, from 16 on 19 of 20).
    """
    value_GK = value_GK.double()
    kept_KM, players = design.kept_KM.double(), design.kept_KM.shape[1]
    empty_G1, total_G1 = value_GK[:, :1], value_GK[:, 1:2] - value_GK[:, :1]
    if players == 1:
        return Attribution(total_G1, torch.zeros_like(total_G1))
    # the last value is what the others leave of the total, so that only M - 1 are fitted
    size_K = design.kept_KM.sum(dim=1)
    x_KL = _within(size_K, design.weight_K, kept_KM[:, :-1] - kept_KM[:, -1:])
    target_GK = _within(size_K, design.weight_K, (value_GK - empty_G1 - total_G1 * kept_KM[:, -1]).T).T
    weighted_LK = (x_KL * design.weight_K[:, None]).T
    solve_LK = torch.linalg.lstsq(weighted_LK @ x_KL, weighted_LK).solution
    fitted_GL = target_GK @ solve_LK.T
    value_GM = torch.cat([fitted_GL, total_G1 - fitted_GL.sum(dim=1, keepdim=True)], dim=1)
    influence_MK = torch.cat([solve_LK, -solve_LK.sum(dim=0, keepdim=True)])
    residual_GK = target_GK - fitted_GL @ x_KL.T
    # a complement's x is the negative: what a pair moves a value by is the influence of its first mask times the residuals' difference
    moved_GP = residual_GK[:, 2::2] - residual_GK[:, 3::2]
    influence_MP, stratum_P = influence_MK[:, 2::2], design.stratum_K[2::2]
    variance_GM = torch.zeros_like(value_GM)
    for size in stratum_P[stratum_P != ENUMERATED].unique().tolist():
        here = stratum_P == size
        count, population = int(here.sum()), num_pairs(players, size)
        sum_GM = moved_GP[:, here] @ influence_MP[:, here].T
        square_GM = moved_GP[:, here] ** 2 @ (influence_MP[:, here] ** 2).T
        spread_GM = square_GM if count == 1 else (square_GM - sum_GM**2 / count).clamp(min=0) * count / (count - 1)
        variance_GM += (1 - count / population) * spread_GM
    return Attribution(value_GM, (variance_GM * _correction(len(stratum_P), players - 1 + len(size_K.unique()) // 2)).sqrt())


def _within(size_K: Tensor, weight_K: Tensor, column_KX: Tensor) -> Tensor:
    """Less the weighted mean over the masks of the same size; as it is where they weigh nothing (both ends)."""
    sums = torch.zeros(int(size_K.max()) + 1, column_KX.shape[1], dtype=torch.float64).index_add_(0, size_K, column_KX * weight_K[:, None])
    weights = torch.zeros(len(sums), dtype=torch.float64).index_add_(0, size_K, weight_K)
    return column_KX - (sums / weights.clamp(min=torch.finfo(torch.float64).tiny)[:, None])[size_K]


def read_shapley_sampling(order_PM: Tensor, value_GPX: Tensor) -> Attribution:
    """Shapley values as the mean of what players add when they join (https://doi.org/10.1016/j.cor.2008.04.004).

    Args:
        order_PM: Every second permutation is the reverse of the one before.
        value_GPX: (G, P, M + 1), from nobody to everybody.
    """
    added_GPM = value_GPX.double().diff(dim=2)
    place_PM = order_PM.argsort(dim=1)
    of_player_GPM = added_GPM.gather(2, place_PM.expand(len(added_GPM), -1, -1))
    pair_GPM = of_player_GPM.unflatten(1, (-1, 2)).mean(dim=2)  # a permutation and its reverse are one draw
    return Attribution(pair_GPM.mean(dim=1), _standard_error(pair_GPM))


def read_lime(kept_KM: Tensor, value_GK: Tensor, kernel_width: float, ridge: float) -> Attribution:
    """Coefficients of a weighted ridge regression on the masks (https://arxiv.org/abs/1602.04938, equation 1).

    A mask weighs exp(-d^2 / (2 width^2)), d = its cosine distance from the full one: the authors' package for pictures. The intercept is
    not shrunk. The error is the heteroscedastic (sandwich) one.
    """
    x_KM, value_GK = kept_KM.double(), value_GK.double()
    count, players = x_KM.shape
    distance_K = 1 - (x_KM.sum(dim=1) / players).sqrt()
    weight_K = torch.exp(-(distance_K**2) / (2 * kernel_width**2))
    share_K = weight_K / weight_K.sum()
    x_KM = x_KM - share_K @ x_KM
    target_GK = value_GK - (value_GK @ share_K)[:, None]
    weighted_MK = (x_KM * weight_K[:, None]).T
    solve_MK = torch.linalg.solve(weighted_MK @ x_KM + ridge * torch.eye(players, dtype=torch.float64), weighted_MK)
    value_GM = target_GK @ solve_MK.T
    residual_GK = target_GK - value_GM @ x_KM.T
    return Attribution(value_GM, (residual_GK**2 @ (solve_MK**2).T * _correction(count, players + 1)).sqrt())


def read_rise(kept_KM: Tensor, value_GK: Tensor) -> Attribution:
    """Mean value over the masks that keep the player (https://arxiv.org/abs/1806.07421, equation 4).

    Raises:
        InputError: a player is kept by fewer than two masks.
    """
    kept_KM, value_GK = kept_KM.double(), value_GK.double()
    count_M = kept_KM.sum(dim=0)
    if int(count_M.min()) < 2:
        raise InputError(
            f"masks={len(kept_KM)}: a player is kept by {int(count_M.min())} of them; ask for more masks, or keep more in each"
        )
    value_GM = value_GK @ kept_KM / count_M
    variance_GM = (value_GK**2 @ kept_KM / count_M - value_GM**2).clamp(min=0) * count_M / (count_M - 1)
    return Attribution(value_GM, (variance_GM / count_M).sqrt())


def read_occlusion(value_GX: Tensor) -> Attribution:
    """What the whole loses with each player (https://arxiv.org/abs/1311.2901, section 4.2).

    Args:
        value_GX: (G, 1 + M), in the order of ``leave_one_out``.
    """
    value_GM = value_GX[:, :1].double() - value_GX[:, 1:].double()
    return Attribution(value_GM, torch.zeros_like(value_GM))


def _correction(count: int, fitted: int) -> float:
    """Residuals are smaller than errors, because the fit followed them."""
    return count / max(1, count - fitted)


def _standard_error(draw_GPM: Tensor) -> Tensor:
    count = draw_GPM.shape[1]
    return draw_GPM.std(dim=1) / count**0.5 if count > 1 else torch.full_like(draw_GPM[:, 0], float("nan"))
