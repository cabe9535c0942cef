"""Pictures with one class each, as batches: what every data set of classes shares. K classes, S side of a working image."""

from __future__ import annotations

import hashlib
import json
import random
from abc import abstractmethod
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datamodules.image_cache import ImageCache, build_cache
from datamodules.loading import EpochBatches, ResumableLoader, SampleKey, evaluation_loader, rank_share
from insight.data.batch import LabelledBatch
from insight.data.images import ImageTransform, normalise
from insight.errors import InputError

SPLITS = ("train", "val", "test")


class LabelledPicture(NamedTuple):
    """One picture file and its class."""

    filename: str  # within the data set
    path: Path
    size: int  # bytes
    modified: int  # nanoseconds
    split: str
    label: int


class Labelled(NamedTuple):
    """What a data set holds."""

    root: Path
    splits_by: str  # who made the splits, for the first line of a run
    classes: tuple[str, ...]
    pictures: tuple[LabelledPicture, ...]


class Serving(NamedTuple):
    """How training batches are made: what a stage may change."""

    batch_size: int
    crop_scale_min: float
    color_jitter: float
    flip: bool


class LabelledDataModule(LightningDataModule):
    """A subclass says in ``find`` what there is.

    Args:
        cache_dir: Where decoded pictures are kept, for all runs.
        image_size: Side of the model's picture.
        serving: How training batches are made.
        eval_batch_size: Pictures per step of evaluation, per device.
        num_workers: Processes that prepare batches. The batches are the same for every number.
        train_images: Use only so many training pictures, drawn by lot.
        eval_images: Use only so many validation and test pictures each, drawn by lot.
        skip_broken: Leave out pictures that cannot be read, and say how many, instead of stopping.
        seed: Of what is drawn by lot, and of the batches outside a stage.

    Raises:
        InputError: a number out of range.
    """

    generated = False
    title: str

    def __init__(
        self,
        cache_dir: str,
        image_size: int,
        serving: Serving,
        eval_batch_size: int,
        num_workers: int,
        train_images: int | None,
        eval_images: int | None,
        skip_broken: bool,
        seed: int,
    ) -> None:
        super().__init__()
        numbers = {"eval_batch_size": (eval_batch_size, 1), "num_workers": (num_workers, 0)}
        numbers |= {"train_images": (train_images or 1, 1), "eval_images": (eval_images or 1, 1)}
        for name, (number, least) in numbers.items():
            if number < least:
                raise InputError(f"data.init_args.{name}={number}: must be at least {least}")
        self.cache_dir, self.image_size, self.skip_broken, self.seed = Path(cache_dir), image_size, skip_broken, seed
        self.eval_batch_size, self.num_workers = eval_batch_size, num_workers
        self.limits = {"train": train_images, "val": eval_images, "test": eval_images}
        self._own = serving
        self._found: Labelled | None = None
        self._splits: dict[str, LabelledSamples] = {}
        self.configure_stage(seed)

    @abstractmethod
    def find(self) -> Labelled:
        """Read or make the data set.

        Raises:
            InputError: it is not there, or not as it should be.
        """

    def configure_stage(
        self,
        stage_seed: int,
        batch_size: int | None = None,
        crop_scale_min: float | None = None,
        color_jitter: float | None = None,
        flip: bool | None = None,
    ) -> None:
        """How the next training loader serves; None: as the constructor was told, whatever the stage before had.

        Raises:
            InputError: a value out of range.
        """
        asked = Serving._make((batch_size, crop_scale_min, color_jitter, flip))._asdict()  # type: ignore[arg-type]
        serving = self._own._replace(**{name: value for name, value in asked.items() if value is not None})
        if serving.batch_size < 1:
            raise InputError(f"batch_size={serving.batch_size}: must be at least 1")
        self.transform = ImageTransform(self.image_size, serving.crop_scale_min, serving.color_jitter, serving.flip)
        self.serving, self.stage_seed = serving, stage_seed

    # --- from disk ---
    def prepare_data(self) -> None:
        """Find the pictures, and decode every one once into the cache."""
        if self._splits:
            return
        found = self.find()
        pictures = [picture for split in SPLITS for picture in self._limited(found, split)]
        cache, broken = build_cache(pictures, self.image_size, self.cache_dir, self.skip_broken)
        whole = [(row, picture) for row, picture in enumerate(pictures) if picture.filename not in broken]
        self._found = found._replace(pictures=tuple(picture for _, picture in whole))
        for split in SPLITS:
            rows = [row for row, picture in whole if picture.split == split]
            if not rows:
                raise InputError(f"{found.root}: no {split} picture can be read: restore them")
            self._splits[split] = LabelledSamples([pictures[row] for row in rows], rows, cache, self.image_size)

    def _limited(self, found: Labelled, split: str) -> list[LabelledPicture]:
        pictures, limit = sorted(picture for picture in found.pictures if picture.split == split), self.limits[split]
        if limit is None or limit >= len(pictures):
            return pictures
        return sorted(random.Random(f"{self.seed}/{split}").sample(pictures, limit))

    def setup(self, stage: str | None = None) -> None:
        self.prepare_data()  # on every process; finds the cache that the first one made

    def _split(self, name: str) -> LabelledSamples:
        if name not in SPLITS:
            raise InputError(f"split '{name}': must be one of {', '.join(SPLITS)}")
        self.setup()
        return self._splits[name]

    # --- for the engine ---
    def _ranks(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)

    def _position(self) -> tuple[int, int]:
        """(epoch, next batch) of the training that runs."""
        if self.trainer is None:
            return 0, 0
        return self.trainer.current_epoch, self.trainer.fit_loop.batch_idx + 1

    def train_dataloader(self) -> DataLoader:
        samples = self._split("train")
        batches = EpochBatches(len(samples), self.serving.batch_size, self.stage_seed, *self._ranks())
        crops = LabelledCrops(samples, self.transform)
        return ResumableLoader(crops, batches, self._position, samples.collate, self.num_workers, torch.cuda.is_available())

    def _evaluation(self, name: str) -> DataLoader:
        samples, (rank, world) = self._split(name), self._ranks()
        share = rank_share(len(samples), rank, world)
        repeated = (len(share) - 1) * world + rank >= len(samples)  # the last of the share began anew
        served = LabelledSamples(
            samples.pictures, samples.rows, samples.cache, self.image_size, uncounted=len(share) - 1 if repeated else None
        )
        keys: Any = list(enumerate(share))
        return evaluation_loader(served, keys, self.eval_batch_size, samples.collate, self.num_workers, torch.cuda.is_available())

    def val_dataloader(self) -> DataLoader:
        return self._evaluation("val")

    def test_dataloader(self) -> DataLoader:
        return self._evaluation("test")

    def predict_dataloader(self) -> DataLoader:
        return self._evaluation("test")

    def state_dict(self) -> dict[str, Any]:
        return {"fingerprint": self.fingerprint(), "classes": list(self.class_names())} if self._splits else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """
        Raises:
            InputError: the weights know other classes than the data have.
        """
        if state_dict and list(self.class_names()) != state_dict["classes"]:
            raise InputError(
                f"these weights know the classes {listed(state_dict['classes'])}, the data have {listed(self.class_names())}: "
                "give data of the same classes"
            )

    # --- for people and callbacks ---
    def class_names(self) -> tuple[str, ...]:
        """Of the K classes, in the order of their labels."""
        self.prepare_data()
        assert self._found is not None
        return self._found.classes

    def labels(self, split: str) -> list[int]:
        """Of every picture."""
        return [picture.label for picture in self._split(split).pictures]

    def fingerprint(self) -> str:
        """SHA-256 over names, sizes, splits and classes of the pictures in use."""
        digest = hashlib.sha256(json.dumps(self.class_names()).encode())
        for split in SPLITS:
            for one in self._split(split).pictures:
                digest.update(json.dumps([one.filename, one.size, one.split, one.label]).encode())
        return digest.hexdigest()

    def describe(self) -> str:
        """One line on what is read."""
        sizes = "/".join(f"{len(self._split(split))}" for split in SPLITS)
        assert self._found is not None
        kind = "generated data: " if self.generated else ""
        return f"{kind}{self.title} at {self._found.root}: {sizes} pictures ({self._found.splits_by}), {len(self.class_names())} classes"

    def splits(self) -> dict[str, list[str]]:
        """File names by split, as recorded with a run."""
        return {split: [picture.filename for picture in self._split(split).pictures] for split in SPLITS}

    def probe(self, split: str = "val", num: int = 4, seed: int = 0) -> LabelledBatch:
        """A few pictures, the same for the same data and seed; of as many classes as can be."""
        samples = self._split(split)
        order = list(range(len(samples)))
        random.Random(seed).shuffle(order)
        turn: Counter[int] = Counter()
        rounds = {}
        for index in order:
            label = samples.pictures[index].label
            rounds[index], turn[label] = turn[label], turn[label] + 1
        chosen = sorted(order, key=lambda index: rounds[index])[:num]
        return samples.collate([samples[(place, index)] for place, index in enumerate(chosen)])


class LabelledSample(NamedTuple):
    """One picture as it is served."""

    row: int  # in its split
    image: Tensor  # (3, H, W) uint8
    counted: bool = True


class LabelledSamples(Dataset):
    """Pictures of one split as evaluation sees them: whole. A key is (place in the order, index in the split).

    Args:
        rows: Of the cache.
        uncounted: Place whose picture is counted elsewhere.
    """

    def __init__(
        self, pictures: Sequence[LabelledPicture], rows: Sequence[int], cache: ImageCache, image_size: int, uncounted: int | None = None
    ) -> None:
        self.pictures, self.rows, self.cache, self.uncounted = pictures, rows, cache, uncounted
        self.transform = ImageTransform(image_size)

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, key: tuple[int, int]) -> LabelledSample:
        place, index = key
        return LabelledSample(index, self.transform.resize(self.cache[self.rows[index]]), place != self.uncounted)

    def collate(self, samples: list[LabelledSample]) -> LabelledBatch:
        return LabelledBatch(
            image=normalise(torch.stack([sample.image for sample in samples])),
            label=torch.tensor([self.pictures[sample.row].label for sample in samples]),
            counted=torch.tensor([sample.counted for sample in samples]),
            filenames=tuple(self.pictures[sample.row].filename for sample in samples),
        )


class LabelledCrops(Dataset):
    """Random crops. A sample depends on (index, seed) alone, not on the process that makes it."""

    def __init__(self, samples: LabelledSamples, transform: ImageTransform) -> None:
        self.samples, self.transform = samples, transform

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: SampleKey) -> LabelledSample:
        index, seed = key
        picture = self.samples.cache[self.samples.rows[index]]
        return LabelledSample(index, self.transform.augment(picture, random.Random(seed))[0])


def picture_file(path: Path, filename: str, split: str, label: int) -> LabelledPicture:
    facts = path.stat()
    return LabelledPicture(filename, path, facts.st_size, facts.st_mtime_ns, split, label)


def listed(names: Sequence[str], shown: int = 6) -> str:
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")
