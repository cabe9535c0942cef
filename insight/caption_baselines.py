"""Two captioners without a network, reported beside every generated caption: copy a training caption, by colours or without a look.

N training pictures, B pictures, K bins of the colour histogram, S side of a picture.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from insight.baselines import BlindPrior, colour_histogram, words_of


class Captioner(Protocol):
    def write(self, images: Tensor) -> list[str]:
        """(B, 3, S, S) uint8 -> B captions."""
        ...


class NearestCaption(NamedTuple):
    """The first caption of the training picture whose colours are nearest (Bhattacharyya coefficient of joint RGB histograms)."""

    histogram_NK: Tensor
    captions: tuple[str, ...]

    @classmethod
    def fit(cls, images: Tensor, captions: Sequence[Sequence[str]]) -> NearestCaption:
        """(N, 3, S, S) uint8, and the captions of each picture."""
        return cls(colour_histogram(images), tuple(group[0] for group in captions))

    def write(self, images: Tensor) -> list[str]:
        nearest_B = (colour_histogram(images) @ self.histogram_NK.T).argmax(dim=1)
        return [self.captions[row] for row in nearest_B.tolist()]


class FrequentCaption(NamedTuple):
    """The caption that training has most often, case and punctuation aside, for every picture; of several the likeliest words win."""

    caption: str

    @classmethod
    def fit(cls, images: Tensor, captions: Sequence[Sequence[str]]) -> FrequentCaption:
        """``images`` are not used."""
        written = {" ".join(words_of(text)): text for group in captions for text in group}
        counts = Counter(" ".join(words_of(text)) for group in captions for text in group)
        most = [written[words] for words, count in counts.items() if count == max(counts.values())]
        if len(most) == 1:
            return cls(most[0])
        likelihood = BlindPrior.fit(images, captions).score(torch.empty(1), most)[0]
        return cls(most[int(likelihood.argmax())])

    def write(self, images: Tensor) -> list[str]:
        return [self.caption] * len(images)
