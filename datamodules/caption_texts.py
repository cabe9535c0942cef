"""The captions of Flickr30k, or of the generated set, as texts: what a language model learns from. No picture is opened."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from datamodules.captions import SPLITS
from datamodules.flickr30k_files import read_flickr30k, remedies
from datamodules.scenes_files import Settings, ensure_scenes
from datamodules.texts import Document, TextDataModule
from insight.errors import InputError


class CaptionTextDataModule(TextDataModule):
    """Flickr30k's captions, a text each; a picture's captions are all in one split.

    Args:
        root: The folder; ``null``: the variable FLICKR30K_ROOT.
        format: Which caption file to read; ``null``: the first that is there.
        context_length: Most tokens of a window; a longer caption becomes several.
        vocab_size: Most entries of the tokenizer that is trained on the training captions.
        tokenizer: A tokenizer file to use instead of training one: RUN/tokenizer.json, or that of a GPT-2 checkpoint.
        batch_size: Captions per step, over all devices.
        eval_batch_size: Captions per step of evaluation, per device.
        num_workers: Processes that prepare batches. The batches are the same for every number.
        val_size: Validation pictures, below 1 as a fraction; ``null``: a tenth, at most 1000. Unused where Karpathy's splits are known.
        test_size: The same for the test split.
        train_images: Use the captions of only so many training pictures, for a quick look.
        eval_images: Use those of only so many validation and test pictures each.
        skip_broken: Leave out what is broken, and say how much, instead of stopping.
        seed: Of the split by lot, and of the batches outside a stage.
    """

    title = "captions"

    def __init__(
        self,
        root: str | None = None,
        format: Literal["karpathy", "token", "csv", "captions"] | None = None,
        context_length: int = 48,
        vocab_size: int = 4000,
        tokenizer: str | None = None,
        batch_size: int = 64,
        eval_batch_size: int = 128,
        num_workers: int = 0,
        val_size: float | None = None,
        test_size: float | None = None,
        train_images: int | None = None,
        eval_images: int | None = None,
        skip_broken: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(context_length, vocab_size, tokenizer, batch_size, eval_batch_size, num_workers, seed)
        for name, number in (("train_images", train_images), ("eval_images", eval_images)):
            if number is not None and number < 1:
                raise InputError(f"data.init_args.{name}={number}: must be at least 1")
        self.root, self.format, self.val_size, self.test_size, self.skip_broken = root, format, val_size, test_size, skip_broken
        self.limits = {"train": train_images, "val": eval_images, "test": eval_images}

    def locate(self) -> Path:
        """
        Raises:
            InputError: neither ``root`` nor FLICKR30K_ROOT is given.
        """
        root = self.root or os.environ.get("FLICKR30K_ROOT")
        if not root:
            raise InputError(remedies("data=flickr30k_text: no folder is given"))
        return Path(root).expanduser()

    def place(self) -> str:
        return str(self.locate())

    def read(self) -> dict[str, list[Document]]:
        files = read_flickr30k(self.locate(), self.format, self.seed, self.val_size, self.test_size, self.skip_broken)
        return {
            split: [
                Document(f"{picture.filename}#{number}", text)
                for picture in files.split(split)[: self.limits[split]]
                for number, text in zip(picture.numbers, picture.captions, strict=True)
            ]
            for split in SPLITS
        }


class SceneTextDataModule(CaptionTextDataModule):
    """The captions of the generated set "scenes", which is rendered first where it is not there yet. Used by name only.

    Args:
        cache_dir: The set is rendered to a folder in it; that of data=scenes serves too.
        num_train: Pictures to render for training.
        num_val: For validation.
        num_test: For the test.
        context_length: Most tokens of a window; a longer caption becomes several.
        vocab_size: Most entries of the tokenizer that is trained on the training captions.
        tokenizer: A tokenizer file to use instead of training one: RUN/tokenizer.json, or that of a GPT-2 checkpoint.
        batch_size: Captions per step, over all devices.
        eval_batch_size: Captions per step of evaluation, per device.
        num_workers: Processes that prepare batches. The batches are the same for every number.
        train_images: Use the captions of only so many training pictures, for a quick look.
        eval_images: Use those of only so many validation and test pictures each.
        seed: Of the scenes; the same seed gives the same captions.

    Raises:
        InputError: a split without pictures.
    """

    generated = True

    def __init__(
        self,
        cache_dir: str = "outputs/cache",
        num_train: int = 6000,
        num_val: int = 600,
        num_test: int = 1000,
        context_length: int = 48,
        vocab_size: int = 1000,
        tokenizer: str | None = None,
        batch_size: int = 64,
        eval_batch_size: int = 128,
        num_workers: int = 0,
        train_images: int | None = None,
        eval_images: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(
            root=None,
            format="karpathy",
            context_length=context_length,
            vocab_size=vocab_size,
            tokenizer=tokenizer,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            train_images=train_images,
            eval_images=eval_images,
            seed=seed,
        )
        self.settings = Settings.of(seed, num_train, num_val, num_test, train_images, eval_images)
        self.scenes_cache = Path(cache_dir)

    def locate(self) -> Path:
        return self.scenes_cache / self.settings.folder_name

    def prepare_data(self) -> None:
        ensure_scenes(self.scenes_cache, self.settings)
        super().prepare_data()

    def describe(self) -> str:
        """One line; nothing has to be rendered for it."""
        return self.settings.describe("captions of ")
