"""Two baselines without a network, reported beside every result: what colours alone and what captions alone can do.

N training pictures, B pictures, C captions, K bins of the colour histogram, V words, S side of a picture.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from insight.metrics import ranks_from_scores, retrieval_scores

BINS = 4  # per channel: 4 x 4 x 4 joint bins
MOST_WORDS = 2000  # of the bag of words: the most frequent ones
RIDGE = 1e-2  # times the mean of the diagonal, so that it does not depend on how many pictures there are
BIGRAM, UNIGRAM = 0.9, 0.09  # weights of the interpolated language model; the rest is uniform
TIE = 1e-5  # scores that differ by less are equal but for rounding


class Baseline(Protocol):
    def score(self, images: Tensor, captions: Sequence[str]) -> Tensor:
        """(B, 3, S, S) uint8, C captions -> (B, C)."""
        ...


class Negative(NamedTuple):
    """A hard negative of one of the pictures."""

    image: int  # row
    caption: str
    negative: str
    seen: bool


def words_of(caption: str) -> list[str]:
    """
    >>> words_of("A red circle, and it's big.")
    ['a', 'red', 'circle', 'and', "it's", 'big']
    """
    return re.findall(r"[\w']+", caption.lower())


def colour_histogram(images: Tensor) -> Tensor:
    """(B, 3, S, S) uint8 -> (B, K), square roots of the joint RGB frequencies (so that rows have unit length)."""
    counts_BK = torch.zeros(len(images), BINS**3)
    for row, image in enumerate(images):
        red, green, blue = image // (256 // BINS)
        counts_BK[row] = torch.bincount(((red * BINS + green) * BINS + blue).flatten(), minlength=BINS**3)
    return (counts_BK / counts_BK.sum(dim=1, keepdim=True)).sqrt()


def bag_of_words(captions: Sequence[str], columns: dict[str, int]) -> Tensor:
    """C captions -> (C, V) counts; words without a column are left out."""
    places = [row * len(columns) + columns[word] for row, caption in enumerate(captions) for word in words_of(caption) if word in columns]
    counts = torch.bincount(torch.tensor(places, dtype=torch.int64), minlength=len(captions) * len(columns))
    return counts.view(len(captions), len(columns)).float()


class ColourHistogram(NamedTuple):
    """Ridge regression from a picture's colours to the words that are said of it; a caption's score is the cosine with its own words."""

    columns: dict[str, int]
    histogram_mean_K: Tensor
    bag_mean_V: Tensor
    weight_KV: Tensor

    @classmethod
    def fit(cls, images: Tensor, captions: Sequence[Sequence[str]]) -> ColourHistogram:
        """(N, 3, S, S) uint8, and the captions of each picture."""
        frequent = Counter(word for group in captions for caption in group for word in words_of(caption)).most_common(MOST_WORDS)
        columns = {word: column for column, (word, _) in enumerate(frequent)}
        histogram_NK = colour_histogram(images)
        num_captions_N1 = torch.tensor([[len(group)] for group in captions])
        bag_NV = bag_of_words([" ".join(group) for group in captions], columns) / num_captions_N1
        histogram_mean_K, bag_mean_V = histogram_NK.mean(dim=0), bag_NV.mean(dim=0)
        x_NK, y_NV = histogram_NK - histogram_mean_K, bag_NV - bag_mean_V
        gram_KK = x_NK.T @ x_NK
        gram_KK += torch.eye(len(gram_KK)) * (RIDGE * gram_KK.diagonal().mean() + 1e-8)
        return cls(columns, histogram_mean_K, bag_mean_V, torch.linalg.solve(gram_KK, x_NK.T @ y_NV))

    def score(self, images: Tensor, captions: Sequence[str]) -> Tensor:
        """(B, 3, S, S) uint8, C captions -> (B, C) cosines; captions with the same words get the same score."""
        expected_BV = (colour_histogram(images) - self.histogram_mean_K) @ self.weight_KV
        said_CV = bag_of_words(captions, self.columns) - self.bag_mean_V
        return torch.nn.functional.normalize(expected_BV, dim=1) @ torch.nn.functional.normalize(said_CV, dim=1).T


class BlindPrior(NamedTuple):
    """A bigram language model of the training captions: how likely a caption is when the picture is not looked at."""

    bigrams: Counter[tuple[str, str]]
    before: Counter[str]  # how often a word has a successor
    unigrams: Counter[str]

    @classmethod
    def fit(cls, images: Tensor, captions: Sequence[Sequence[str]]) -> BlindPrior:
        """``images`` are not used."""
        sentences = [_framed(caption) for group in captions for caption in group]
        bigrams = Counter(pair for words in sentences for pair in pairwise(words))
        before = Counter(word for words in sentences for word in words[:-1])
        unigrams = Counter(word for words in sentences for word in words[1:])
        return cls(bigrams, before, unigrams)

    def score(self, images: Tensor, captions: Sequence[str]) -> Tensor:
        """(B, ...), C captions -> (B, C): mean log-probability of a word, the same for every picture."""
        total = self.unigrams.total()
        return torch.tensor([self._log_probability(caption, total) for caption in captions]).expand(len(images), -1)

    def _log_probability(self, caption: str, total: int) -> float:
        words = _framed(caption)
        logs = []
        for first, second in pairwise(words):
            bigram = self.bigrams[first, second] / max(1, self.before[first])
            uniform = (1 - BIGRAM - UNIGRAM) / (len(self.unigrams) + 1)
            logs.append(math.log(BIGRAM * bigram + UNIGRAM * self.unigrams[second] / max(1, total) + uniform))
        return math.fsum(logs) / len(logs)


def _framed(caption: str) -> list[str]:
    return ["<start>", *words_of(caption), "<end>"]


def chosen_fraction(true_N: Tensor, false_N: Tensor) -> float:
    """How often the true caption is chosen; between equal scores a coin is tossed, so each tie is half a hit.

    Kinder than :func:`insight.metrics.hard_negative_accuracy`, which counts a model's ties as misses: a baseline that can't tell two
    sentences apart is then at chance, .5, and not at 0.
    """
    difference_N = true_N - false_N
    return float(torch.where(difference_N.abs() <= TIE, 0.5, (difference_N > 0).float()).mean())


def evaluate_baseline(
    baseline: Baseline, images: Tensor, captions: Sequence[Sequence[str]], negatives: Iterable[Negative] = ()
) -> dict[str, float]:
    """Retrieval scores under the names of :func:`insight.metrics.retrieval_scores`, and ``hard_negative_accuracy_seen`` and ``_unseen``
    where there are such negatives."""
    image_id_B = torch.arange(len(images))
    caption_image_id_C = torch.repeat_interleave(image_id_B, torch.tensor([len(group) for group in captions]))
    scores_BC = baseline.score(images, [caption for group in captions for caption in group])
    found = retrieval_scores(ranks_from_scores(scores_BC, image_id_B, caption_image_id_C))
    negatives = list(negatives)
    for name, seen in (("seen", True), ("unseen", False)):
        chosen = [negative for negative in negatives if negative.seen == seen]
        if chosen:
            rows_N, columns_N = torch.tensor([negative.image for negative in chosen]), torch.arange(len(chosen))
            true_N = baseline.score(images, [negative.caption for negative in chosen])[rows_N, columns_N]
            false_N = baseline.score(images, [negative.negative for negative in chosen])[rows_N, columns_N]
            found[f"hard_negative_accuracy_{name}"] = chosen_fraction(true_N, false_N)
    return found
