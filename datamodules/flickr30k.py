"""Flickr30k as people have it on disk, served as batches of pictures and captions."""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from datamodules.captions import SPLITS
from datamodules.feature_cache import FeatureCache, Features, build_features
from datamodules.flickr30k_files import Flickr30kFiles, HardNegative, Picture, fingerprint, read_flickr30k, read_hard_negatives, remedies
from datamodules.image_cache import ImageCache, build_cache
from datamodules.loading import EpochBatches, EpochOrder, ResumableLoader, evaluation_loader, rank_share
from datamodules.phrases import Phrases, read_phrases
from datamodules.samples import FixedViews, Split, TrainingSamples, WholeFeatures, split_texts
from datamodules.serving import Serving
from insight.data.augmentation import ImageAugmentation, TextAugmentation
from insight.data.batch import ImageTextBatch
from insight.data.pretrained_text import load_tokenizer, read_tokenizer
from insight.data.text import Tokenizer
from insight.errors import InputError
from insight.models.tower import ImageTower
from insight.stages import Call, load

logger = logging.getLogger(__name__)


class Flickr30kDataModule(LightningDataModule):
    """Flickr30k, or any folder in one of its formats.

    Args:
        root: The folder; ``null``: the variable FLICKR30K_ROOT.
        cache_dir: Where decoded pictures are kept, for all runs.
        format: Which caption file to read; ``null``: the first that is there.
        image_size: Side of the model's picture.
        context_length: Tokens of a caption, with its start and end.
        vocab_size: Most entries of the tokenizer that is trained on the training captions.
        tokenizer: A tokenizer file (RUN/tokenizer.json) to use instead of training one; or, for a pretrained text tower, its own: a
            folder, or ``hf-hub:OWNER/MODEL``.
        batch_size: Training pictures per step, over all devices.
        eval_batch_size: Pictures per step of evaluation, per device.
        num_workers: Processes that prepare batches. The batches are the same for every number.
        captions_per_image: Captions of each picture in a training batch, or "all". Evaluation always has all.
        views: 2 serves a second augmented view of every training picture.
        crop_scale_min: Smallest area of a training crop, as a fraction of the picture; 1 = no crop.
        color_jitter: Strength of the change of brightness, contrast and saturation in training; 0 = none.
        flip: Mirror half of the training pictures. Captions that say left or right are then wrong.
        val_size: Validation pictures, below 1 as a fraction; ``null``: a tenth, at most 1000. Unused where Karpathy's splits are known.
        test_size: The same for the test split.
        train_images: Use only so many training pictures, for a quick look.
        eval_images: Use only so many validation and test pictures each.
        entities: Read Flickr30k Entities' phrase boxes where they are.
        skip_broken: Leave out pictures and captions that are broken, and say how many, instead of stopping.
        seed: Of the split by lot, and of the batches outside a stage.
        features: Where the image tower is locked: train on a few fixed views of each picture, and keep their features in ``cache_dir``;
            ``null``: fresh random crops, and the tower at work in every batch.
    """

    generated = False  # True where a program makes the pictures, which the first line of a run must then say
    title = "Flickr30k"
    tokenizer: Tokenizer

    def __init__(
        self,
        root: str | None = None,
        cache_dir: str = "outputs/cache",
        format: Literal["karpathy", "token", "csv", "captions"] | None = None,
        image_size: int = 64,
        context_length: int = 32,
        vocab_size: int = 4000,
        tokenizer: str | None = None,
        batch_size: int = 64,
        eval_batch_size: int = 100,
        num_workers: int = 0,
        captions_per_image: int | Literal["all"] = 1,
        views: int = 1,
        crop_scale_min: float = 0.6,
        color_jitter: float = 0.0,
        flip: bool = False,
        val_size: float | None = None,
        test_size: float | None = None,
        train_images: int | None = None,
        eval_images: int | None = None,
        entities: bool = True,
        skip_broken: bool = False,
        seed: int = 0,
        features: Features | None = None,
    ) -> None:
        super().__init__()
        for name, number, least in (
            ("eval_batch_size", eval_batch_size, 1),
            ("num_workers", num_workers, 0),
            ("train_images", train_images, 1),
            ("eval_images", eval_images, 1),
        ):
            if number is not None and number < least:
                raise InputError(f"data.init_args.{name}={number}: must be at least {least}")
        self.root = root
        self.cache_dir = Path(cache_dir)
        self.format = format
        self.image_size = image_size
        self.context_length = context_length
        self.vocab_size = vocab_size
        self.eval_batch_size = eval_batch_size
        self.num_workers = num_workers
        self.val_size = val_size
        self.test_size = test_size
        self.limits = {"train": train_images, "val": eval_images, "test": eval_images}
        self.entities = entities
        self.skip_broken = skip_broken
        self.seed = seed
        self.features = features
        self._tower: ImageTower | None = None  # locked, and its features are served
        self._tower_regions = True
        self.stop_asked: Callable[[], bool] = lambda: False  # a driver says here how it is to be asked
        self._tokenizer_path = tokenizer
        self._tokenizer_given: Tokenizer | None = None  # of a checkpoint
        self._own = Serving(batch_size, captions_per_image, views, crop_scale_min, color_jitter, flip)
        self._files: Flickr30kFiles | None = None
        self._pictures: tuple[Picture, ...] = ()
        self._cache: ImageCache | None = None
        self._phrases: Phrases = {}
        self._splits: dict[str, Split] = {}
        self.configure_stage(seed)

    def configure_stage(
        self,
        stage_seed: int,
        batch_size: int | None = None,
        captions_per_image: int | Literal["all"] | None = None,
        views: int | None = None,
        crop_scale_min: float | None = None,
        color_jitter: float | None = None,
        flip: bool | None = None,
        text_augmentation: TextAugmentation | None = None,
        image_augmentation: ImageAugmentation | None = None,
        curriculum: Call | None = None,
    ) -> None:
        """How the next training loader serves; None: as the constructor was told, whatever the stage before had.

        Raises:
            InputError: a value out of range.
        """
        self.serving = self._own.changed(
            {
                "batch_size": batch_size,
                "captions_per_image": captions_per_image,
                "views": views,
                "crop_scale_min": crop_scale_min,
                "color_jitter": color_jitter,
                "flip": flip,
                "text_augmentation": text_augmentation,
                "image_augmentation": image_augmentation,
                "curriculum": curriculum,
            }
        )
        self.transform = self.serving.transform(self.image_size)
        self.stage_seed = stage_seed

    # --- from disk ---
    def locate(self) -> Path:
        """The folder to read. A data set that makes its own pictures says here where it has put them.

        Raises:
            InputError: neither ``root`` nor FLICKR30K_ROOT is given.
        """
        root = self.root or os.environ.get("FLICKR30K_ROOT")
        if not root:
            raise InputError(remedies("data=flickr30k: no folder is given"))
        return Path(root).expanduser()

    def prepare_data(self) -> None:
        """Read the captions, and decode every picture once into the cache."""
        if self._cache is not None:
            return
        self._files = read_flickr30k(self.locate(), self.format, self.seed, self.val_size, self.test_size, self.skip_broken, needed=())
        pictures = [picture for split in SPLITS for picture in self._files.split(split)[: self.limits[split]]]
        self._cache, broken = build_cache(pictures, self.image_size, self.cache_dir, self.skip_broken)
        self._rows = {picture.filename: row for row, picture in enumerate(pictures)}
        self._pictures = tuple(picture for picture in pictures if picture.filename not in broken)

    def setup(self, stage: str | None = None) -> None:
        """Whole; ``stage``: what for. An evaluation needs a picture in its own split alone.

        Raises:
            InputError: a split that is needed has no picture.
        """
        self._make()
        assert self._files is not None, "_make read them"
        for split in {"validate": ("val",), "test": ("test",), "predict": ("test",)}.get(stage or "fit", SPLITS):
            if not self._splits[split].pictures:
                what = "none of the pictures can be read, or none is there" if self._files.split(split) else "no picture is in it"
                raise InputError(f"{self._files.root}: the {split} split is empty ({what}; {self._files.splits_by}), and this needs it")

    def _make(self) -> None:
        self.prepare_data()  # on every process; finds the cache that the first one made
        if self._splits:
            return
        self._phrases = read_phrases(self.locate(), self._pictures, self.cache_dir) if self.entities else {}
        self._make_splits()

    def _make_splits(self) -> None:
        """Tokens and samples, with the tokenizer that there is, or with one trained on the training split."""
        assert self._cache is not None
        pictures = {split: [picture for picture in self._pictures if picture.split == split] for split in SPLITS}
        if self._tokenizer_given is not None:
            self.tokenizer = self._tokenizer_given
        elif self._tokenizer_path is not None:
            self.tokenizer = load_tokenizer(self._tokenizer_path)
        else:
            self.tokenizer = Tokenizer.train([text for picture in pictures["train"] for text in picture.captions], self.vocab_size)
        for split, chosen in pictures.items():
            texts = split_texts(chosen, self._phrases, self.tokenizer, self.context_length)
            rows = [self._rows[picture.filename] for picture in chosen]
            self._splits[split] = Split(chosen, rows, self._cache, texts, self.image_size)

    def _split(self, name: str) -> Split:
        if name not in SPLITS:
            raise InputError(f"split '{name}': must be one of {', '.join(SPLITS)}")
        self._make()
        return self._splits[name]

    # --- for the engine ---
    @property
    def num_train_batches(self) -> int:
        """Of one epoch; the same on every device."""
        return len(self._batches())

    def _ranks(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)

    def _batches(self) -> EpochBatches:
        split, batch_size, curriculum = self._split("train"), self.serving.batch_size, self.serving.curriculum
        order: EpochOrder | None = None
        if curriculum is not None:
            captions = [picture.captions for picture in split.pictures]
            order = load(curriculum.function, "curriculum.function")(captions=captions, batch_size=batch_size, **curriculum.arguments)
        return EpochBatches(len(split), batch_size, self.stage_seed, *self._ranks(), order=order)

    def _position(self) -> tuple[int, int]:
        """(epoch, next batch) of the training that runs."""
        if self.trainer is None:
            return 0, 0
        return self.trainer.current_epoch, self.trainer.fit_loop.batch_idx + 1

    def serve_features(self, tower: ImageTower | None, regions: bool = True) -> None:
        """From the next loader on, batches hold this locked tower's features instead of pixels; None: pixels again. ``examples``, ``probe``
        and ``pairs`` have pixels in any case. Without the setting ``features`` nothing changes.

        ``regions``: whether the model reads more than the pooled vector.
        """
        self._tower = tower if self.features is not None and self.features.cache else None
        self._tower_regions = regions

    def _features_of(self, name: str, views: FixedViews) -> FeatureCache | None:
        """Of one split, where they are served: on several devices computed by the first."""
        if self._tower is None:
            return None
        assert self.features is not None, "serve_features saw to it"
        split, (rank, world) = self._split(name), self._ranks()
        if rank and self.trainer is not None:
            self.trainer.strategy.barrier()
        found = build_features(
            self._tower,
            split.pictures,
            lambda row, view: views.pixels(split.cache[split.rows[row]], row, view),
            len(views),
            views.key,
            self.features.precision,
            self._tower_regions,
            self.cache_dir,
            self.stop_asked,
        )
        if world > 1 and not rank and self.trainer is not None:
            self.trainer.strategy.barrier()
        return found

    def train_dataloader(self) -> DataLoader:
        split = self._split("train")
        fixed = FixedViews(self.transform, self.features.views, self.seed) if self.features is not None else None
        features = self._features_of("train", fixed) if fixed is not None else None
        samples = TrainingSamples(
            split, self.transform, self.serving.captions_per_image, self.serving.views, fixed, features, self.serving.text_augmentation
        )
        return ResumableLoader(samples, self._batches(), self._position, split.collate, self.num_workers, torch.cuda.is_available())

    def _evaluation(self, name: str) -> DataLoader:
        split = self._split(name)
        share = rank_share(len(split), *self._ranks())
        features = self._features_of(name, FixedViews(split.transform, 1, 0))
        served = split if features is None else WholeFeatures(split, features)
        return evaluation_loader(served, share, self.eval_batch_size, split.collate, self.num_workers, torch.cuda.is_available())

    def val_dataloader(self) -> DataLoader:
        return self._evaluation("val")

    def test_dataloader(self) -> DataLoader:
        return self._evaluation("test")

    def predict_dataloader(self) -> DataLoader:
        return self._evaluation("test")

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Only the tensors of a batch; Lightning's own way would walk through every phrase and box."""
        if not isinstance(batch, ImageTextBatch):
            return super().transfer_batch_to_device(batch, device, dataloader_idx)
        late = device.type == "cuda"
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=late) for name, value in batch._asdict().items() if isinstance(value, torch.Tensor)
        }
        return batch._replace(**moved)

    def state_dict(self) -> dict[str, Any]:
        return {"tokenizer": self.tokenizer.to_json(), "fingerprint": self.fingerprint()} if self._splits else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Use the checkpoint's tokenizer, here and in what was prepared before."""
        if "tokenizer" not in state_dict:
            return
        self._tokenizer_given = read_tokenizer(state_dict["tokenizer"])
        if not self._splits:
            return
        if state_dict["fingerprint"] != self.fingerprint():
            logger.warning("the data are not those that the checkpoint was trained on: %s", self.describe())
        if state_dict["tokenizer"] != self.tokenizer.to_json():
            self._make_splits()

    # --- for people and callbacks ---
    def fingerprint(self) -> str:
        """SHA-256 over the captions, splits, names and sizes of the pictures in use."""
        self.prepare_data()
        return fingerprint(self._pictures)

    def describe(self) -> str:
        """One line on what is read."""
        sizes = "/".join(f"{len(self._split(split))}" for split in SPLITS)
        assert self._files is not None
        boxes = f"{boxed:,} phrases with boxes" if (boxed := self.num_boxed_phrases()) else "no phrase boxes"
        kind = "generated data: " if self.generated else ""
        what = f"{self._files.format} captions, {sizes} pictures ({self._files.splits_by}), {boxes}"
        return f"{kind}{self.title} at {self._files.root}: {what}"

    def num_boxed_phrases(self) -> int:
        """Phrases of all captions that are marked in their pictures."""
        self._make()
        return sum(bool(phrase.boxes) for rows in self._phrases.values() for row in rows for phrase in row)

    def splits(self) -> dict[str, list[str]]:
        """File names by split, as recorded with a run."""
        return {split: [picture.filename for picture in self._split(split).pictures] for split in SPLITS}

    def hard_negatives(self, split: str) -> list[HardNegative]:
        """Captions with their false twins, of the split's pictures; empty where the folder has none."""
        names = self._split(split).place
        assert self._files is not None
        rows = read_hard_negatives(self._files.root, [picture.filename for picture in self._files.pictures])
        return [row for row in rows if row["filename"] in names]

    def examples(self, split: str, filenames: list[str]) -> ImageTextBatch:
        """The named pictures with all of their captions, as evaluation sees them.

        Raises:
            InputError: a picture that the split doesn't have.
        """
        samples = self._split(split)
        for name in filenames:
            if name not in samples.place:
                raise InputError(f"'{name}' is no picture of the {split} split")
        return samples.collate([samples[samples.place[name]] for name in filenames])

    def probe(self, split: str = "val", num: int = 4, seed: int = 0) -> ImageTextBatch:
        """A few pictures with one caption each, the same for the same data and seed; captions with many boxed phrases come first."""
        samples = self._split(split)
        names = sorted(samples.place)
        random.Random(seed).shuffle(names)

        def boxed(caption: int) -> int:
            return sum(bool(phrase.boxes) for phrase in samples.texts.phrases[caption])

        best = {name: max(samples.texts.of(samples.place[name]), key=boxed) for name in names}
        chosen = sorted(names, key=lambda name: not boxed(best[name]))[:num]
        return samples.collate([samples[samples.place[name]]._replace(captions=[best[name]]) for name in chosen])

    def pairs(self, split: str) -> tuple[Tensor, list[list[str]]]:
        """Every picture as evaluation sees it (N, 3, S, S) uint8, and its captions: for baselines that need no model."""
        samples = self._split(split)
        images = torch.stack([samples[index].image for index in range(len(samples))])
        return images, [list(picture.captions) for picture in samples.pictures]

    def caption_counts(self, split: str) -> list[int]:
        """How many captions each picture has."""
        return [len(picture.captions) for picture in self._split(split).pictures]
