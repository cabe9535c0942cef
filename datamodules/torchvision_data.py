"""A data set of torchvision by name (CIFAR10, OxfordIIITPet, ...), kept as a folder of PNGs on first use and read as any folder."""

from __future__ import annotations

import inspect
import os
import shutil
from pathlib import Path

import torchvision
from PIL import Image
from rich.progress import track
from torchvision.datasets import VisionDataset

from datamodules.image_folder import read_image_folder
from datamodules.labelled import Labelled, LabelledDataModule, Serving
from insight.errors import InputError
from insight.stages import nearest


class TorchvisionDataModule(LabelledDataModule):
    """The training part gives the training split, and the validation by lot where there is none; the test part gives the test.

    Args:
        name: Class of ``torchvision.datasets`` that takes ``train`` or ``split``, e.g. ``CIFAR10``.
        root: Where torchvision keeps or finds its files.
        download: Let torchvision download what is not there.
        cache_dir: Where the pictures are kept, as files and decoded, for all runs.
        image_size: Side of the model's picture.
        batch_size: Training pictures per step, over all devices.
        eval_batch_size: Pictures per step of evaluation, per device.
        num_workers: Processes that prepare batches. The batches are the same for every number.
        crop_scale_min: Smallest area of a training crop, as a fraction of the picture; 1 = no crop.
        color_jitter: Strength of the change of brightness, contrast and saturation in training; 0 = none.
        flip: Mirror half of the training pictures.
        val_size: Part of each class for validation, where the set has no such split.
        train_images: Use only so many training pictures, drawn by lot.
        eval_images: Use only so many validation and test pictures each, drawn by lot.
        seed: Of what is drawn by lot, and of the batches outside a stage.

    Raises:
        InputError: no such data set, one without classes, or a number out of range.
    """

    def __init__(
        self,
        name: str = "CIFAR10",
        root: str = "outputs/data",
        download: bool = False,
        cache_dir: str = "outputs/cache",
        image_size: int = 32,
        batch_size: int = 64,
        eval_batch_size: int = 100,
        num_workers: int = 0,
        crop_scale_min: float = 0.5,
        color_jitter: float = 0.0,
        flip: bool = True,
        val_size: float = 0.1,
        train_images: int | None = None,
        eval_images: int | None = None,
        seed: int = 0,
    ) -> None:
        known = [one for one in torchvision.datasets.__all__ if part_names(one)]
        if name not in known:
            raise InputError(
                f"data.init_args.name={name}: torchvision has no such data set with a training and a test part{nearest(name, known)}"
            )
        if not 0 < val_size < 0.5:
            raise InputError(f"data.init_args.val_size={val_size}: must be above 0 and below 0.5")
        self.dataset, self.root, self.download, self.val_size = name, Path(root).expanduser(), download, val_size
        self.title = f"torchvision's {name}"
        serving = Serving(batch_size, crop_scale_min, color_jitter, flip)
        super().__init__(cache_dir, image_size, serving, eval_batch_size, num_workers, train_images, eval_images, False, seed)

    def find(self) -> Labelled:
        folder = self.cache_dir / f"torchvision-{self.dataset}"
        if not folder.is_dir():
            self._export(folder)
        return read_image_folder(folder, {"val": self.val_size, "test": self.val_size}, self.seed)

    def _export(self, folder: Path) -> None:
        """Write every picture as ``SPLIT/CLASS/NUMBER.png``; the folder appears whole or not at all."""
        partial = folder.with_name(f"{folder.name}.partial-{os.getpid()}")
        shutil.rmtree(partial, ignore_errors=True)
        try:
            for split, arguments in part_names(self.dataset).items():
                self._write(self._part(arguments), partial / split)
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _part(self, arguments: dict[str, object]) -> VisionDataset:
        kind = getattr(torchvision.datasets, self.dataset)
        extra = {"download": self.download} if "download" in inspect.signature(kind).parameters else {}
        try:
            return kind(root=str(self.root), **arguments, **extra)
        except (RuntimeError, OSError, ValueError, TypeError) as error:  # torchvision's ways to say that something is not there
            raise InputError(
                f"data.init_args.name={self.dataset}: torchvision cannot read it in {self.root} ({str(error).splitlines()[0]}): "
                "put its files there, or set data.init_args.download=true"
            ) from error

    def _write(self, part: VisionDataset, place: Path) -> None:
        names = getattr(part, "classes", None)
        for number in track(range(len(part)), f"Writing the pictures of {self.dataset} once", transient=True):  # type: ignore[arg-type]
            image, label = part[number]
            if not (isinstance(image, Image.Image) and isinstance(label, int)):
                raise InputError(
                    f"data.init_args.name={self.dataset}: its examples are not a picture with one class each: choose another set"
                )
            named = str(names[label]).replace(os.sep, "-") if names else ""
            folder = place / f"{label:04d}-{named}".rstrip("-")  # in the order of the labels
            folder.mkdir(parents=True, exist_ok=True)
            image.convert("RGB").save(folder / f"{number:06d}.png")


def part_names(name: str) -> dict[str, dict[str, object]]:
    """Arguments that choose each split of a torchvision data set; empty where it cannot be asked for both training and test."""
    kind = getattr(torchvision.datasets, name)
    parameters = inspect.signature(kind).parameters if inspect.isclass(kind) else {}
    if "train" in parameters:
        return {"train": {"train": True}, "test": {"train": False}}
    if "split" not in parameters:
        return {}
    validated = name in ("Flowers102", "DTD", "FGVCAircraft", "PCAM", "Country211", "RenderedSST2")
    first = "trainval" if name == "OxfordIIITPet" else "train"
    return {
        "train": {"split": first},
        **({"val": {"split": "valid" if name == "Country211" else "val"}} if validated else {}),
        "test": {"split": "test"},
    }
