"""The rank of every query of a test, with its name: what two models are compared by, query by query, and where the worst queries are read.

B pictures, C captions, Q queries (either), N candidates kept of each. Read from what a tested run leaves beside its summary:
``ranks.safetensors`` and ``ranks.json``.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from insight.bootstrap import Interval, mean_interval
from insight.errors import InputError
from insight.metrics import DIRECTIONS

FILES = ("ranks.safetensors", "ranks.json")
RECALL = re.compile(r"test/(?P<direction>image_to_text|text_to_image)_recall_at_(?P<k>[1-9][0-9]*)")


class QueryRanks(NamedTuple):
    """Ranks of one model on one split. A picture is a query for captions, a caption is a query for pictures."""

    filenames: tuple[str, ...]  # B
    captions: tuple[str, ...]  # C: FILENAME#NUMBER
    texts: tuple[str, ...]  # C
    ranks: dict[str, Tensor]  # by direction: (B,) or (C,) int64, 1 = a right answer came first
    best: dict[str, Tensor]  # by direction: (Q, N) rows of the best candidates, best first

    @property
    def picture_C(self) -> Tensor:
        """(C,) int64: row of each caption's picture."""
        rows = {name: row for row, name in enumerate(self.filenames)}
        return torch.tensor([rows[caption.rpartition("#")[0]] for caption in self.captions])

    @property
    def queries(self) -> str:
        """Digest of what was asked: equal for two models that answered the same queries."""
        return hashlib.sha256(json.dumps([self.filenames, self.captions, self.texts]).encode()).hexdigest()


class Miss(NamedTuple):
    """A query whose right answer came late."""

    query: str  # a picture's file name, or a caption
    right: str  # the picture's first caption, or the caption's picture
    found: str  # the wrong answer that came first
    rank: int


def read_ranks(folder: str | Path) -> tuple[QueryRanks, str]:
    """The ranks in ``folder``, and the digest of their files.

    Raises:
        InputError: a file is missing, damaged, or holds something else.
    """
    paths = [Path(folder) / name for name in FILES]
    for path in paths:
        if not path.is_file():
            raise InputError(f"{path}: no such file; a run with run.test=true leaves it")
    contents = [path.read_bytes() for path in paths]
    try:
        tensors, names = load(contents[0]), json.loads(contents[1])
        ranks = QueryRanks(
            tuple(names["test/image_to_text"]),
            tuple(names["test/text_to_image"]),
            tuple(names["texts"]),
            {direction: tensors[f"test/{direction}"] for direction in DIRECTIONS},
            {direction: tensors[f"test/{direction}_best"] for direction in DIRECTIONS},
        )
        asked = {"image_to_text": len(ranks.filenames), "text_to_image": len(ranks.picture_C)}
        lengths = [(len(ranks.ranks[one]), len(ranks.best[one]), number) for one, number in asked.items()]
        whole = len(ranks.texts) == len(ranks.captions) and all(one == two == number for one, two, number in lengths)
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise InputError(f"{paths[0]}: no ranks, or a damaged file ({type(error).__name__}: {error})") from error
    if not whole:
        raise InputError(f"{paths[0]}: does not fit to {paths[1].name} beside it; test the run again")
    return ranks, hashlib.sha256(b"".join(contents)).hexdigest()


def hits(ranks: QueryRanks, metric: str) -> tuple[Tensor, Tensor]:
    """For a recall such as ``test/text_to_image_recall_at_10``: 1 or 0 for each query (Q,), and the row of its picture (Q,).

    Raises:
        InputError: no recall of this name.
    """
    found = RECALL.fullmatch(metric)
    if found is None:
        raise InputError(f"'{metric}' is no recall that ranks give; right would be test/text_to_image_recall_at_10")
    hit_Q = (ranks.ranks[found["direction"]] <= int(found["k"])).float()
    return hit_Q, torch.arange(len(ranks.filenames)) if found["direction"] == "image_to_text" else ranks.picture_C


def recall_interval(ranks: QueryRanks, metric: str, confidence: float = 0.95, samples: int = 2000) -> Interval:
    """A recall with its bootstrap interval over pictures (a picture's captions are drawn together)."""
    return mean_interval(*hits(ranks, metric), confidence, samples)


def recall_difference(ranks: QueryRanks, other: QueryRanks, metric: str, confidence: float = 0.95, samples: int = 2000) -> Interval:
    """Recall of ``ranks`` minus recall of ``other`` on the same queries, by paired bootstrap: an interval without 0 is a real difference.

    Raises:
        InputError: the two answered different queries.
    """
    if ranks.queries != other.queries:
        sizes = [f"{len(one.filenames)} pictures and {len(one.captions)} captions" for one in (ranks, other)]
        raise InputError(f"the two were tested on different queries ({sizes[0]}; {sizes[1]}): test both on the same split")
    hit_Q, picture_Q = hits(ranks, metric)
    return mean_interval(hit_Q - hits(other, metric)[0], picture_Q, confidence, samples)


def worst(ranks: QueryRanks, direction: str, count: int) -> list[Miss]:
    """The ``count`` queries whose right answer came last, with the wrong answer that came first; only those that missed at all."""
    picture_C = ranks.picture_C.tolist()
    from_picture = direction == "image_to_text"
    asked, answers = (ranks.filenames, ranks.texts) if from_picture else (ranks.texts, ranks.filenames)
    rank_Q = ranks.ranks[direction].tolist()
    chosen = sorted((row for row in range(len(asked)) if rank_Q[row] > 1), key=lambda row: (-rank_Q[row], asked[row]))[:count]
    misses = []
    for row in chosen:
        right = {caption for caption, picture in enumerate(picture_C) if picture == row} if from_picture else {picture_C[row]}
        wrong = [answer for answer in ranks.best[direction][row].tolist() if answer not in right]
        found = answers[wrong[0]] if wrong else "(scores are equal)"
        misses.append(Miss(asked[row], answers[min(right)], found, rank_Q[row]))
    return misses
