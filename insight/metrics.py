"""Exact retrieval over a whole split. B pictures, C captions, E width, P pairs.

Ranks are counted, never sorted: a rank is 1 + the number of wrong candidates that score at least as high as the best right one, so a tie
always counts against us. Everything is counted on the CPU in float32: the same embeddings give the same figures on every device.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from insight.errors import InputError

RECALL_AT = (1, 5, 10)
DIRECTIONS = ("image_to_text", "text_to_image")
KERNEL_ROWS = 64  # see _Tiles


class Ranks(NamedTuple):
    """Rank of the best right answer to each query, 1 = first."""

    image_to_text_B: Tensor  # (B,) int64
    text_to_image_C: Tensor  # (C,) int64


def retrieval_ranks(
    image_embedding_BE: Tensor, text_embedding_CE: Tensor, image_id_B: Tensor, caption_image_id_C: Tensor, block: int = 512
) -> Ranks:
    """Both directions from one pass over the scores, ``block`` pictures and their captions at a time.

    Raises:
        InputError: an embedding is not finite, a picture occurs twice or has no caption, a caption has no picture, or nothing is given.
    """
    own_C = _own_rows(image_id_B, caption_image_id_C)
    order_C = own_C.argsort(stable=True)  # a picture's captions side by side
    tiles = _Tiles(_finite(image_embedding_BE, "image"), _finite(text_embedding_CE, "text")[order_C], own_C[order_C], block)
    best_B, best_C = torch.full((len(image_id_B),), -math.inf), torch.empty(len(own_C))
    above_B, above_C = torch.zeros(len(image_id_B)), torch.zeros(len(own_C))
    for offset in range(tiles.count):  # offset 0 holds all right pairs, and so the scores to beat; every pair is scored once
        for number in range(tiles.count):
            pictures, captions, score_BC = tiles.score(number, (number + offset) % tiles.count)
            if offset == 0:
                own = tiles.own_C[captions] - pictures.start
                columns = torch.arange(len(own))
                best_C[captions] = score_BC[own, columns]
                best_B[pictures] = best_B[pictures].scatter_reduce(0, own, best_C[captions], "amax")
                score_BC[own, columns] = -math.inf
            # comparing into floats and summing those is 3-10x faster than summing booleans, and exact below 2 ** 24
            found_BC = torch.empty_like(score_BC)
            above_B[pictures] += torch.ge(score_BC, best_B[pictures, None], out=found_BC).sum(dim=1)
            above_C[captions] += torch.ge(score_BC, best_C[None, captions], out=found_BC).sum(dim=0)
    text_to_image_C = torch.empty(len(own_C), dtype=torch.int64)
    text_to_image_C[order_C] = above_C.long() + 1
    return Ranks(above_B.long() + 1, text_to_image_C)


def ranks_from_scores(scores_BC: Tensor, image_id_B: Tensor, caption_image_id_C: Tensor) -> Ranks:
    """``retrieval_ranks`` for a model that scores pairs.

    >>> ranks_from_scores(torch.tensor([[0.9, 0.2], [0.9, 0.1]]), torch.tensor([7, 8]), torch.tensor([7, 8]))
    Ranks(image_to_text_B=tensor([1, 2]), text_to_image_C=tensor([2, 2]))
    """
    scores_BC, own_C = _checked_scores(scores_BC, image_id_B, caption_image_id_C)
    columns = torch.arange(len(own_C))
    best_C = scores_BC[own_C, columns]
    best_B = torch.full((len(scores_BC),), -math.inf).scatter_reduce(0, own_C, best_C, "amax")
    wrong_BC = scores_BC.index_put((own_C, columns), torch.tensor(-math.inf))
    return Ranks((wrong_BC >= best_B[:, None]).sum(dim=1) + 1, (wrong_BC >= best_C[None, :]).sum(dim=0) + 1)


def rerank(
    scores_BC: Tensor,
    image_id_B: Tensor,
    caption_image_id_C: Tensor,
    match: Callable[[Tensor, Tensor], Tensor],
    k: int,
    pairs_at_once: int = 1024,
) -> Ranks:
    """Ranks after a second scorer has re-ordered the ``k`` best candidates of every query; the others keep their order behind them.

    At a tie for the k-th place the wrong candidate gets in. Each pair is scored once, though it may be a candidate in both directions.

    Args:
        scores_BC: First-stage scores.
        match: ``(picture rows (P,), caption rows (P,)) -> scores (P,)``, at most ``pairs_at_once`` pairs a call.
        k: Candidates per query.

    Raises:
        InputError: ``k`` is below 1, or a score is not finite.
    """
    if k < 1:
        raise InputError(f"k={k}: re-rank at least 1 candidate per query, e.g. 16")
    scores_BC, own_C = _checked_scores(scores_BC, image_id_B, caption_image_id_C)
    first = ranks_from_scores(scores_BC, image_id_B, caption_image_id_C)
    right_BC = own_C[None, :] == torch.arange(len(scores_BC))[:, None]
    candidate_BC = _candidates(scores_BC, right_BC, k), _candidates(scores_BC.T, right_BC.T, k).T
    rows, columns = (candidate_BC[0] | candidate_BC[1]).nonzero(as_tuple=True)  # sorted by picture
    matched = []
    for part_rows, part_columns in zip(rows.split(pairs_at_once), columns.split(pairs_at_once), strict=True):
        part = match(part_rows.to(image_id_B.device), part_columns.to(image_id_B.device)).detach().float().cpu()
        if part.shape != part_rows.shape:
            raise ValueError(
                f"match(picture rows, caption rows) must return one score per pair, got {tuple(part.shape)} for {len(part_rows)}"
            )
        matched.append(part)
    second_BC = torch.empty_like(scores_BC)
    second_BC[rows, columns] = _finite(torch.cat(matched), "match")
    return Ranks(
        _reranked(second_BC, candidate_BC[0], right_BC, first.image_to_text_B),
        _reranked(second_BC.T, candidate_BC[1].T, right_BC.T, first.text_to_image_C),
    )


def retrieval_scores(ranks: Ranks) -> dict[str, float]:
    """Recall at 1, 5, 10 (fractions), median and mean rank in both directions, and the mean of the six recalls.

    Recall is what papers on Flickr30k call it: the fraction of queries with a right answer among the first k.
    """
    scores: dict[str, float] = {}
    for direction, ranks_Q in zip(DIRECTIONS, ranks, strict=True):
        rank = ranks_Q.cpu().numpy()
        scores |= {f"{direction}_recall_at_{k}": float((rank <= k).mean()) for k in RECALL_AT}
        scores |= {f"{direction}_median_rank": float(np.median(rank)), f"{direction}_mean_rank": float(rank.mean())}
    return scores | {"mean_recall": _mean_recall(scores)}


def chance_recall(num_images: int, captions_per_image: int | Sequence[int] = 5) -> dict[str, float]:
    """Expected recalls of a random order, without ties, under the names of ``retrieval_scores``.

    A picture with m of n captions: ``1 - C(n - m, k) / C(n, k)``; a caption: ``k / num_images``.

    Args:
        num_images: Pictures of the split.
        captions_per_image: Of every picture, or one number per picture.

    >>> {name: round(value, 4) for name, value in chance_recall(500).items() if name.endswith("_10")}
    {'image_to_text_recall_at_10': 0.0199, 'text_to_image_recall_at_10': 0.02}
    """
    counts = [captions_per_image] * num_images if isinstance(captions_per_image, int) else list(captions_per_image)
    if num_images < 1 or len(counts) != num_images or min(counts) < 1:
        raise InputError(
            f"chance level of {num_images} pictures with {len(counts)} caption counts: every picture needs at least one caption"
        )
    total, scores = sum(counts), {}
    for k in RECALL_AT:
        missed = {count: math.comb(total - count, min(k, total)) / math.comb(total, min(k, total)) for count in set(counts)}
        scores[f"image_to_text_recall_at_{k}"] = 1 - sum(missed[count] for count in counts) / num_images
        scores[f"text_to_image_recall_at_{k}"] = min(k, num_images) / num_images
    return scores | {"mean_recall": _mean_recall(scores)}


def hard_negative_accuracy(positive_score: Tensor, negative_score: Tensor) -> float:
    """Fraction of pairs (P,) whose right caption scores above the wrong one; a tie is a miss.

    >>> hard_negative_accuracy(torch.tensor([0.9, 0.4, 0.1]), torch.tensor([0.1, 0.4, 0.3]))  # doctest: +ELLIPSIS
    0.333...
    """
    shapes = tuple(positive_score.shape), tuple(negative_score.shape)
    if shapes[0] != shapes[1] or not len(positive_score):
        raise InputError(
            f"hard negatives need one right and one wrong score per pair, at least one pair; got shapes {shapes[0]} and {shapes[1]}"
        )
    positive, negative = _finite(positive_score, "right caption's"), _finite(negative_score, "wrong caption's")
    return (positive > negative).float().mean().item()


class Seen(NamedTuple):
    """What the figures were computed from, in the order of the ids."""

    image_id_B: Tensor
    caption_id_C: Tensor
    image_embedding_BE: Tensor
    text_embedding_CE: Tensor
    ranks: Ranks


class RetrievalMetrics(Metric):
    """``retrieval_scores`` over everything seen since the last reset, on all processes together.

    Pictures and captions that come more than once (samplers pad the shares of the processes) count once, by id. Embeddings are kept as
    flat rows, so that a process that saw nothing can join in the gathering. After ``compute`` the queries are in ``seen``, also after a
    ``reset``.
    """

    seen: Seen

    is_differentiable = False
    full_state_update = False
    image_id: list[Tensor]
    caption_id: list[Tensor]
    caption_image_id: list[Tensor]
    image_values: list[Tensor]
    text_values: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        for name in ("image_id", "caption_id", "caption_image_id", "image_values", "text_values"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(
        self, image_embedding: Tensor, text_embedding: Tensor, image_id: Tensor, caption_id: Tensor, caption_image_id: Tensor
    ) -> None:
        """(B, E), (C, E), (B,), (C,), (C,)"""
        if len(image_embedding) != len(image_id) or not len(text_embedding) == len(caption_id) == len(caption_image_id):
            lengths = [len(one) for one in (image_embedding, image_id, text_embedding, caption_id, caption_image_id)]
            raise ValueError(f"pictures, image_id, captions, caption_id, caption_image_id have lengths {lengths}")
        self.image_id.append(image_id)
        self.caption_id.append(caption_id)
        self.caption_image_id.append(caption_image_id)
        self.image_values.append(image_embedding.detach().float().flatten())
        self.text_values.append(text_embedding.detach().float().flatten())

    def sync(
        self,
        dist_sync_fn: Callable | None = None,
        process_group: Any | None = None,
        should_sync: bool = True,
        distributed_available: Callable | None = None,
    ) -> None:
        """torchmetrics fills the empty lists of an idle process with floats, and ids of two types cannot be gathered."""
        if not self.image_id:
            for state in (self.image_id, self.caption_id, self.caption_image_id):
                state.append(torch.empty(0, dtype=torch.int64, device=self.device))
        super().sync(dist_sync_fn, process_group, should_sync, distributed_available)

    def pairs(self, count: int) -> tuple[Tensor, Tensor]:
        """The first ``count`` pictures that this process has seen, and the first caption of each: (N, E), (N, E), on the CPU."""
        image_id, caption_image_id = _joined(self.image_id), _joined(self.caption_image_id)
        images = _joined(self.image_values).view(len(image_id), -1)
        texts = _joined(self.text_values).view(len(caption_image_id), -1)
        known, first = np.unique(caption_image_id.numpy(), return_index=True)
        wanted = image_id[:count].numpy()
        return images[:count], texts[torch.from_numpy(first[np.searchsorted(known, wanted)])]

    def compute(self) -> dict[str, float]:
        """
        Raises:
            InputError: nothing was seen.
        """
        image_id, caption_id, caption_image_id = (_joined(state) for state in (self.image_id, self.caption_id, self.caption_image_id))
        if not len(image_id) or not len(caption_id):
            raise InputError("retrieval metrics: no picture or no caption was seen; is the split empty?")
        images = _joined(self.image_values).view(len(image_id), -1)
        texts = _joined(self.text_values).view(len(caption_id), -1)
        rows_B, rows_C = _first_of_each(image_id), _first_of_each(caption_id)
        ranks = retrieval_ranks(images[rows_B], texts[rows_C], image_id[rows_B], caption_image_id[rows_C])
        self.seen = Seen(image_id[rows_B], caption_id[rows_C], images[rows_B], texts[rows_C], ranks)
        return retrieval_scores(ranks)


def _mean_recall(scores: dict[str, float]) -> float:
    return sum(scores[f"{direction}_recall_at_{k}"] for direction in DIRECTIONS for k in RECALL_AT) / (len(DIRECTIONS) * len(RECALL_AT))


def _joined(state: list[Tensor] | Tensor) -> Tensor:
    """A list state of torchmetrics: a list in one process, a tensor once gathered."""
    parts = [state] if isinstance(state, Tensor) else state
    return torch.cat(parts).cpu() if parts else torch.empty(0)


def _first_of_each(ids: Tensor) -> Tensor:
    return torch.from_numpy(np.unique(ids.numpy(), return_index=True)[1])


def _finite(values: Tensor, what: str) -> Tensor:
    values = values.detach().float().cpu()
    bad = ~torch.isfinite(values).reshape(len(values), -1).all(dim=1)
    if bad.any():
        raise InputError(
            f"NaN or infinity in {int(bad.sum())} of {len(values)} {what} rows (first: row {int(bad.nonzero()[0])}): "
            "the model has diverged; go back to an earlier checkpoint, or lower the learning rate"
        )
    return values


def _own_rows(image_id_B: Tensor, caption_image_id_C: Tensor) -> Tensor:
    """Row of each caption's picture: (C,)."""
    images, captions = image_id_B.cpu().numpy(), caption_image_id_C.cpu().numpy()
    if not len(images) or not len(captions):
        raise InputError(f"retrieval needs pictures and captions, got {len(images)} and {len(captions)}")
    order = images.argsort(kind="stable")
    if (doubled := images[order][1:][np.diff(images[order]) == 0]).size:
        raise InputError(f"picture id {doubled[0]} occurs more than once; retrieval ranks each picture once")
    if (alone := images[~np.isin(images, captions)]).size:
        raise InputError(f"{alone.size} pictures have no caption (first: id {alone[0]}); rank pictures with all their captions")
    if (alone := captions[~np.isin(captions, images)]).size:
        raise InputError(f"the pictures of {alone.size} captions are missing (first: id {alone[0]}); rank pictures with all their captions")
    return torch.from_numpy(order[np.searchsorted(images[order], captions)])


def _checked_scores(scores_BC: Tensor, image_id_B: Tensor, caption_image_id_C: Tensor) -> tuple[Tensor, Tensor]:
    if scores_BC.shape != (len(image_id_B), len(caption_image_id_C)):
        raise ValueError(f"scores are {tuple(scores_BC.shape)} for {len(image_id_B)} pictures and {len(caption_image_id_C)} captions")
    own_C = _own_rows(image_id_B, caption_image_id_C)
    return _finite(scores_BC, "score"), own_C


def _candidates(scores_QN: Tensor, right_QN: Tensor, k: int) -> Tensor:
    """True for the k best of each query: (Q, N) bool. A right one loses its ties, by a step of float64, finer than any of float32."""
    below_QN = -scores_QN.numpy().astype(np.float64)
    np.nextafter(below_QN, np.inf, out=below_QN, where=right_QN.numpy())
    chosen_QN = torch.zeros(scores_QN.shape, dtype=torch.bool)
    k = min(k, scores_QN.shape[1])
    return chosen_QN.scatter(1, torch.from_numpy(np.argpartition(below_QN, k - 1, axis=1)[:, :k]), True)


def _reranked(second_QN: Tensor, candidate_QN: Tensor, right_QN: Tensor, first_Q: Tensor) -> Tensor:
    """A query with no right candidate keeps its rank: all k before its best right answer were wrong, in whatever order."""
    best_Q1 = second_QN.masked_fill(~(candidate_QN & right_QN), -math.inf).amax(dim=1, keepdim=True)
    above_Q = (candidate_QN & ~right_QN & (second_QN >= best_Q1)).sum(dim=1)
    return torch.where(best_Q1[:, 0] > -math.inf, above_Q + 1, first_Q)


class _Tiles:
    """The score matrix, in tiles of one shape: as many pictures each, by the captions of as many.

    Matrix kernels add up in another order at the ragged edge of a matrix, so equal embeddings would score a last bit apart (seen with MKL
    on AMD) and ties would be won by chance. Padding with zeros to whole kernel widths, and to one shape, keeps equal pairs equal.
    """

    def __init__(self, image_BE: Tensor, text_CE: Tensor, own_C: Tensor, block: int) -> None:
        pictures = len(image_BE)
        self.count = math.ceil(pictures / block)
        size = math.ceil(pictures / self.count)
        self.count = math.ceil(pictures / size)
        edges = [min(number * size, pictures) for number in range(self.count + 1)]
        caption_edges = torch.searchsorted(own_C, torch.tensor(edges)).tolist()
        self.own_C = own_C
        self.pictures = [slice(*pair) for pair in itertools.pairwise(edges)]
        self.captions = [slice(*pair) for pair in itertools.pairwise(caption_edges)]
        self.images = _padded(image_BE, self.pictures)
        self.texts = _padded(text_CE, self.captions)

    def score(self, row: int, column: int) -> tuple[slice, slice, Tensor]:
        """Pictures, captions and their scores."""
        pictures, captions = self.pictures[row], self.captions[column]
        with torch.autocast("cpu", enabled=False):
            score_BC = self.images[row] @ self.texts[column].T
        return pictures, captions, score_BC[: pictures.stop - pictures.start, : captions.stop - captions.start]


def _padded(rows_NE: Tensor, parts: list[slice]) -> list[Tensor]:
    size = math.ceil(max(part.stop - part.start for part in parts) / KERNEL_ROWS) * KERNEL_ROWS
    return [torch.nn.functional.pad(rows_NE[part], (0, 0, 0, size - (part.stop - part.start))) for part in parts]
