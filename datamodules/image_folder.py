"""A folder with a folder of pictures for each class: ``ROOT/train/CLASS/*.jpg`` (and ``val``, ``test``), or ``ROOT/CLASS/*.jpg``."""

from __future__ import annotations

import random
from pathlib import Path

from datamodules.labelled import SPLITS, Labelled, LabelledDataModule, LabelledPicture, Serving, picture_file
from insight.errors import InputError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


class ImageFolderDataModule(LabelledDataModule):
    """Splits that are missing are drawn by lot from the training pictures, each class its share.

    Args:
        root: The folder.
        cache_dir: Where decoded pictures are kept, for all runs.
        image_size: Side of the model's picture.
        batch_size: Training pictures per step, over all devices.
        eval_batch_size: Pictures per step of evaluation, per device.
        num_workers: Processes that prepare batches. The batches are the same for every number.
        crop_scale_min: Smallest area of a training crop, as a fraction of the picture; 1 = no crop.
        color_jitter: Strength of the change of brightness, contrast and saturation in training; 0 = none.
        flip: Mirror half of the training pictures.
        val_size: Part of each class for validation, where there is no folder ``val``.
        test_size: The same for the test.
        train_images: Use only so many training pictures, drawn by lot.
        eval_images: Use only so many validation and test pictures each, drawn by lot.
        skip_broken: Leave out pictures that cannot be read, and say how many, instead of stopping.
        seed: Of what is drawn by lot, and of the batches outside a stage.

    Raises:
        InputError: a number out of range.
    """

    title = "pictures by class"

    def __init__(
        self,
        root: str | None = None,
        cache_dir: str = "outputs/cache",
        image_size: int = 64,
        batch_size: int = 64,
        eval_batch_size: int = 100,
        num_workers: int = 0,
        crop_scale_min: float = 0.5,
        color_jitter: float = 0.2,
        flip: bool = True,
        val_size: float = 0.1,
        test_size: float = 0.1,
        train_images: int | None = None,
        eval_images: int | None = None,
        skip_broken: bool = False,
        seed: int = 0,
    ) -> None:
        for name, part in (("val_size", val_size), ("test_size", test_size)):
            if not 0 < part < 0.5:
                raise InputError(f"data.init_args.{name}={part}: must be above 0 and below 0.5")
        self.root, self.parts = root, {"val": val_size, "test": test_size}
        serving = Serving(batch_size, crop_scale_min, color_jitter, flip)
        super().__init__(cache_dir, image_size, serving, eval_batch_size, num_workers, train_images, eval_images, skip_broken, seed)

    def find(self) -> Labelled:
        if not self.root:
            raise InputError("data=image_folder: no folder is given: set data.init_args.root=PATH, a folder with a folder for each class")
        return read_image_folder(Path(self.root).expanduser(), self.parts, self.seed)


def read_image_folder(root: Path, parts: dict[str, float], seed: int) -> Labelled:
    """
    Args:
        parts: Of each class, where a split has no folder of its own.

    Raises:
        InputError: no such folder, no pictures, or a class that some split alone has.
    """
    if not root.is_dir():
        raise InputError(f"data.init_args.root={root}: there is no such folder")
    given = [split for split in SPLITS if (root / split).is_dir()]
    places = {split: root / split for split in given} if "train" in given else {"train": root}
    classes = class_folders(places["train"])
    if len(classes) < 2:
        raise InputError(f"{places['train']}: holds {len(classes)} folders of pictures: there must be one for each class, at least two")
    pictures: list[LabelledPicture] = []
    for split, place in places.items():
        strange = sorted(set(class_folders(place)) - set(classes))
        if strange:
            raise InputError(f"{place}: '{strange[0]}' is no class of the training pictures ({places['train']}): move or rename it")
        for label, name in enumerate(classes):
            files = sorted(path for path in (place / name).rglob("*") if path.suffix.lower() in EXTENSIONS)
            pictures += [picture_file(path, str(path.relative_to(root)), split, label) for path in files]
    missing = [split for split in SPLITS if split not in places]
    by_lot = [one for split in missing for one in drawn(pictures, parts[split], split, seed)]
    taken = {one.filename: one for one in by_lot}
    if len(taken) < len(by_lot):
        raise InputError(f"{root}: too few pictures for a validation and a test by lot; make folders val and test")
    said = f"splits by folder, {' and '.join(missing)} by lot with seed {seed}" if missing else "splits by folder"
    return Labelled(root, said, tuple(classes), tuple(taken.get(one.filename, one) for one in pictures))


def class_folders(place: Path) -> list[str]:
    """Names of the folders that hold pictures."""
    return sorted(one.name for one in place.iterdir() if one.is_dir() and any(path.suffix.lower() in EXTENSIONS for path in one.rglob("*")))


def drawn(pictures: list[LabelledPicture], part: float, split: str, seed: int) -> list[LabelledPicture]:
    """This part of each class's training pictures, at least one, as pictures of another split; ``test`` from the end of the same order."""
    chosen = []
    for label in sorted({one.label for one in pictures}):
        own = sorted(one for one in pictures if one.label == label and one.split == "train")
        random.Random(f"{seed}/{label}").shuffle(own)
        count = max(1, round(part * len(own)))
        chosen += [one._replace(split=split) for one in (own[:count] if split == "val" else own[len(own) - count :])]
    return chosen
