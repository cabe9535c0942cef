"""One evaluator for everything that leaves parts out: masks over segments and words in, scores of the model out.

Equal masks are computed once per picture or caption, rows go through the model together, and where removed patches are left out of the
sequence, masks that keep equally many share a pass and cost less than the whole picture.

R rows (a picture, a text or a pair each), K masks, M segments, W words, N = 1 + P image tokens (row 0 = class token), P patches,
p patches kept, T text tokens, U different masked pictures, V different masked texts, J different pairs of them, D width. True = kept.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional

from insight.errors import InputError
from insight.interpret.families import Family, Inputs, Lacks, Rows
from insight.interpret.players import NOBODY, num_players
from insight.interpret.untouched import evaluating

TOKENS_PER_PASS = 8192
BLUR = 1 / 8  # standard deviation of the blur, as a part of the picture's side

Game = Callable[[Tensor], Tensor]  # masks over M players, (K, M) for all rows or (R, K, M) -> what each is worth, (R, K)
Removal = Callable[[Tensor], Tensor | None]


# --- what a removed patch shows: (R, 3, H, W) -> the same, or None. The function's name goes into the metric's ---
def token_drop(pixels_R3HW: Tensor) -> Tensor | None:
    """Nothing: it is left out of the sequence, the others keep their positions (https://arxiv.org/abs/2204.08945)."""
    return None


def pixels_zero(pixels_R3HW: Tensor) -> Tensor | None:
    """Zero after normalisation: the mean colour of ImageNet."""
    return torch.zeros_like(pixels_R3HW)


def pixels_mean(pixels_R3HW: Tensor) -> Tensor | None:
    """The picture's own mean colour."""
    return pixels_R3HW.mean(dim=(2, 3), keepdim=True).expand_as(pixels_R3HW)


def pixels_blur(pixels_R3HW: Tensor) -> Tensor | None:
    """The picture, blurred by a Gaussian with a standard deviation of an eighth of its side."""
    side = pixels_R3HW.shape[-1]
    sigma = BLUR * side
    size = min(2 * round(2 * sigma) + 1, 2 * side - 1)  # the edge is mirrored, and has no more to mirror
    return functional.gaussian_blur(pixels_R3HW, [size, size], [sigma, sigma])


class MaskedRows:
    """Rows of which parts are left out.

    The model is never changed: it computes in evaluation mode, which is left again, and another precision computes on a copy.

    Args:
        family: How a row is scored.
        rows: What is explained.
        segment_P: Label of every patch: ``grid_segments`` or any other partition; None = pictures stay whole.
        word_RT: Label of every token: ``token_words`` or ``whole_words``; None = texts stay whole.
        removal: What a removed patch shows: ``token_drop``, ``pixels_zero``, ``pixels_mean``, ``pixels_blur`` or any function like these.
            A removed word is always left out; the other words keep their positions.
        dtype: Precision of the weights, e.g. ``torch.bfloat16``; None = the model's own.
        tokens_per_pass: Tokens that go through a tower at once: memory against overhead.

    Attributes:
        num_segments, num_words: Players of each kind; a row with fewer words than ``num_words`` ignores the columns behind its own.
        forward_rows: Rows that went through the model so far: masked pictures, texts, or pairs that meet, whichever are most.

    Raises:
        InputError: labels that do not fit, or a picture that is not finite.
        Lacks: segments for a family without pictures, words for one without text.
    """

    def __init__(
        self,
        family: Family,
        rows: Rows,
        segment_P: Tensor | None = None,
        word_RT: Tensor | None = None,
        removal: Removal = token_drop,
        dtype: torch.dtype | None = None,
        tokens_per_pass: int = TOKENS_PER_PASS,
    ) -> None:
        _check(family, rows, segment_P, word_RT)
        self.family = family if dtype is None else _in_precision(family, dtype)
        self.rows = rows if dtype is None or rows.pixels_R3HW is None else rows._replace(pixels_R3HW=rows.pixels_R3HW.to(dtype))
        self.segment_P, self.word_RT = (None if label is None else label.cpu() for label in (segment_P, word_RT))
        self.num_segments = 0 if segment_P is None else int(num_players(segment_P))
        self.num_words = 0 if word_RT is None else int(num_players(word_RT).max())
        self.removal = removal
        self.tokens_per_pass = tokens_per_pass
        self.picture_R = _owners(rows.pixels_R3HW)
        self.text_R = _owners(rows.tokens_RT, rows.text_mask_RT, word_RT)
        self.forward_rows = 0

    def __len__(self) -> int:
        return next(len(tensor) for tensor in self.rows if tensor is not None)

    def scores(self, image_kept: Tensor | None = None, text_kept: Tensor | None = None) -> Tensor:
        """The score of every row under every mask: (R, K) float32 on the CPU.

        Args:
            image_kept: (K, M) for all rows, or (R, K, M); None = the whole picture.
            text_kept: (K, W) for all rows, or (R, K, W); None = the whole text.

        Raises:
            InputError: masks that do not fit, or a score that is not finite.
        """
        masks = {kept.shape[-2] for kept in (image_kept, text_kept) if kept is not None and kept.ndim > 1} or {1}
        if len(masks) != 1:
            raise InputError(f"a joint mask has a part for the picture and one for the text, so as many of each, but got {sorted(masks)}")
        image_RKM = self._checked(image_kept, max(masks), self.num_segments, "segments")
        text_RKW = self._checked(text_kept, max(masks), self.num_words, "words")
        image_UM, row_U, image_Q = _distinct(image_RKM, self.picture_R)  # Q = R * K
        text_VW, row_V, text_Q = _distinct(text_RKW, self.text_R)
        output_Q = _ids(self.rows.index_R, len(self)).repeat_interleave(max(masks))
        joint_J3, joint_Q = torch.unique(torch.stack([image_Q, text_Q, output_Q], dim=1), dim=0, return_inverse=True)
        some_J = torch.empty(len(joint_J3), dtype=torch.int64)
        some_J[joint_Q] = torch.arange(len(joint_Q)) // max(masks)
        score_J, place_U = torch.empty(len(joint_J3)), torch.full((len(row_U),), -1)
        self.forward_rows += max(len(row_U), len(row_V), 0 if self.family.meets_for_free else len(joint_J3))
        with self._exact():
            text, mask_VT = self._texts(row_V, text_VW)
            for rows_u, image in self._images(row_U, image_UM):
                place_U.fill_(-1)[rows_u] = torch.arange(len(rows_u))
                asked_j = (place_U[joint_J3[:, 0]] >= 0).nonzero()[:, 0]
                for some_j in asked_j.split(self._num_rows(1 if image is None or image.ndim < 3 else image.shape[1])):
                    of_image, of_text = place_U[joint_J3[some_j, 0]], joint_J3[some_j, 1]
                    met = Inputs(
                        None if image is None else image[of_image],
                        None if text is None else text[of_text],
                        None,
                        None if mask_VT is None else mask_VT[of_text],
                        None if self.rows.index_R is None else self.rows.index_R[some_J[some_j]],
                    )
                    score_J[some_j] = self.family.meet(met).float().cpu()
        return _finite(score_J[joint_Q].view(len(self), -1))

    def image_vectors(self, row: int, kept_KM: Tensor) -> Tensor:
        """What the family reads in one row's picture under every mask: (K, ...) float32 on the CPU."""
        kept_RKM = self._checked(kept_KM, len(kept_KM), self.num_segments, "segments")
        kept_UM, row_U, inverse_K = _distinct(kept_RKM[:1], torch.tensor([row]))
        self.forward_rows += len(row_U)
        parts: list[tuple[Tensor, Tensor]] = []
        with self._exact():
            for rows_u, image in self._images(row_U, kept_UM):
                assert image is not None, "there are segments, so there is a picture"
                parts.append((rows_u, image.float().cpu()))
        order_U = torch.cat([rows_u for rows_u, _ in parts]).argsort()
        return _finite(torch.cat([image for _, image in parts])[order_U][inverse_K])

    def text_vectors(self, row: int, kept_KW: Tensor) -> Tensor:
        """What the family reads in one row's text under every mask: (K, ...) float32 on the CPU."""
        kept_RKW = self._checked(kept_KW, len(kept_KW), self.num_words, "words")
        kept_VW, row_V, inverse_K = _distinct(kept_RKW[:1], torch.tensor([row]))
        self.forward_rows += len(row_V)
        with self._exact():
            text, _ = self._texts(row_V, kept_VW)
        assert text is not None, "there are words, so there is a text"
        return _finite(text.float().cpu()[inverse_K])

    # --- passes ---
    @contextmanager
    def _exact(self) -> Iterator[None]:
        """Evaluation mode in the weights' own precision, whatever autocast is on outside."""
        with evaluating(self.family.model), torch.autocast(next(self.family.model.parameters()).device.type, enabled=False):
            yield

    def _images(self, row_U: Tensor, kept_UM: Tensor) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Which masked pictures go through together, and what is read in them.

        A patch is read through its own embedding alone, so replacing embeddings is replacing pixels.
        """
        if self.rows.pixels_R3HW is None:
            yield torch.arange(len(row_U)), None
            return
        shown_RND = self.family.embed_image(self.rows.pixels_R3HW)
        label_P = torch.zeros(shown_RND.shape[1] - 1, dtype=torch.int64) if self.segment_P is None else self.segment_P
        kept_UP = kept_UM[:, label_P] if self.num_segments else torch.ones(len(kept_UM), len(label_P), dtype=torch.bool)
        filling_R3HW = self.removal(self.rows.pixels_R3HW)
        if filling_R3HW is not None:
            instead_RND = self.family.embed_image(filling_R3HW)
            kept_UN1 = F.pad(kept_UP, (1, 0), value=True)[..., None].to(shown_RND.device)
            for rows_u in torch.arange(len(kept_UM)).split(self._num_rows(shown_RND.shape[1])):
                row_u = row_U[rows_u]
                yield rows_u, self.family.read_image(torch.where(kept_UN1[rows_u], shown_RND[row_u], instead_RND[row_u]))
            return
        count_U = kept_UP.sum(dim=1)
        for kept in count_U.unique().tolist():
            for rows_u in (count_U == kept).nonzero()[:, 0].split(self._num_rows(1 + kept)):
                column_up = 1 + kept_UP[rows_u].nonzero()[:, 1].view(len(rows_u), kept)
                column_up = F.pad(column_up, (1, 0))  # the class token stays
                yield rows_u, self.family.read_image(shown_RND[row_U[rows_u, None], column_up], None, column_up.to(shown_RND.device))

    def _texts(self, row_V: Tensor, kept_VW: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """What is read in the masked texts, and the tokens that are left: (V, T)."""
        if self.rows.tokens_RT is None or self.rows.text_mask_RT is None:
            return None, None
        device, words = self.rows.tokens_RT.device, kept_VW.shape[1]
        mask_VT = self.rows.text_mask_RT[row_V]
        if self.word_RT is not None:
            word_VT = self.word_RT[row_V]
            kept_VX = F.pad(kept_VW, (0, 1), value=True)  # nobody's tokens look into the last column
            mask_VT = mask_VT & kept_VX.gather(1, torch.where(word_VT == NOBODY, words, word_VT)).to(device)
        embedded_RTD = self.family.embed_text(self.rows.tokens_RT)
        rows = self._num_rows(mask_VT.shape[1])
        parts = [self.family.read_text(embedded_RTD[row], mask) for row, mask in zip(row_V.split(rows), mask_VT.split(rows), strict=True)]
        return torch.cat(parts), mask_VT

    def _num_rows(self, tokens: int) -> int:
        return max(1, self.tokens_per_pass // tokens)

    def _checked(self, kept: Tensor | None, masks: int, players: int, what: str) -> Tensor:
        """(R, K, M) on the CPU."""
        if kept is None:
            return torch.ones(1, 1, players, dtype=torch.bool).expand(len(self), masks, players)
        shape = tuple(kept.shape)
        kept = kept[None] if kept.ndim == 2 else kept
        if (
            not players
            or kept.dtype != torch.bool
            or kept.ndim != 3
            or len(kept) not in (1, len(self))
            or kept.shape[2] != players
            or not masks
        ):
            raise InputError(
                f"masks over {what}: expected bool (masks, {players}) or ({len(self)}, masks, {players}) with at least one mask and one "
                f"player, got {kept.dtype} {shape}"
            )
        return kept.cpu().expand(len(self), -1, -1)


def _check(family: Family, rows: Rows, segment_P: Tensor | None, word_RT: Tensor | None) -> None:
    if segment_P is not None:
        if family.grid is None or rows.pixels_R3HW is None:
            raise Lacks(f"a {family.name} reads no picture that segments could be left out of")
        if segment_P.shape != (family.grid**2,) or int(segment_P.min()) < 0:
            raise InputError(f"segments: expected a label from 0 for each of the {family.grid**2} patches, got {tuple(segment_P.shape)}")
    if word_RT is not None:
        if rows.tokens_RT is None:
            raise Lacks(f"a {family.name} reads no text that words could be left out of")
        if word_RT.shape != rows.tokens_RT.shape:
            raise InputError(f"words: expected a label for each token, {tuple(rows.tokens_RT.shape)}, got {tuple(word_RT.shape)}")
    if rows.pixels_R3HW is not None and not bool(torch.isfinite(rows.pixels_R3HW).all()):
        raise InputError("a picture holds NaN or infinity: look at how it was decoded and normalised")


def _in_precision(family: Family, dtype: torch.dtype) -> Family:
    copied = copy.deepcopy(family)
    copied.model.to(dtype)
    return copied


def _owners(*tensors: Tensor | None) -> Tensor:
    """The first row that holds the same, for every row: what several rows share is computed once."""
    columns = [tensor.detach().flatten(1).cpu().float() for tensor in tensors if tensor is not None]
    if not columns:
        return torch.zeros(1, dtype=torch.int64)
    name_R = torch.unique(torch.cat(columns, dim=1), dim=0, return_inverse=True)[1]
    return (name_R[:, None] == name_R).int().argmax(dim=1)


def _ids(index_R: Tensor | None, rows: int) -> Tensor:
    return torch.zeros(rows, dtype=torch.int64) if index_R is None else index_R.cpu()


def _distinct(kept_RKM: Tensor, owner_R: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Each owner's different masks (U, M), whose they are (U,), and which of them each of the R * K masks is."""
    rows, masks, players = kept_RKM.shape
    kept_QM = kept_RKM.reshape(rows * masks, players)
    owner_Q = owner_R.expand(rows).repeat_interleave(masks)
    words = [(part.long() << torch.arange(part.shape[1])).sum(dim=1) for part in kept_QM.split(62, dim=1)]
    key_UX, inverse_Q = torch.unique(torch.stack([owner_Q, *words], dim=1), dim=0, return_inverse=True)
    some_U = torch.empty(len(key_UX), dtype=torch.int64)
    some_U[inverse_Q] = torch.arange(len(inverse_Q))  # any of equal ones will do
    return kept_QM[some_U], owner_Q[some_U], inverse_Q


def _finite(value: Tensor) -> Tensor:
    bad = int((~torch.isfinite(value)).sum())
    if bad:
        raise InputError(f"{bad} of {value.numel()} values under masks are NaN or infinite: the weights are, or the precision is too low")
    return value
