"""The generated set "scenes" with one class for each picture: something that is true of it, and where the truth lies is known."""

from __future__ import annotations

import json
from typing import Any, Literal

from datamodules.labelled import Labelled, LabelledDataModule, Serving, picture_file
from datamodules.scenes_files import Settings, ensure_scenes
from datamodules.scenes_world import BACKGROUND_COLOURS, COLOURS, SHAPES
from insight.errors import InputError

Label = Literal["colour", "shape", "count", "background"]
CLASSES: dict[str, tuple[str, ...]] = {
    "colour": tuple(COLOURS),
    "shape": SHAPES,
    "count": ("2", "3", "4"),
    "background": tuple(BACKGROUND_COLOURS),
}


class ScenesLabelsDataModule(LabelledDataModule):
    """Scenes v1. Two test pictures in five hold colour x shape pairs that training and validation never show.

    Args:
        label: What the class is: ``colour`` or ``shape`` of the thing whose box begins farthest to the left, the ``count`` of things, or
            the colour of the ``background``.
        cache_dir: The set is rendered to a folder in it, named after version, seed and sizes.
        num_train: Pictures to render for training.
        num_val: For validation.
        num_test: For the test.
        image_size: Side of the model's picture.
        batch_size: Training pictures per step, over all devices.
        eval_batch_size: Pictures per step of evaluation, per device.
        num_workers: Processes that prepare batches. The batches are the same for every number.
        crop_scale_min: Smallest area of a training crop, as a fraction of the picture; 1 = no crop. A crop may cut the thing off that the
            class speaks of.
        color_jitter: Strength of the change of brightness, contrast and saturation in training; 0 = none.
        train_images: Use only so many training pictures, for a quick look.
        eval_images: Use only so many validation and test pictures each.
        seed: Of the scenes; the same seed gives the same pictures.

    Raises:
        InputError: a split without pictures, or a number out of range.
    """

    generated = True
    title = "labels of scenes"

    def __init__(
        self,
        label: Label = "colour",
        cache_dir: str = "outputs/cache",
        num_train: int = 6000,
        num_val: int = 600,
        num_test: int = 1000,
        image_size: int = 64,
        batch_size: int = 64,
        eval_batch_size: int = 100,
        num_workers: int = 0,
        crop_scale_min: float = 1.0,
        color_jitter: float = 0.0,
        train_images: int | None = None,
        eval_images: int | None = None,
        seed: int = 0,
    ) -> None:
        serving = Serving(batch_size, crop_scale_min, color_jitter, flip=False)
        super().__init__(cache_dir, image_size, serving, eval_batch_size, num_workers, train_images, eval_images, False, seed)
        self.label: Label = label
        self.settings = Settings.of(seed, num_train, num_val, num_test, train_images, eval_images)

    def find(self) -> Labelled:
        folder = ensure_scenes(self.cache_dir, self.settings)
        rows = json.loads((folder / "scenes.json").read_text(encoding="utf-8"))["pictures"]
        classes = CLASSES[self.label]
        pictures = [
            picture_file(
                folder / "flickr30k_images" / row["filename"], row["filename"], row["split"], classes.index(label_of(row, self.label))
            )
            for row in rows
        ]
        return Labelled(folder, "splits of the generator", classes, tuple(pictures))

    def configure_stage(
        self,
        stage_seed: int,
        batch_size: int | None = None,
        crop_scale_min: float | None = None,
        color_jitter: float | None = None,
        flip: bool | None = None,
    ) -> None:
        if flip:
            raise InputError("the stage's flip=true: a mirrored scene has another thing at its left: set flip to false")
        super().configure_stage(stage_seed, batch_size, crop_scale_min, color_jitter, flip)

    def describe(self) -> str:
        """One line; nothing has to be rendered for it."""
        what = {"colour": "colour of the leftmost thing", "shape": "shape of the leftmost thing", "count": "number of things"}
        told = what.get(self.label, "colour of the background")
        return f"{self.settings.describe('')}; class: {told}, {len(CLASSES[self.label])} classes"


def label_of(row: dict[str, Any], label: Label) -> str:
    """The class of one picture, from what ``scenes.json`` says of it."""
    if label == "count":
        return str(len(row["things"]))
    if label == "background":
        return row["background"].split(" ", 1)[1]
    return min(row["things"], key=lambda thing: thing["box"][0])[label]
