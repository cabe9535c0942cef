"""The batches that data modules make and models read.

B pictures, C captions (all captions of one picture contiguous), T tokens of the batch's longest caption, H and W pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

Box = tuple[float, float, float, float]


class Phrase(NamedTuple):
    """One annotated phrase of one caption, with its boxes in the picture."""

    caption: int  # row of the caption in the batch: index into `tokens` and `texts`
    text: str
    start: int  # character span in `texts[caption]`
    end: int
    entity: str  # chain id of Flickr30k Entities
    boxes: tuple[Box, ...]  # x1, y1, x2, y2 as fractions of the picture that the model sees; empty when the phrase has none
    positions: tuple[int, ...] = ()  # columns of its tokens in `tokens`; empty when the context ends before it


class ImageTextBatch(NamedTuple):
    """Pictures and their captions."""

    image: Tensor  # (B, 3, H, W) float32, normalised
    view: Tensor | None  # (B, 3, H, W) a second augmented view of the same pictures, when the stage asks for one
    tokens: Tensor  # (C, T) int64
    token_mask: Tensor  # (C, T) bool, True = a real token
    caption_row: Tensor  # (C,) int64: the row of `image` that the caption belongs to
    image_id: Tensor  # (B,) int64: index of the picture in its split; equal id = positive
    caption_id: Tensor  # (C,) int64: index of the caption in its split
    texts: tuple[str, ...]
    filenames: tuple[str, ...]
    phrases: tuple[Phrase, ...]
    answer: Tensor | None = None  # (C,) int64, where captions are questions: index into the data module's `answers`
    kind: Tensor | None = None  # (C,) int64, likewise: index into its `kinds`


def first_captions(batch: ImageTextBatch, count: int) -> ImageTextBatch:
    """The same pictures with the first ``count`` captions of each, and the phrases of those."""
    before = torch.searchsorted(batch.caption_row, batch.caption_row)  # captions of one picture are contiguous: row of its first one
    kept = torch.arange(len(batch.caption_row), device=before.device) - before < count
    row = {caption: number for number, caption in enumerate(kept.nonzero().flatten().tolist())}
    texts = tuple(batch.texts[caption] for caption in row)
    phrases = tuple(phrase._replace(caption=row[phrase.caption]) for phrase in batch.phrases if phrase.caption in row)
    chosen = {name: getattr(batch, name)[kept] for name in ("tokens", "token_mask", "caption_row", "caption_id")}
    chosen |= {name: value[kept] for name in ("answer", "kind") if (value := getattr(batch, name)) is not None}
    return batch._replace(**chosen, texts=texts, phrases=phrases)


class LabelledBatch(NamedTuple):
    """Pictures and the class of each."""

    image: Tensor  # (B, 3, H, W) float32, normalised
    label: Tensor  # (B,) int64
    counted: Tensor  # (B,) bool; False: the same picture is counted elsewhere (several devices evaluate equally many)
    filenames: tuple[str, ...]
