"""One split as samples: picture, captions and phrase boxes -> ``ImageTextBatch``.

C captions of the split, T token positions. Where features of a locked image tower are served, they stand in the picture's place.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.feature_cache import FeatureCache
from datamodules.flickr30k_files import Picture
from datamodules.image_cache import ImageCache
from datamodules.loading import SampleKey
from datamodules.phrases import Phrases
from insight.data.augmentation import TextAugmentation
from insight.data.batch import ImageTextBatch, Phrase
from insight.data.images import Crop, ImageTransform, normalise, working_size
from insight.data.regions import positions_of
from insight.data.text import Tokenizer
from insight.stages import derive_seed


class SplitTexts(NamedTuple):
    """The captions of one split, numbered through."""

    texts: tuple[str, ...]
    first: tuple[int, ...]  # picture -> its first caption; one entry more than there are pictures
    tokens_CT: Tensor
    mask_CT: Tensor
    phrases: tuple[tuple[Phrase, ...], ...]  # of each caption; their `caption` is filled in when a batch is made
    tokenizer: Tokenizer

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
    return SplitTexts(texts, tuple(first), tokens_CT, mask_CT, marked, tokenizer)


class Sample(NamedTuple):
    """One picture with the captions that go with it."""

    row: int  # in its split
    image: Tensor  # (3, H, W) uint8, or features (tokens, width)
    view: Tensor | None  # likewise
    captions: list[int]
    crop: Crop | None  # None: the whole picture
    texts: tuple[str, ...] | None = None  # the captions as augmentation left them; None: unchanged


class Split(Dataset):
    """Pictures of one split as evaluation sees them: whole, with all of their captions."""

    def __init__(self, pictures: Sequence[Picture], rows: Sequence[int], cache: ImageCache, texts: SplitTexts, image_size: int) -> None:
        self.pictures = pictures
        self.rows = rows  # of the cache
        self.cache = cache
        self.texts = texts
        self.transform = ImageTransform(image_size)
        self.place = {picture.filename: index for index, picture in enumerate(pictures)}
        self._marked: dict[int, tuple[Phrase, ...]] = {}

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> Sample:
        return Sample(index, self.transform.resize(self.cache[self.rows[index]]), None, list(self.texts.of(index)), None)

    def marked(self, caption: int) -> tuple[Phrase, ...]:
        """The phrases of a caption, each with the places of its tokens. They are looked for once, when first asked for."""
        if caption not in self._marked:
            phrases = self.texts.phrases[caption]
            words = self.texts.tokenizer.words(self.texts.texts[caption], self.texts.tokens_CT.shape[1]) if phrases else []
            self._marked[caption] = tuple(one._replace(positions=positions_of(one, words)) for one in phrases)
        return self._marked[caption]

    def collate(self, samples: list[Sample]) -> ImageTextBatch:
        captions = torch.tensor([caption for sample in samples for caption in sample.captions])
        views = [sample.view for sample in samples if sample.view is not None]
        texts, phrases, changed = [], [], []
        for sample in samples:
            for number, caption in enumerate(sample.captions):
                own = self.texts.texts[caption]
                texts.append(own if sample.texts is None else sample.texts[number])
                if texts[-1] == own:
                    phrases += [_seen(phrase, len(texts) - 1, sample.crop) for phrase in self.marked(caption)]
                else:
                    changed.append(len(texts) - 1)
        tokens_CT, mask_CT = self.texts.tokens_CT[captions], self.texts.mask_CT[captions]
        if changed:
            tokens_CT[changed], mask_CT[changed] = self.texts.tokenizer.encode([texts[row] for row in changed], tokens_CT.shape[1])
        longest = int(mask_CT.sum(dim=1).max())  # no model pays for padding that no caption of the batch needs
        return ImageTextBatch(
            image=_as_read(torch.stack([sample.image for sample in samples])),
            view=_as_read(torch.stack(views)) if views else None,
            tokens=tokens_CT[:, :longest],
            token_mask=mask_CT[:, :longest],
            caption_row=torch.tensor([row for row, sample in enumerate(samples) for _ in sample.captions]),
            image_id=torch.tensor([sample.row for sample in samples]),
            caption_id=captions,
            texts=tuple(texts),
            filenames=tuple(self.pictures[sample.row].filename for sample in samples),
            phrases=tuple(phrases),
        )


def _as_read(image: Tensor) -> Tensor:
    """Pixels are normalised, features are widened."""
    return normalise(image) if image.dtype == torch.uint8 else image.float()


def _seen(phrase: Phrase, row: int, crop: Crop | None) -> Phrase:
    if crop is None:
        return phrase._replace(caption=row)
    boxes = (crop.box(box) for box in phrase.boxes)
    return phrase._replace(caption=row, boxes=tuple(box for box in boxes if box is not None))


class FixedViews:
    """A few views of each picture, always the same: the whole one, its mirror image where ``transform`` mirrors, then random crops.

    Args:
        transform: Its ``augment`` makes the crops.
        count: Views of each picture.
        seed: With the picture's row and the view's number it decides on the crop.
    """

    def __init__(self, transform: ImageTransform, count: int, seed: int) -> None:
        self.transform, self.count, self.seed = transform, count, seed
        self.side = working_size(transform.image_size)

    def __len__(self) -> int:
        return self.count

    @property
    def key(self) -> list[float]:
        """All that the views depend on, beside the pictures."""
        transform = self.transform
        more = [] if transform.more is None else list(dataclasses.astuple(transform.more))
        return [transform.image_size, transform.crop_scale_min, transform.color_jitter, transform.flip, self.seed, self.count, *more]

    def crop(self, row: int, view: int) -> Crop | None:
        """None: the whole picture."""
        if view == 0:
            return None
        if view == 1 and self.transform.flip:
            return Crop(0, 0, self.side, self.side, self.side, mirrored=True)
        return self.transform.draw_crop(self.side, self._lot(row, view))

    def pixels(self, image: Tensor, row: int, view: int) -> Tensor:
        """Working image (3, S, S) uint8 -> (3, H, W) uint8."""
        if view == 0:
            return self.transform.resize(image)
        if view == 1 and self.transform.flip:
            return self.transform.resize(image).flip(-1)
        return self.transform.augment(image, self._lot(row, view))[0]

    def _lot(self, row: int, view: int) -> random.Random:
        return random.Random(derive_seed(self.seed, "view", row, view))


class WholeFeatures(Dataset):
    """What ``Split`` serves, with features in the pictures' place."""

    def __init__(self, split: Split, features: FeatureCache) -> None:
        self.split, self.features = split, features

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> Sample:
        return Sample(index, self.features[index, 0], None, list(self.split.texts.of(index)), None)


class TrainingSamples(Dataset):
    """Random crops with one or more captions each. A sample depends on (index, seed) alone, not on the process that makes it.

    Args:
        split: The training split.
        transform: Its ``augment`` makes the crops.
        captions_per_image: How many captions, drawn without repetition (again from the start where a picture has fewer), or "all".
        views: 2 = a second crop of every picture.
        fixed: Draw one of these views instead of a new crop.
        features: Of these views, in the pictures' place.
        words: Changes the captions.
    """

    def __init__(
        self,
        split: Split,
        transform: ImageTransform,
        captions_per_image: int | Literal["all"],
        views: int,
        fixed: FixedViews | None = None,
        features: FeatureCache | None = None,
        words: TextAugmentation | None = None,
    ) -> None:
        self.split = split
        self.transform = transform
        self.captions_per_image = captions_per_image
        self.views = views
        self.fixed = fixed
        self.features = features
        self.words = words

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, key: SampleKey) -> Sample:
        index, seed = key
        lot = random.Random(seed)
        captions = list(self.split.texts.of(index))
        if self.captions_per_image != "all":
            order = lot.sample(captions, len(captions))
            captions = [order[turn % len(order)] for turn in range(self.captions_per_image)]
        image, crop = self._draw(index, lot)
        view = self._draw(index, lot)[0] if self.views == 2 else None
        texts = None
        if self.words is not None:
            own = random.Random(derive_seed(seed, "words"))  # its own, so that pictures are those without it
            texts = tuple(self.words(self.split.texts.texts[caption], own) for caption in captions)
        return Sample(index, image, view, captions, crop, texts)

    def _draw(self, index: int, lot: random.Random) -> tuple[Tensor, Crop | None]:
        if self.fixed is None:
            return self.transform.augment(self.split.cache[self.split.rows[index]], lot)
        view = lot.randrange(len(self.fixed))
        crop = self.fixed.crop(index, view)
        if self.features is not None:
            return self.features[index, view], crop
        return self.fixed.pixels(self.split.cache[self.split.rows[index]], index, view), crop
