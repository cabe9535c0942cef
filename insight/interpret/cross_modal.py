"""What words and regions do together in a dual encoder, exactly: its score is a product, so each side is encoded on its own.

With ``U(S)`` the embedding of the picture that keeps the segments S and ``V(T)`` that of the caption that keeps the words T, a pair's
value is ``scale * <U(S), V(T)>``. Sums over all pairs of masks become sums over each side's masks: 2^I + 2^W encodings instead of 2^(I + W).

I segments, W words, K masks of the picture, L masks of the caption, E width of the embedding, s and t sizes of masks. float64 throughout.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from insight.errors import InputError
from insight.interpret.coalitions import all_masks, random_masks

LARGEST_BY_DEFAULT = 2**12  # encodings of one pair; 16 segments and 8 words need 2^16 + 2^8


class JointShapley(NamedTuple):
    """Shapley values of segments and words as players of one game. They add up to the whole pair's value minus that of nothing."""

    image_I: Tensor
    text_W: Tensor

    @property
    def text_share(self) -> Tensor:
        """Part of the words in the sum of absolute values (MM-SHAP, https://arxiv.org/abs/2212.08158, section 3.2); NaN if all are 0."""
        image, text = self.image_I.abs().sum(), self.text_W.abs().sum()
        return text / (image + text)


class Interactions(NamedTuple):
    """Weighted Banzhaf values: every player is there with the probability that was asked for."""

    pair_IW: Tensor  # what segment and word add together beyond what each adds alone
    image_I: Tensor  # what the segment adds on average
    text_W: Tensor


def check_joint_size(segments: int, words: int, max_encodings: int = LARGEST_BY_DEFAULT) -> int:
    """Encodings that exact values of one pair take.

    Raises:
        InputError: nobody to explain, or more than ``max_encodings``: an exact answer doubles in cost with every player.
    """
    if segments < 1 or words < 1:
        raise InputError(f"{segments} segments and {words} words: a joint explanation needs at least one of each")
    encodings = 2**segments + 2**words
    if encodings > max_encodings:
        raise InputError(
            f"exact values of {segments} segments and {words} words take 2^{segments} + 2^{words} = {encodings:,} encodings of one pair, more "
            f"than max_encodings={max_encodings:,}: take fewer segments, sample (joint KernelSHAP), or raise max_encodings outside of training"
        )
    return encodings


def joint_shapley(image_KE: Tensor, text_LE: Tensor, scale: float) -> JointShapley:
    """Exact Shapley values of segments and words together.

    A segment's value is the sum over sizes s, t of ``w(s + t) <sum of its additions U(S + i) - U(S) over |S| = s, sum of V(T) over |T| = t>``
    with ``w(k) = k! (n - k - 1)! / n!``: the Shapley weight depends on sizes alone.

    Args:
        image_KE: Embeddings under ``all_masks(I)``, in its order; K = 2^I.
        text_LE: Embeddings under ``all_masks(W)``; L = 2^W.
        scale: Factor of the dot product.
    """
    segments, words = _log2(len(image_KE)), _log2(len(text_LE))
    players = segments + words
    image_added_IsE, image_sum_sE = _by_size(image_KE.double())
    text_added_WtE, text_sum_tE = _by_size(text_LE.double())
    weight = torch.tensor(
        [math.factorial(size) * math.factorial(players - size - 1) / math.factorial(players) for size in range(players)], dtype=torch.float64
    )

    def values(added_MsE: Tensor, other_tE: Tensor) -> Tensor:
        product_Mst = added_MsE @ other_tE.T
        size_st = torch.arange(added_MsE.shape[1])[:, None] + torch.arange(len(other_tE))
        return scale * (product_Mst * weight[size_st]).sum(dim=(1, 2))

    return JointShapley(values(image_added_IsE, text_sum_tE), values(text_added_WtE, image_sum_sE))


def _by_size(embedding_KE: Tensor) -> tuple[Tensor, Tensor]:
    """For each player and size s of a mask without it, the sum of what it adds (M, s, E); the sum of all masks of each size (s, E)."""
    players = _log2(len(embedding_KE))
    kept_KM = all_masks(players)
    size_K = kept_KM.sum(dim=1)
    total_sE = torch.zeros(players + 1, embedding_KE.shape[1], dtype=torch.float64).index_add_(0, size_K, embedding_KE)
    with_sME = torch.stack([kept_KM[size_K == size].T.double() @ embedding_KE[size_K == size] for size in range(players + 1)])
    without_sME = total_sE[:, None] - with_sME
    return (with_sME[1:] - without_sME[:-1]).transpose(0, 1), total_sE


class Side(NamedTuple):
    """Masks of one side for interactions, and what each stands for."""

    kept_KM: Tensor
    weight_K: Tensor  # (K,) float64, sums to 1


def interaction_masks(players: int, keep: float, budget: int, seed: int) -> Side:
    """All masks, weighted by how likely they are when every player is kept with probability ``keep``; else ``budget`` masks drawn so.

    Raises:
        InputError: a budget that cannot determine the players, or ``keep`` outside of 0 to 1.
    """
    if not 0 < keep < 1:
        raise InputError(f"keep={keep}: a probability between 0 and 1, e.g. 0.5 (0.5 is Banzhaf's)")
    if budget < min(2**players, 2 * (players + 1)):
        raise InputError(f"masks={budget}: {players} players need at least {min(2**players, 2 * (players + 1))}")
    if 2**players <= budget:
        kept_KM = all_masks(players)
        size_K = kept_KM.sum(dim=1).double()
        return Side(kept_KM, keep**size_K * (1 - keep) ** (players - size_K))
    kept_KM = random_masks(players, budget, keep, seed)
    return Side(kept_KM, torch.full((budget,), 1 / budget, dtype=torch.float64))


def interactions(image: Side, image_KE: Tensor, text: Side, text_LE: Tensor, scale: float) -> Interactions:
    """Word x segment interactions in closed form: ``scale * <slope of U in segment i, slope of V in word j>``.

    The slopes are those of a weighted linear fit of the embeddings to the masks. With all masks they are the expected additions
    ``E[U(S + i) - U(S)]``, and the product is what the weighted regression on all 2^(I + W) pairs of FIxLIP finds
    (https://arxiv.org/abs/2508.05430, cross-modal weighted Banzhaf). With drawn masks it is the least-squares fit of
    ``(1, segments) x (1, words)`` to all K * L pairs of masks, without ever forming a pair.
    """
    image_mean_E, image_slope_IE = _fit(image, image_KE)
    text_mean_E, text_slope_WE = _fit(text, text_LE)
    pair_IW = image_slope_IE @ text_slope_WE.T
    return Interactions(scale * pair_IW, scale * image_slope_IE @ text_mean_E, scale * text_slope_WE @ image_mean_E)


def _fit(side: Side, embedding_KE: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (E,) and slopes (M, E) of the embedding in the masks."""
    embedding_KE, kept_KM = embedding_KE.double(), side.kept_KM.double()
    mean_E = side.weight_K @ embedding_KE
    centred_KM = kept_KM - side.weight_K @ kept_KM
    root_K1 = side.weight_K.sqrt()[:, None]
    return mean_E, torch.linalg.lstsq(root_K1 * centred_KM, root_K1 * (embedding_KE - mean_E)).solution


def _log2(count: int) -> int:
    players = count.bit_length() - 1
    if count < 2 or 2**players != count:
        raise InputError(f"{count} embeddings are not those of all masks: their number is a power of two from 2 on")
    return players
