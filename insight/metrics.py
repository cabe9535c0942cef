"""Retrieval, measured exactly: over the whole split, in both directions, ties counted against us; and the one list of metric names.

B pictures, C captions, E width of an embedding.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

from insight.errors import InputError

RECALL_AT = (1, 5, 10)

RETRIEVAL_NAMES: dict[str, str] = {
    **{f"{way}_recall_at_{k}": f"fraction of queries with a match among the first {k}" for way in ("image_to_text", "text_to_image") for k in RECALL_AT},
    **{f"{way}_{what}_rank": f"{what} rank of the best match, 1 = first" for way in ("image_to_text", "text_to_image") for what in ("median", "mean")},
    "mean_recall": "mean of the six recalls",
}

# The one list of metric names: pattern -> meaning. The same name on screen, in MLflow, in files.
METRIC_NAMES: dict[str, str] = {
    "train/loss": "weighted sum of the stage's terms",
    "train/loss/<term>": "one weighted term",
    "train/learning_rate": "rate of the first parameter group",
    "train/scale": "factor of the cosine (inverse temperature)",
    "val/loss": "weighted sum of the stage's terms on the validation split, batch by batch",
    "val/loss/<term>": "one weighted term on the validation split",
    **{f"{split}/{name}": meaning for split in ("val", "test") for name, meaning in RETRIEVAL_NAMES.items()},
    **{f"test/reranked_{name}": f"{meaning}, after re-ranking" for name, meaning in RETRIEVAL_NAMES.items()},
    **{
        f"test/{kind}hard_negative_accuracy_{seen}": f"hard negatives told apart, combinations {seen} in training"
        for kind in ("", "reranked_")
        for seen in ("seen", "unseen")
    },
    "test/baseline/<name>/<what>": "the same figure of a baseline",
    "insight/<what>": "what the interpretability callbacks measure",
}


def check_metric_name(name: str) -> None:
    """Raises:
    InputError: no metric has this name; says which is nearest.
    """
    for pattern in METRIC_NAMES:
        if re.fullmatch(re.sub(r"<\w+>", r"[\\w/]+", pattern), name):
            return
    close = difflib.get_close_matches(name, METRIC_NAMES, n=1)
    hint = f"did you mean '{close[0]}'?" if close else f"known: {', '.join(METRIC_NAMES)}"
    raise InputError(f"no metric is called '{name}'; {hint}")


class Ranks(NamedTuple):
    """Rank of the best match of every query, 1 = first."""

    image_to_text: Tensor  # (B,) int64
    text_to_image: Tensor  # (C,) int64


def ranks_from_scores(scores_BC: Tensor, image_id_B: Tensor, caption_image_id_C: Tensor) -> Ranks:
    """Exact ranks from a score matrix; a non-match that scores as high as the best match counts as before it."""
    if not torch.isfinite(scores_BC).all():
        raise ValueError("retrieval: a score is not finite")
    matches_BC = image_id_B[:, None] == caption_image_id_C[None, :]
    if not matches_BC.any(dim=1).all() or not matches_BC.any(dim=0).all():
        raise ValueError("retrieval: a picture without a caption, or a caption without its picture")
    lowest = torch.finfo(scores_BC.dtype).min
    best_B = scores_BC.masked_fill(~matches_BC, lowest).amax(dim=1)
    best_C = scores_BC.masked_fill(~matches_BC, lowest).amax(dim=0)
    before_B = ((scores_BC >= best_B[:, None]) & ~matches_BC).sum(dim=1)
    before_C = ((scores_BC >= best_C[None, :]) & ~matches_BC).sum(dim=0)
    return Ranks(before_B + 1, before_C + 1)


def retrieval_ranks(image_embedding_BE: Tensor, text_embedding_CE: Tensor, image_id_B: Tensor, caption_image_id_C: Tensor, block: int = 1024) -> Ranks:
    """:func:`ranks_from_scores` of the inner products, without ever holding the whole matrix.

    Two passes over the same blocks: first each query's best match, then what scores as high. The score of a pair is computed in the
    same block product both times, so equal scores stay equal.
    """
    image_BE, text_CE = image_embedding_BE.float(), text_embedding_CE.float()
    lowest = torch.finfo(torch.float32).min
    best_B = torch.full((len(image_BE),), lowest, device=image_BE.device)
    best_C = torch.full((len(text_CE),), lowest, device=image_BE.device)
    before_B = torch.zeros(len(image_BE), dtype=torch.int64, device=image_BE.device)
    before_C = torch.zeros(len(text_CE), dtype=torch.int64, device=image_BE.device)
    for counting in (False, True):
        for start in range(0, len(image_BE), block):
            rows = slice(start, start + block)
            scores = image_BE[rows] @ text_CE.T
            if not torch.isfinite(scores).all():
                raise ValueError("retrieval: an embedding is not finite")
            matches = image_id_B[rows, None] == caption_image_id_C[None, :]
            if counting:
                before_B[rows] = ((scores >= best_B[rows, None]) & ~matches).sum(dim=1)
                before_C += ((scores >= best_C[None, :]) & ~matches).sum(dim=0)
            else:
                masked = scores.masked_fill(~matches, lowest)
                best_B[rows] = masked.amax(dim=1)
                best_C = torch.maximum(best_C, masked.amax(dim=0))
    if bool((best_B == lowest).any()) or bool((best_C == lowest).any()):
        raise ValueError("retrieval: a picture without a caption, or a caption without its picture")
    return Ranks(before_B + 1, before_C + 1)


def retrieval_scores(ranks: Ranks) -> dict[str, float]:
    """Recall@1/5/10 (fraction of queries), median and mean rank, both directions, and the mean of the six recalls."""
    scores: dict[str, float] = {}
    for way, rank_N in ranks._asdict().items():
        rank_N = rank_N.float()
        scores |= {f"{way}_recall_at_{k}": float((rank_N <= k).float().mean()) for k in RECALL_AT}
        scores |= {f"{way}_median_rank": float(rank_N.median()), f"{way}_mean_rank": float(rank_N.mean())}
    recalls = [value for name, value in scores.items() if "_recall_at_" in name]
    return {**scores, "mean_recall": sum(recalls) / len(recalls)}


def chance_recall(captions_per_image: list[int]) -> dict[str, float]:
    """Expected recalls of a random order, given how many captions each picture has (hypergeometric; exact).

    >>> round(chance_recall([5] * 500)["image_to_text_recall_at_10"], 4), chance_recall([5] * 500)["text_to_image_recall_at_10"]
    (0.0198, 0.02)
    """
    images, captions = len(captions_per_image), sum(captions_per_image)
    scores: dict[str, float] = {}
    for k in RECALL_AT:
        missed = [math.comb(captions - own, min(k, captions)) / math.comb(captions, min(k, captions)) for own in captions_per_image]
        scores[f"image_to_text_recall_at_{k}"] = 1 - sum(missed) / images
        scores[f"text_to_image_recall_at_{k}"] = min(1.0, k / images)
    return scores


class RetrievalMetrics(Metric):
    """:func:`retrieval_scores` over everything that was updated, on all devices together; ids seen twice count once."""

    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        for name in ("image_embedding", "text_embedding", "image_id", "caption_id", "caption_image_id"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, image_embedding: Tensor, text_embedding: Tensor, image_id: Tensor, caption_id: Tensor, caption_image_id: Tensor) -> None:
        """(B, E), (C, E), (B,), (C,), (C,)."""
        for name, value in locals().copy().items():
            if name != "self":
                getattr(self, name).append(value.detach())

    def compute(self) -> dict[str, float]:
        if isinstance(self.image_id, list) and not self.image_id:
            raise ValueError("retrieval: nothing to measure, the split is empty")
        states = {name: torch.cat(value) if isinstance(value, list) else value for name, value in self._named_states().items()}
        image_rows, caption_rows = first_rows(states["image_id"]), first_rows(states["caption_id"])
        return retrieval_scores(
            retrieval_ranks(
                states["image_embedding"][image_rows],
                states["text_embedding"][caption_rows],
                states["image_id"][image_rows],
                states["caption_image_id"][caption_rows],
            )
        )

    def _named_states(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("image_embedding", "text_embedding", "image_id", "caption_id", "caption_image_id")}


def first_rows(ids_N: Tensor) -> Tensor:
    """Row of the first occurrence of every id, in the order of ids."""
    order = ids_N.argsort(stable=True)
    ordered = ids_N[order]
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[1:] = ordered[1:] != ordered[:-1]
    return order[first]


def rerank(scores_BC: Tensor, image_id_B: Tensor, caption_image_id_C: Tensor, match: Callable[[Tensor, Tensor], Tensor], k: int) -> Ranks:
    """Ranks after the top ``k`` candidates of each query were re-ordered by ``match(image rows, caption rows) -> scores``.

    Candidates beyond the top ``k`` keep their order, behind. Ties count against us in both orders.
    """
    found = []
    for way, scores in (("image", scores_BC), ("text", scores_BC.T)):
        queries, candidates = scores.shape
        width = min(k, candidates)
        top = scores.topk(width, dim=1).indices
        query_rows = torch.arange(queries, device=scores.device)[:, None].expand_as(top)
        rows = (query_rows, top) if way == "image" else (top, query_rows)
        matched = match(rows[0].flatten(), rows[1].flatten()).view(queries, width)
        final = torch.full_like(scores, float("-inf"))
        placed = torch.zeros_like(scores, dtype=torch.bool).scatter(1, top, True)
        final.scatter_(1, top, matched.to(final.dtype))
        query_id, candidate_id = (image_id_B, caption_image_id_C) if way == "image" else (caption_image_id_C, image_id_B)
        right = query_id[:, None] == candidate_id[None, :]
        lowest = float("-inf")
        best_top = final.masked_fill(~(right & placed), lowest).amax(dim=1, keepdim=True)
        best_rest = scores.masked_fill(~right | placed, lowest).amax(dim=1, keepdim=True)
        inside = (right & placed).any(dim=1)
        before_inside = ((final >= best_top) & placed & ~right).sum(dim=1)
        before_rest = (placed & ~right).sum(dim=1) + ((scores >= best_rest) & ~placed & ~right).sum(dim=1)
        found.append(torch.where(inside, before_inside, before_rest) + 1)
    return Ranks(*found)


def hard_negative_accuracy(positive_score: Tensor, negative_score: Tensor) -> float:
    """Fraction of pairs in which the true caption scores strictly higher; a tie is a miss. (N,), (N,)."""
    return float((positive_score > negative_score).float().mean())
