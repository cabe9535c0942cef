"""The generated set "scenes": pictures of coloured shapes with captions, phrase boxes and hard negatives, rendered on first use.

It is written to the cache folder in Flickr30k's own layout and read back by the very same reader. Used by name only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from datamodules.feature_cache import Features
from datamodules.flickr30k import Flickr30kDataModule
from datamodules.scenes_files import Settings, ensure_scenes
from insight.data.augmentation import ImageAugmentation, TextAugmentation
from insight.errors import InputError
from insight.stages import Call


class ScenesDataModule(Flickr30kDataModule):
    """Scenes v1. Two test pictures in five hold colour x shape pairs that training and validation never show.

    Args:
        cache_dir: The set is rendered to a folder in it, named after version, seed and sizes.
        num_train: Pictures to render for training.
        num_val: For validation.
        num_test: For the test; with their hard negatives.
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
        flip: Must stay false: a mirrored picture would make "left of" a lie.
        train_images: Use only so many training pictures, for a quick look.
        eval_images: Use only so many validation and test pictures each.
        seed: Of the scenes; the same seed gives the same pictures and captions.
        features: Where the image tower is locked: train on a few fixed views of each picture, and keep their features in ``cache_dir``;
            ``null``: fresh random crops, and the tower at work in every batch.

    Raises:
        InputError: a split without pictures, or ``flip``.
    """

    generated = True
    title = "scenes"

    def __init__(
        self,
        cache_dir: str = "outputs/cache",
        num_train: int = 6000,
        num_val: int = 600,
        num_test: int = 1000,
        image_size: int = 64,
        context_length: int = 32,
        vocab_size: int = 600,
        tokenizer: str | None = None,
        batch_size: int = 64,
        eval_batch_size: int = 100,
        num_workers: int = 0,
        captions_per_image: int | Literal["all"] = 1,
        views: int = 1,
        crop_scale_min: float = 0.8,
        color_jitter: float = 0.0,
        flip: bool = False,
        train_images: int | None = None,
        eval_images: int | None = None,
        seed: int = 0,
        features: Features | None = None,
    ) -> None:
        _refuse_flip(flip, "data.init_args.flip")
        super().__init__(
            root=None,
            cache_dir=cache_dir,
            format="karpathy",
            image_size=image_size,
            context_length=context_length,
            vocab_size=vocab_size,
            tokenizer=tokenizer,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            captions_per_image=captions_per_image,
            views=views,
            crop_scale_min=crop_scale_min,
            color_jitter=color_jitter,
            flip=flip,
            train_images=train_images,
            eval_images=eval_images,
            seed=seed,
            features=features,
        )
        self.settings = Settings.of(seed, num_train, num_val, num_test, train_images, eval_images)
        self.scenes_cache = Path(cache_dir)

    def locate(self) -> Path:
        return self.scenes_cache / self.settings.folder_name

    def prepare_data(self) -> None:
        ensure_scenes(self.scenes_cache, self.settings)
        super().prepare_data()

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
        _refuse_flip(flip, "the stage's flip")
        changes = (text_augmentation, image_augmentation, curriculum)
        super().configure_stage(stage_seed, batch_size, captions_per_image, views, crop_scale_min, color_jitter, flip, *changes)

    def describe(self) -> str:
        """One line; nothing has to be rendered for it."""
        return self.settings.describe("")


def _refuse_flip(flip: bool | None, key: str) -> None:
    if flip:
        raise InputError(f"{key}=true: scenes speak of left and right, which a mirrored picture makes false: set flip to false")
