"""What counting alone foresees of a text: how often tokens occur, and what follows what. V vocabulary."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

from insight.data.language import TextCodec
from insight.language_metrics import figures


class CountedModel(Protocol):
    def loss(self, before: int, token: int) -> float:
        """``-log p(token | before)``."""
        ...


class Unigram(NamedTuple):
    """How often each token is named in training, plus one (Laplace), so that none is impossible."""

    counts: Counter[int]
    total: int
    vocab_size: int

    @classmethod
    def fit(cls, windows: Iterable[Sequence[int]], vocab_size: int) -> Unigram:
        counts = Counter(token for window in windows for token in window[1:])
        return cls(counts, sum(counts.values()), vocab_size)

    def loss(self, before: int, token: int) -> float:
        return math.log(self.total + self.vocab_size) - math.log(self.counts[token] + 1)


class Bigram(NamedTuple):
    """How often a token follows another, mixed with the unigram as Witten and Bell do: the more kinds of tokens follow, the more weight the
    unigram has (1991; as told in https://arxiv.org/abs/cmp-lg/9606011)."""

    counts: Counter[tuple[int, int]]
    totals: Counter[int]  # of the token before
    kinds: Counter[int]  # how many different tokens follow it
    unigram: Unigram

    @classmethod
    def fit(cls, windows: Sequence[Sequence[int]], vocab_size: int) -> Bigram:
        counts = Counter(pair for window in windows for pair in itertools.pairwise(window))
        totals: Counter[int] = Counter()
        for (before, _), count in counts.items():
            totals[before] += count
        return cls(counts, totals, Counter(before for before, _ in counts), Unigram.fit(windows, vocab_size))

    def loss(self, before: int, token: int) -> float:
        unseen = self.kinds[before]
        backed = math.exp(-self.unigram.loss(before, token))
        if not unseen:
            return -math.log(backed)
        return -math.log((self.counts[before, token] + unseen * backed) / (self.totals[before] + unseen))


def evaluate_counted(model: CountedModel, windows: Iterable[Sequence[int]], codec: TextCodec) -> dict[str, float]:
    """The figures of ``LanguageFigures`` on these windows."""
    pairs = Counter(pair for window in windows for pair in itertools.pairwise(window))
    loss = math.fsum(count * model.loss(before, token) for (before, token), count in pairs.items())
    tokens = Counter[int]()
    for (_, token), count in pairs.items():
        tokens[token] += count
    return figures(loss, *text_sizes(tokens, codec))


def uniform_figures(windows: Iterable[Sequence[int]], codec: TextCodec) -> dict[str, float]:
    """Chance level: every token as probable as any other."""
    tokens = Counter(token for window in windows for token in window[1:])
    return figures(sum(tokens.values()) * math.log(codec.size), *text_sizes(tokens, codec))


def text_sizes(tokens: Counter[int], codec: TextCodec) -> tuple[float, float, float]:
    """Tokens, words and bytes of what is named; an end counts as a word."""
    starts, sizes = codec.word_starts().tolist(), codec.byte_counts().tolist()
    words = sum(count * (starts[token] or token == codec.end) for token, count in tokens.items())
    return sum(tokens.values()), words, sum(count * sizes[token] for token, count in tokens.items())
