"""What words and regions do together in a dual encoder, exactly: its score is a product, so each side is encoded on its own.

With ``U(S)`` the embedding of the picture that keeps the segments S and ``V(T)`` that of the caption that keeps the words T, a pair's
value is ``scale * <U(S), V(T)>``. Sums over pairs of masks become sums over each side's masks: 2^I + 2^W encodings, not 2^(I + W).

I segments, W words, K masks of the picture, L masks of the caption, E width of the embedding, s and t sizes of masks. float64 throughout.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from insight.errors import InputError
from insight.interpret.coalitions import all_masks, random_masks
from insight.interpret.explain import Subject, Values
from insight.interpret.families import CrossAttention, DualEncoder, Lacks
from insight.interpret.masks import MaskedRows
from insight.interpret.perturbation import TOKEN_DROP, segment_labels, word_labels
from insight.interpret.players import num_players, shared
from insight.stages import load

LARGEST_BY_DEFAULT = 2**12  # encodings of one pair; 16 segments and 8 words need 2^16 + 2^8


class JointShapley(NamedTuple):
    """Shapley values of segments and words as players of one game. They add up to the whole pair's value minus that of nothing."""

    image_I: Tensor
    text_W: Tensor


class Interactions(NamedTuple):
    """Weighted Banzhaf values: every player is there with the probability that was asked for."""

    pair_IW: Tensor  # what segment and word add together beyond what each adds alone
    image_I: Tensor  # what the segment adds on average
    text_W: Tensor


def text_share(image_RM: Tensor, text_RW: Tensor) -> Tensor:
    """Part of the text in the sum of absolute Shapley values, (R,): 0 = only the picture counts, 1 = only the words; NaN if nothing does.

    MM-SHAP, https://arxiv.org/abs/2212.08158, section 3.2. Takes players or what they are spread over: patches and tokens, any shape.
    """
    image_R, text_R = image_RM.abs().flatten(1).sum(dim=1), text_RW.abs().flatten(1).sum(dim=1)
    return text_R / (image_R + text_R)


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
            f"exact values of {segments} segments and {words} words take 2^{segments} + 2^{words} = {encodings:,} encodings of one pair, "
            f"more than max_encodings={max_encodings:,}: take fewer segments, sample (joint KernelSHAP), or raise max_encodings outside of "
            "training"
        )
    return encodings


def joint_shapley(image_KE: Tensor, text_LE: Tensor, scale: float) -> JointShapley:
    """Exact Shapley values of segments and words together.

    A segment's value is the sum over sizes s, t of ``w(s + t) <sum of U(S + i) - U(S) over |S| = s, sum of V(T) over |T| = t>`` with
    ``w(k) = k! (n - k - 1)! / n!``: the Shapley weight depends on sizes alone.

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
        [math.factorial(size) * math.factorial(players - size - 1) / math.factorial(players) for size in range(players)],
        dtype=torch.float64,
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


# --- as methods of explain() ---
def exact_joint_shapley(subject: Subject, segments: int = 9, removal: str = TOKEN_DROP, max_encodings: int = LARGEST_BY_DEFAULT) -> Values:
    """Exact Shapley values of segments and tokens as players of one game, with the share of the text (MM-SHAP).

    The cost doubles with every player, so a row that would take more than ``max_encodings`` is refused before anything is computed.
    """
    masked, words_R, scale = _sides(subject, segments, removal)
    check_joint_size(segments, int(words_R.max()), max_encodings)
    image_KM = all_masks(segments)
    seen: dict[int, Tensor] = {}
    value_RM, value_RW = torch.zeros(len(subject), segments), torch.zeros(len(subject), masked.num_words)
    for row, (picture, words) in enumerate(zip(masked.picture_R.tolist(), words_R.tolist(), strict=True)):
        if picture not in seen:
            seen = {picture: masked.image_vectors(picture, image_KM)}  # captions of a picture stand side by side: keep one
        found = joint_shapley(seen[picture], masked.text_vectors(row, _padded(all_masks(words), masked.num_words)), scale)
        value_RM[row], value_RW[row, :words] = found.image_I.float(), found.text_W.float()
    return _values(subject, masked, value_RM, value_RW, None, {"text_share": text_share(value_RM, value_RW)})


def banzhaf_interactions(
    subject: Subject, segments: int = 16, removal: str = TOKEN_DROP, keep: float = 0.5, masks: int = 256, seed: int = 0
) -> Values:
    """What each token and each segment add together, in closed form, beside what each adds on average; see ``interactions``.

    Args:
        keep: Probability that a player is there: high = close to the whole picture and caption.
        masks: Per side; a side with fewer different masks is computed exactly.
    """
    masked, words_R, scale = _sides(subject, segments, removal)
    image = interaction_masks(segments, keep, masks, seed)
    seen: dict[int, Tensor] = {}
    value_RM, value_RW = torch.zeros(len(subject), segments), torch.zeros(len(subject), masked.num_words)
    pair_RWM = torch.zeros(len(subject), masked.num_words, segments)
    for row, (picture, words) in enumerate(zip(masked.picture_R.tolist(), words_R.tolist(), strict=True)):
        if picture not in seen:
            seen = {picture: masked.image_vectors(picture, image.kept_KM)}
        text = interaction_masks(words, keep, masks, seed)
        text_LE = masked.text_vectors(row, _padded(text.kept_KM, masked.num_words))
        found = interactions(image, seen[picture], text, text_LE, scale)
        value_RM[row], value_RW[row, :words], pair_RWM[row, :words] = found.image_I.float(), found.text_W.float(), found.pair_IW.T.float()
    return _values(subject, masked, value_RM, value_RW, pair_RWM, {})


def _sides(subject: Subject, segments: int, removal: str) -> tuple[MaskedRows, Tensor, float]:
    family = subject.family
    if not isinstance(family, DualEncoder) or isinstance(family, CrossAttention):
        raise Lacks(
            f"the score of a {family.name} is no product of a picture's and a text's embedding; sample it with joint KernelSHAP, or "
            "explain the towers alone: explain(DualEncoder(model), ...)"
        )
    word_RT = word_labels(family, subject.rows)
    words_R = num_players(word_RT)
    if int(words_R.min()) < 1:
        raise InputError(f"row {int(words_R.argmin())}: the text has no word that could be left out")
    masked = MaskedRows(family, subject.rows, segment_labels(family, segments), word_RT, load(removal, "removal"))
    return masked, words_R, family.model.scale.item()


def _padded(kept_KW: Tensor, words: int) -> Tensor:
    return torch.nn.functional.pad(kept_KW, (0, words - kept_KW.shape[1]), value=True)


def _values(
    subject: Subject, masked: MaskedRows, value_RM: Tensor, value_RW: Tensor, pair_RWM: Tensor | None, diagnostics: dict[str, Tensor]
) -> Values:
    assert masked.segment_P is not None and masked.word_RT is not None, "_sides() gave both"
    subject.forward_rows += masked.forward_rows
    score_R = subject.score(subject.inputs)
    image_RP, text_RT = shared(value_RM, masked.segment_P), shared(value_RW, masked.word_RT)
    pairs_RTP = None
    if pair_RWM is not None:
        pair_RWP = shared(pair_RWM.flatten(0, 1), masked.segment_P).unflatten(0, pair_RWM.shape[:2])
        pair_RPW, patches = pair_RWP.transpose(1, 2), pair_RWP.shape[2]
        pair_RPT = shared(pair_RPW.flatten(0, 1), masked.word_RT.repeat_interleave(patches, dim=0)).unflatten(0, pair_RPW.shape[:2])
        pairs_RTP = pair_RPT.transpose(1, 2).to(score_R.device)
    return Values(score_R, image_RP.to(score_R.device), text_RT.to(score_R.device), pairs_RTP, diagnostics)


def _log2(count: int) -> int:
    players = count.bit_length() - 1
    if count < 2 or 2**players != count:
        raise InputError(f"{count} embeddings are not those of all masks: their number is a power of two from 2 on")
    return players
