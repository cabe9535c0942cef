"""Fixed pairs that methods of explanation are tried on: pictures with captions, and the phrases that people have marked in them.

B captions, each with its picture; P phrases with boxes, T text tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from insight.data.batch import Box, ImageTextBatch, Phrase
from insight.data.regions import positions_of
from insight.data.text import Word
from insight.interpret.maps import BoxedPhrase, Example, WordSpan


class Encoder(Protocol):
    """What is asked of a tokenizer: ``insight.data.text.Tokenizer``."""

    def encode(self, texts: Sequence[str], context_length: int) -> tuple[Tensor, Tensor]: ...

    def words(self, text: str, context_length: int) -> list[Word]: ...


@dataclasses.dataclass(frozen=True)
class Probe:
    """Captions with their pictures, and every phrase that can be pointed at.

    Args:
        batch: The captions; row c belongs to picture ``batch.caption_row[c]``.
        words: Of each caption, those within the context.
        phrases: With boxes; ``phrase.caption`` is a row of ``batch.tokens``.
        positions: Of each phrase, the columns of its tokens in its caption.
        others: Of each phrase, the boxes of everything else that is marked in its picture.
        alone: The same pictures with each phrase as a caption of its own, in the order of ``phrases``; None = there is no phrase.
        cut: Phrases that are left out because the context has cut their words off.
    """

    batch: ImageTextBatch
    words: tuple[tuple[Word, ...], ...]
    phrases: tuple[Phrase, ...]
    positions: tuple[tuple[int, ...], ...]
    others: tuple[tuple[Box, ...], ...]
    alone: ImageTextBatch | None
    cut: int

    def __len__(self) -> int:
        return len(self.batch.texts)

    @property
    def pictures(self) -> Tensor:
        """(P,) which picture each phrase is in."""
        return self.batch.caption_row[[phrase.caption for phrase in self.phrases]]

    def examples(self) -> tuple[Example, ...]:
        """One for each caption, with the phrases that are here."""
        found: list[list[BoxedPhrase]] = [[] for _ in self.batch.texts]
        for one in self.phrases:
            found[one.caption].append(BoxedPhrase(one.text, one.start, one.end, one.entity, one.boxes))
        return tuple(
            Example(
                self.batch.filenames[int(self.batch.caption_row[row])],
                caption,
                tuple(WordSpan(*word) for word in self.words[row]),
                tuple(found[row]),
            )
            for row, caption in enumerate(self.batch.texts)
        )


def make_probe(batch: ImageTextBatch, tokenizer: Encoder, context_length: int) -> Probe:
    """Find the tokens of every phrase with boxes, and write each phrase as a caption of its own."""
    words = tuple(tuple(tokenizer.words(text, context_length)) for text in batch.texts)
    marked = [phrase for phrase in batch.phrases if phrase.boxes]
    columns = [positions_of(phrase, words[phrase.caption]) for phrase in marked]
    kept = [index for index, found in enumerate(columns) if found]
    phrases = tuple(marked[index] for index in kept)
    return Probe(
        batch,
        words,
        phrases,
        tuple(columns[index] for index in kept),
        tuple(_others(phrase, batch, marked) for phrase in phrases),
        _alone(batch, phrases, tokenizer, context_length) if phrases else None,
        len(marked) - len(kept),
    )


def _others(phrase: Phrase, batch: ImageTextBatch, marked: Sequence[Phrase]) -> tuple[Box, ...]:
    """Boxes of other entities of the same picture; one that several captions mark counts once."""
    picture = int(batch.caption_row[phrase.caption])
    here = [one for one in marked if int(batch.caption_row[one.caption]) == picture and one.entity != phrase.entity]
    return tuple(dict.fromkeys(box for one in here for box in one.boxes if box not in phrase.boxes))


def _alone(batch: ImageTextBatch, phrases: Sequence[Phrase], tokenizer: Encoder, context_length: int) -> ImageTextBatch:
    texts = tuple(phrase.text for phrase in phrases)
    tokens_PT, mask_PT = tokenizer.encode(texts, context_length)
    longest = int(mask_PT.sum(dim=1).max())
    picture_P = batch.caption_row[[phrase.caption for phrase in phrases]]
    ids = torch.arange(len(texts))
    return ImageTextBatch(
        batch.image, None, tokens_PT[:, :longest], mask_PT[:, :longest], picture_P, batch.image_id, ids, texts, batch.filenames, ()
    )
