"""The rank of every query of a test, with its name: what two models are compared by, query by query, and where the worst queries are read.

B pictures, C captions, E width of the embedding.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from insight.bootstrap import Interval, mean_interval
from insight.errors import InputError
from insight.metrics import DIRECTIONS, Ranks

FORMAT = "query ranks 1"
RECALL = re.compile(r"test/(?P<ranking>(?:reranked_)?(?:image_to_text|text_to_image))_recall_at_(?P<k>[1-9][0-9]*)")
RANKINGS = (*DIRECTIONS, *(f"reranked_{direction}" for direction in DIRECTIONS))


class QueryRanks(NamedTuple):
    """Ranks of one model on one split. A picture is a query for captions, a caption is a query for pictures."""

    filenames: tuple[str, ...]  # B
    texts: tuple[str, ...]  # C
    picture_C: Tensor  # (C,) int64: row of each caption's picture
    ranks: dict[str, Tensor]  # by ``RANKINGS``: (B,) or (C,) int64, 1 = a right answer came first

    @property
    def queries(self) -> str:
        """Digest of what was asked: equal for two models that answered the same queries."""
        asked = json.dumps([self.filenames, self.texts, self.picture_C.tolist()])
        return hashlib.sha256(asked.encode()).hexdigest()


class Miss(NamedTuple):
    """A query whose right answer came late."""

    query: str  # a picture's file name, or a caption
    right: str  # the best right answer: a caption of the picture, or the caption's picture
    found: str  # the wrong answer that came first
    rank: int


def hits(ranks: QueryRanks, metric: str) -> tuple[Tensor, Tensor]:
    """For a recall such as ``test/text_to_image_recall_at_10``: 1 or 0 for each query, and the picture that it belongs to.

    Raises:
        InputError: no recall of this name, or these ranks do not hold it.
    """
    found = RECALL.fullmatch(metric)
    if found is None:
        raise InputError(f"'{metric}' is no recall that ranks give; right would be test/text_to_image_recall_at_10")
    if found["ranking"] not in ranks.ranks:
        raise InputError(f"'{metric}': only {', '.join(ranks.ranks)} were ranked; this model does not re-rank")
    hit = (ranks.ranks[found["ranking"]] <= int(found["k"])).float()
    return hit, torch.arange(len(ranks.filenames)) if found["ranking"].endswith("image_to_text") else ranks.picture_C


def recall_interval(ranks: QueryRanks, metric: str, confidence: float = 0.95, samples: int = 2000) -> Interval:
    """A recall with its bootstrap interval over pictures (a picture's captions are drawn together)."""
    return mean_interval(*hits(ranks, metric), confidence, samples)


def recall_difference(ranks: QueryRanks, other: QueryRanks, metric: str, confidence: float = 0.95, samples: int = 2000) -> Interval:
    """Recall of ``ranks`` minus recall of ``other`` on the same queries, by paired bootstrap: an interval without 0 is a real difference.

    Raises:
        InputError: the two answered different queries.
    """
    if ranks.queries != other.queries:
        sizes = [f"{len(one.filenames)} pictures and {len(one.texts)} captions" for one in (ranks, other)]
        raise InputError(f"the two were tested on different queries ({sizes[0]}; {sizes[1]}): test both on the same split")
    hit, group = hits(ranks, metric)
    return mean_interval(hit - hits(other, metric)[0], group, confidence, samples)


def worst(ranks: QueryRanks, image_embedding_BE: Tensor, text_embedding_CE: Tensor, direction: str, count: int) -> list[Miss]:
    """The ``count`` queries whose right answer came last, with the wrong answer that came first; only those that missed at all."""
    query_QE, answer_AE = image_embedding_BE, text_embedding_CE
    answers, asked = ranks.texts, ranks.filenames
    right_QA = ranks.picture_C[None, :] == torch.arange(len(ranks.filenames))[:, None]
    if direction == "text_to_image":
        query_QE, answer_AE, right_QA, answers, asked = answer_AE, query_QE, right_QA.T, asked, answers
    rank_Q = ranks.ranks[direction]
    chosen = sorted((row for row in range(len(asked)) if rank_Q[row] > 1), key=lambda row: (-int(rank_Q[row]), asked[row]))[:count]
    misses = []
    for row in chosen:
        score_A = answer_AE.float().cpu() @ query_QE[row].float().cpu()
        best = int(score_A.masked_fill(~right_QA[row], -torch.inf).argmax())
        first = int(score_A.masked_fill(right_QA[row], -torch.inf).argmax())
        misses.append(Miss(asked[row], answers[best], answers[first], int(rank_Q[row])))
    return misses


def named(ranks: Ranks, prefix: str = "") -> dict[str, Tensor]:
    """``Ranks`` by the names of ``RANKINGS``."""
    return {prefix + direction: rank for direction, rank in zip(DIRECTIONS, ranks, strict=True)}


def save_ranks(path: str | Path, ranks: QueryRanks) -> None:
    """One safetensors file, names in its header; written atomically."""
    path = Path(path)
    names = {"filenames": json.dumps(ranks.filenames), "texts": json.dumps(ranks.texts)}
    tensors = {"picture": ranks.picture_C.cpu().contiguous(), **{name: rank.cpu().contiguous() for name, rank in ranks.ranks.items()}}
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    save_file(tensors, temporary, metadata={"format": FORMAT, **names})
    os.replace(temporary, path)


def load_ranks(path: str | Path) -> QueryRanks:
    """What ``save_ranks`` wrote.

    Raises:
        InputError: no such file, a damaged one, or one that holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; a run keeps its ranks as RUN/ranks.safetensors (with run.test=true)")
    try:
        with safe_open(path, "pt") as file:
            facts, tensors = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
        filenames, texts = tuple(json.loads(facts["filenames"])), tuple(json.loads(facts["texts"]))
        picture_C = tensors.pop("picture")
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise InputError(f"{path}: no ranks, or a damaged file ({type(error).__name__}: {error})") from error
    sizes = {name: len(filenames) if name.endswith("image_to_text") else len(texts) for name in tensors}
    whole = len(picture_C) == len(texts) and all(rank.shape == (sizes[name],) for name, rank in tensors.items())
    if facts.get("format") != FORMAT or not whole or not set(DIRECTIONS) <= tensors.keys() <= set(RANKINGS):
        raise InputError(f"{path}: not '{FORMAT}', but {facts.get('format', 'no format')} with {', '.join(tensors)}")
    return QueryRanks(filenames, texts, picture_C, {name: tensors[name] for name in RANKINGS if name in tensors})
