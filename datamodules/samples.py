"""One split as samples: picture, captions and phrase boxes -> ``ImageTextBatch``.

C captions of the split, T token positions.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.flickr30k_files import Picture
from datamodules.image_cache import ImageCache
from datamodules.loading import SampleKey
from datamodules.phrases import Phrases
from insight.data.batch import ImageTextBatch, Phrase
from insight.data.images import Crop, ImageTransform, normalise
from insight.data.text import Tokenizer


class SplitTexts(NamedTuple):
    """The captions of one split, numbered through."""

    texts: tuple[str, ...]
    first: tuple[int, ...]  # picture -> its first caption; one entry more than there are pictures
    tokens_CT: Tensor
    mask_CT: Tensor
    phrases: tuple[tuple[Phrase, ...], ...]  # of each caption; their `caption` is filled in when a batch is made

    def of(self, index: int) -> range:
        """The captions of a picture."""
        return range(self.first[index], self.first[index + 1])


def split_texts(pictures: Sequence[Picture], phrases: Phrases, tokenizer: Tokenizer, context_length: int) -> SplitTexts:
    first = [0]
    for picture in pictures:
        first.append(first[-1] + len(picture.captions))
    texts = tuple(text for picture in pictures for text in picture.captions)
    nothing: tuple[Phrase, ...] = ()
    marked = tuple(one for picture in pictures for one in phrases.get(picture.filename, (nothing,) * len(picture.captions)))
    tokens_CT, mask_CT = tokenizer.encode(texts, context_length)
    return SplitTexts(texts, tuple(first), tokens_CT, mask_CT, marked)


class Sample(NamedTuple):
    """One picture with the captions that go with it."""

    row: int  # in its split
    image: Tensor  # (3, H, W) uint8
    view: Tensor | None
    captions: list[int]
    crop: Crop | None  # None: the whole picture


class Split(Dataset):
    """Pictures of one split as evaluation sees them: whole, with all of their captions."""

    def __init__(self, pictures: Sequence[Picture], rows: Sequence[int], cache: ImageCache, texts: SplitTexts, image_size: int) -> None:
        self.pictures = pictures
        self.rows = rows  # of the cache
        self.cache = cache
        self.texts = texts
        self.transform = ImageTransform(image_size)
        self.place = {picture.filename: index for index, picture in enumerate(pictures)}

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> Sample:
        return Sample(index, self.transform.resize(self.cache[self.rows[index]]), None, list(self.texts.of(index)), None)

    def collate(self, samples: list[Sample]) -> ImageTextBatch:
        captions = torch.tensor([caption for sample in samples for caption in sample.captions])
        views = [sample.view for sample in samples if sample.view is not None]
        phrases, row = [], 0
        for sample in samples:
            for caption in sample.captions:
                phrases += [_seen(phrase, row, sample.crop) for phrase in self.texts.phrases[caption]]
                row += 1
        mask_CT = self.texts.mask_CT[captions]
        longest = int(mask_CT.sum(dim=1).max())  # no model pays for padding that no caption of the batch needs
        return ImageTextBatch(
            image=normalise(torch.stack([sample.image for sample in samples])),
            view=normalise(torch.stack(views)) if views else None,
            tokens=self.texts.tokens_CT[captions, :longest],
            token_mask=mask_CT[:, :longest],
            caption_row=torch.tensor([row for row, sample in enumerate(samples) for _ in sample.captions]),
            image_id=torch.tensor([sample.row for sample in samples]),
            caption_id=captions,
            texts=tuple(self.texts.texts[caption] for caption in captions.tolist()),
            filenames=tuple(self.pictures[sample.row].filename for sample in samples),
            phrases=tuple(phrases),
        )


def _seen(phrase: Phrase, row: int, crop: Crop | None) -> Phrase:
    if crop is None:
        return phrase._replace(caption=row)
    boxes = (crop.box(box) for box in phrase.boxes)
    return phrase._replace(caption=row, boxes=tuple(box for box in boxes if box is not None))


class TrainingSamples(Dataset):
    """Random crops with one or more captions each. A sample depends on (index, seed) alone, not on the process that makes it.

    Args:
        split: The training split.
        transform: Its ``augment`` makes the crops.
        captions_per_image: How many captions, drawn without repetition (again from the start where a picture has fewer), or "all".
        views: 2 = a second crop of every picture.
    """

    def __init__(self, split: Split, transform: ImageTransform, captions_per_image: int | Literal["all"], views: int) -> None:
        self.split = split
        self.transform = transform
        self.captions_per_image = captions_per_image
        self.views = views

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, key: SampleKey) -> Sample:
        index, seed = key
        lot = random.Random(seed)
        picture = self.split.cache[self.split.rows[index]]
        captions = list(self.split.texts.of(index))
        if self.captions_per_image != "all":
            order = lot.sample(captions, len(captions))
            captions = [order[turn % len(order)] for turn in range(self.captions_per_image)]
        image, crop = self.transform.augment(picture, lot)
        view = self.transform.augment(picture, lot)[0] if self.views == 2 else None
        return Sample(index, image, view, captions, crop)
