"""Flickr30k as people have it on disk, served as batches of pictures and captions. (Skeleton: signatures are final.)"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import lightning as L
from torch.utils.data import DataLoader

from insight.data.batch import ImageTextBatch
from insight.data.text import Tokenizer


class Flickr30kDataModule(L.LightningDataModule):
    generated = False  # True where the pictures are made by a program, which the first line of a run must say
    name = "Flickr30k"

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
    ) -> None:
        super().__init__()

    tokenizer: Tokenizer

    def configure_stage(
        self,
        stage_seed: int,
        batch_size: int | None = None,
        captions_per_image: int | Literal["all"] | None = None,
        views: int | None = None,
        crop_scale_min: float | None = None,
        color_jitter: float | None = None,
        flip: bool | None = None,
    ) -> None:
        raise NotImplementedError

    def locate(self) -> Path:
        """The folder that is read. ScenesDataModule overrides this (and prepare_data, calling super() after rendering)."""
        raise NotImplementedError

    def prepare_data(self) -> None:
        raise NotImplementedError

    def setup(self, stage: str | None = None) -> None:
        raise NotImplementedError

    @property
    def num_train_batches(self) -> int:
        raise NotImplementedError

    def train_dataloader(self) -> DataLoader:
        raise NotImplementedError

    def val_dataloader(self) -> DataLoader:
        raise NotImplementedError

    def test_dataloader(self) -> DataLoader:
        raise NotImplementedError

    def predict_dataloader(self) -> DataLoader:
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        raise NotImplementedError

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        raise NotImplementedError

    def fingerprint(self) -> str:
        raise NotImplementedError

    def describe(self) -> str:
        raise NotImplementedError

    def splits(self) -> dict[str, list[str]]:
        raise NotImplementedError

    def hard_negatives(self, split: str) -> list[Any]:
        """HardNegative(filename, caption, negative, kind, seen) of the split's pictures."""
        raise NotImplementedError

    def examples(self, split: str, filenames: list[str]) -> ImageTextBatch:
        raise NotImplementedError

    def probe(self, split: str = "val", num: int = 4, seed: int = 0) -> ImageTextBatch:
        raise NotImplementedError
