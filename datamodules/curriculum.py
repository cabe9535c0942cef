"""Orders of an epoch's pictures other than at random: a stage's ``data.curriculum``. Each is a function of (stage seed, epoch) alone.

N pictures, D width of a description.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from insight.errors import InputError

WIDTH = 64  # of a picture's description: enough for the order of neighbours


class ByLength:
    """Pictures with short captions first; longer ones join until all are there.

    Competence of https://arxiv.org/abs/1903.09848, equation 1 (linear), with the mean number of words of a picture's captions as
    difficulty: epoch e draws from the easiest ``start + (1 - start) e / epochs`` of the pictures. Every epoch has as many batches as any
    other; no picture is twice in a batch.

    Args:
        captions: Of every training picture.
        batch_size: Pictures per step, over all devices.
        epochs: From this epoch on, all pictures are drawn from.
        start: Part of the pictures in the first epoch.

    Raises:
        InputError: a setting out of range.
    """

    def __init__(self, captions: Sequence[Sequence[str]], batch_size: int, epochs: int, start: float = 0.3) -> None:
        if epochs < 1:
            raise InputError(f"curriculum.arguments.epochs={epochs}: must be at least 1")
        if not 0 < start <= 1:
            raise InputError(f"curriculum.arguments.start={start}: must be above 0 and at most 1")
        difficulty = [sum(len(text.split()) for text in texts) / len(texts) for texts in captions]
        self.easiest_first = sorted(range(len(captions)), key=lambda picture: (difficulty[picture], picture))
        self.batch_size, self.epochs, self.start = batch_size, epochs, start

    def __call__(self, epoch: int, generator: torch.Generator) -> list[int]:
        """Pictures of all batches of the epoch, one after the other."""
        total = len(self.easiest_first)
        competence = min(1.0, self.start + (1 - self.start) * epoch / self.epochs)
        pool = max(self.batch_size, math.ceil(competence * total))
        order: list[int] = []
        while len(order) < total // self.batch_size * self.batch_size:
            shuffled = torch.randperm(pool, generator=generator).tolist()
            order += [self.easiest_first[place] for place in shuffled[: pool // self.batch_size * self.batch_size]]
        return order


class BySimilarity:
    """Groups of pictures of which people say similar things share a batch, so that its negatives are hard. Every picture once an epoch.

    A picture is described by the words of its captions, weighed by inverse document frequency and projected at random; a group is a
    random picture and the nearest of those that are left. So groups grow from 1 (no curriculum) to ``group``. Similar captions may say the
    same: watch ``train/false_negative_rate``.

    Args:
        captions: Of every training picture.
        batch_size: Pictures per step, over all devices.
        group: Pictures of a group.
        epochs: From this epoch on, groups are whole; 0 = from the start.

    Raises:
        InputError: a setting out of range.
    """

    def __init__(self, captions: Sequence[Sequence[str]], batch_size: int, group: int = 8, epochs: int = 0) -> None:
        if not 1 <= group <= batch_size:
            raise InputError(f"curriculum.arguments.group={group}: must be from 1 to the batch size, {batch_size}")
        if epochs < 0:
            raise InputError(f"curriculum.arguments.epochs={epochs}: must be 0 or more")
        self.group, self.epochs = group, epochs
        self.description_ND = describe(captions)

    def __call__(self, epoch: int, generator: torch.Generator) -> list[int]:
        """All pictures, group after group."""
        total = len(self.description_ND)
        size = 1 + round((self.group - 1) * min(1.0, epoch / self.epochs if self.epochs else 1.0))
        left_N = torch.ones(total, dtype=torch.bool)
        groups = []
        for picture in torch.randperm(total, generator=generator).tolist():
            if left_N[picture]:
                near_N = (self.description_ND @ self.description_ND[picture]).masked_fill(~left_N, -math.inf)
                near_N[picture] = math.inf
                chosen = near_N.topk(min(size, int(left_N.sum()))).indices
                left_N[chosen] = False
                groups.append(chosen.tolist())
        shuffled = torch.randperm(len(groups), generator=generator).tolist()  # what is left at last are odd ones: not always the last batch
        return [picture for place in shuffled for picture in groups[place]]


def describe(captions: Sequence[Sequence[str]]) -> Tensor:
    """Words of each picture's captions, by inverse document frequency, through a fixed random projection: (N, D), length 1."""
    said = [Counter(word for text in texts for word in re.findall(r"\w+", text.lower())) for texts in captions]
    pictures = Counter(word for words in said for word in words)
    row = {word: place for place, word in enumerate(sorted(pictures))}
    axes_VD = torch.randn(len(row), WIDTH, generator=torch.Generator().manual_seed(0))
    description = []
    for words in said:
        weight = torch.tensor([count * math.log(len(said) / pictures[word]) for word, count in words.items()])
        description.append(weight @ axes_VD[[row[word] for word in words]])
    return F.normalize(torch.stack(description), dim=1)
