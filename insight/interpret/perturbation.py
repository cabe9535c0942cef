"""Methods that leave parts out and ask again: KernelSHAP, Shapley sampling, LIME, RISE, occlusion.

Players are segments of the picture (``segments``; 0 = it stays whole), the tokens of the text (``words``), or both together: then a mask
leaves out some of each, and the values of all share one unit. A token's or patch's value is its even share of its player's.

Settings that all of them take:

- ``segments``: a square number; a grid of so many rectangles of patches.
- ``words``: True = every token but [START] and [END] is a player.
- ``removal``: import path of a function of ``masks.py``: what a removed patch shows.
- ``bfloat16``: True = the values come from a copy of the weights in that precision.

Every method reports ``standard_error``, the mean over a row's players, in units of the score (0 = nothing was left to chance), and
``players``. R rows, K masks, M players, P patches, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from insight.errors import InputError
from insight.interpret.coalitions import leave_one_out, permutation_masks, random_masks, shapley_design
from insight.interpret.explain import Subject, Values
from insight.interpret.families import Family, Lacks, Rows
from insight.interpret.masks import Game, MaskedRows
from insight.interpret.players import copied, grid_segments, num_players, shared, token_words
from insight.interpret.readout import Attribution, read_kernel_shap, read_lime, read_occlusion, read_rise, read_shapley_sampling
from insight.stages import load

TOKEN_DROP = "insight.interpret.masks.token_drop"


def kernel_shap(
    subject: Subject,
    segments: int = 16,
    words: bool = False,
    removal: str = TOKEN_DROP,
    bfloat16: bool = False,
    budget: int = 256,
    seed: int = 0,
) -> Values:
    """Shapley values by weighted least squares; exact once ``budget`` reaches 2^players. See ``shapley_design``, ``read_kernel_shap``."""

    def play(game: Game, players: int) -> Attribution:
        design = shapley_design(players, budget, seed)
        return read_kernel_shap(design, game(design.kept_KM))

    return _play(subject, segments, words, removal, bfloat16, play, shared)


def shapley_sampling(
    subject: Subject,
    segments: int = 16,
    words: bool = False,
    removal: str = TOKEN_DROP,
    bfloat16: bool = False,
    permutations: int = 16,
    seed: int = 0,
) -> Values:
    """Shapley values as means over orders in which players join; about ``permutations * (players - 1)`` masks."""

    def play(game: Game, players: int) -> Attribution:
        order_PM, kept_PXM = permutation_masks(players, permutations, seed)
        value_RK = game(kept_PXM.flatten(0, 1))
        return read_shapley_sampling(order_PM, value_RK.unflatten(1, kept_PXM.shape[:2]))

    return _play(subject, segments, words, removal, bfloat16, play, shared)


def lime(
    subject: Subject,
    segments: int = 16,
    words: bool = False,
    removal: str = TOKEN_DROP,
    bfloat16: bool = False,
    masks: int = 256,
    kernel_width: float = 0.25,
    ridge: float = 1.0,
    seed: int = 0,
) -> Values:
    """Coefficients of a local ridge regression; see ``read_lime``."""

    def play(game: Game, players: int) -> Attribution:
        kept_KM = random_masks(players, masks, keep=0.5, seed=seed)
        kept_KM[0] = True  # the authors' package always asks for the whole
        return read_lime(kept_KM, game(kept_KM), kernel_width, ridge)

    return _play(subject, segments, words, removal, bfloat16, play, shared)


def rise(
    subject: Subject,
    segments: int = 16,
    words: bool = False,
    removal: str = TOKEN_DROP,
    bfloat16: bool = False,
    masks: int = 256,
    keep: float = 0.5,
    seed: int = 0,
) -> Values:
    """Mean score over random masks that keep the player: a level, not a share, so every patch or token gets the player's own.

    RISE with whole segments for masks: none is blurred or shifted, since patches are there or not.
    """

    def play(game: Game, players: int) -> Attribution:
        kept_KM = random_masks(players, masks, keep, seed)
        return read_rise(kept_KM, game(kept_KM))

    return _play(subject, segments, words, removal, bfloat16, play, copied)


def occlusion(subject: Subject, segments: int = 16, words: bool = False, removal: str = TOKEN_DROP, bfloat16: bool = False) -> Values:
    """What the score loses with each player alone: players + 1 masks."""

    def play(game: Game, players: int) -> Attribution:
        return read_occlusion(game(leave_one_out(players)))

    return _play(subject, segments, words, removal, bfloat16, play, shared)


def _play(
    subject: Subject,
    segments: int,
    words: bool,
    removal: str,
    bfloat16: bool,
    play: Callable[[Game, int], Attribution],
    spread: Callable[[Tensor, Tensor], Tensor],
) -> Values:
    """One game for all rows with equally many words: they share their masks."""
    family, rows = subject.family, subject.rows
    if not segments and not words:
        raise InputError("segments=0, words=False: nobody plays; ask for segments, e.g. 16, for words, or for both")
    segment_P = segment_labels(family, segments) if segments else None
    word_RT = word_labels(family, rows) if words else None
    count_R = torch.zeros(len(subject), dtype=torch.int64) if word_RT is None else num_players(word_RT)
    if segment_P is None and int(count_R.min()) < 1:
        raise InputError(f"row {int(count_R.argmin())}: the text has no word that could be left out")
    value_RM, error_R = torch.zeros(len(subject), segments + int(count_R.max())), torch.zeros(len(subject))
    for count in count_R.unique().tolist():
        here_r = (count_R == count).nonzero()[:, 0]
        masked = MaskedRows(
            family,
            Rows(*(None if tensor is None else tensor[here_r.to(tensor.device)] for tensor in rows)),
            segment_P,
            None if word_RT is None or not count else word_RT[here_r],
            load(removal, "removal"),
            torch.bfloat16 if bfloat16 else None,
        )
        found = play(game_of(masked), segments + count)
        value_RM[here_r, : segments + count] = found.value_GM.float()
        error_R[here_r] = found.standard_error_GM.mean(dim=1).float()
        subject.forward_rows += masked.forward_rows
    score_R = subject.score(subject.inputs)
    return Values(
        score_R,
        None if segment_P is None else spread(value_RM[:, :segments], segment_P).to(score_R.device),
        None if word_RT is None else spread(value_RM[:, segments:], word_RT).to(score_R.device),
        diagnostics={"standard_error": error_R, "players": segments + count_R},
    )


def segment_labels(family: Family, segments: int) -> Tensor:
    """(P,) on the CPU.

    Raises:
        Lacks: the family reads no picture.
        InputError: a number of segments that its grid is not cut into.
    """
    if family.grid is None:
        raise Lacks(f"a {family.name} reads no picture that segments could be left out of: ask for segments=0 and words=True")
    return grid_segments(family.grid, segments)


def word_labels(family: Family, rows: Rows) -> Tensor:
    """(R, T) on the CPU.

    Raises:
        Lacks: the family reads no text.
    """
    if rows.tokens_RT is None:
        raise Lacks(f"a {family.name} reads no text that words could be left out of: ask for words=False")
    return token_words(rows.tokens_RT).cpu()


def game_of(masked: MaskedRows) -> Game:
    """The rows' scores as a game: the segments come first, then the words."""
    segments, words = masked.num_segments, masked.num_words

    def game(kept: Tensor) -> Tensor:
        return masked.scores(kept[..., :segments] if segments else None, kept[..., segments:] if words else None)

    return game
