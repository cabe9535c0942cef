"""Decoded pictures in one memory-mapped file: every picture is decoded and squashed once, whatever the number of epochs and runs."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from rich.progress import track
from torch import Tensor

from insight.data.images import PREPROCESSING_VERSION, open_image, working_image, working_size
from insight.errors import InputError

logger = logging.getLogger(__name__)

STALE_SECONDS = 3600  # a partial file that nobody has written to for so long is left over from a killed process


class PictureFile(Protocol):
    """What is asked of a picture."""

    @property
    def filename(self) -> str: ...
    @property
    def path(self) -> Path: ...
    @property
    def size(self) -> int: ...
    @property
    def modified(self) -> int: ...


class ImageCache:
    """Working images (N, 3, S, S) uint8 of the given pictures, in their order. Read-only; safe to send to worker processes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._images: np.ndarray | None = None

    def __getitem__(self, row: int) -> Tensor:
        if self._images is None:
            self._images = np.load(self.path, mmap_mode="r")
        return torch.from_numpy(np.array(self._images[row]))

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_images": None}  # a pickled memory map would carry all pictures


def build_cache(
    pictures: Sequence[PictureFile], image_size: int, cache_dir: Path, skip_broken: bool = False
) -> tuple[ImageCache, set[str]]:
    """Find or make the cache of these pictures at this size -> the cache, and the names of pictures that cannot be decoded.

    The file appears under its name only when it is whole; a process that is killed leaves nothing that is taken for a cache.

    Raises:
        InputError: pictures that cannot be decoded, unless ``skip_broken``.
    """
    path = cache_dir / f"images-{working_size(image_size)}px-{cache_key(pictures, image_size)}.npy"
    note = path.with_suffix(".json")  # written first: what is wrong with which picture
    if not (path.is_file() and note.is_file()):
        cache_dir.mkdir(parents=True, exist_ok=True)
        remove_stale(cache_dir)
        broken = _write(pictures, image_size, path, note)
    else:
        broken = json.loads(note.read_text(encoding="utf-8"))
    if broken and not skip_broken:
        reasons = "; ".join(list(broken.values())[:3]) + ("; ..." if len(broken) > 3 else "")
        path.unlink()  # the next run looks again: a disk that failed for a moment must not be remembered
        raise InputError(
            f"{len(broken)} of {len(pictures)} pictures cannot be read: {reasons}. Mend them, or go on without them: "
            "data.init_args.skip_broken=true"
        )
    if broken:
        logger.warning("left out: %d pictures that cannot be read, e.g. %s", len(broken), next(iter(broken.values())))
    return ImageCache(path), set(broken)


def cache_key(pictures: Sequence[PictureFile], image_size: int) -> str:
    """Changes with the list of files, their sizes and times, the size of the working image and the way of making it."""
    facts = [[str(picture.path.absolute()), picture.size, picture.modified] for picture in pictures]
    return hashlib.sha256(json.dumps([PREPROCESSING_VERSION, working_size(image_size), facts]).encode()).hexdigest()[:32]


def _write(pictures: Sequence[PictureFile], image_size: int, path: Path, note: Path) -> dict[str, str]:
    side = working_size(image_size)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    broken: dict[str, str] = {}
    try:
        with open(partial, "wb") as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": (len(pictures), 3, side, side)}
            np.lib.format.write_array_header_1_0(file, header)
            decoded = _decode(pictures, image_size)
            for picture, image in track(zip(pictures, decoded, strict=True), "Reading the pictures once", len(pictures), transient=True):
                if isinstance(image, InputError):
                    broken[picture.filename] = str(image)
                    image = torch.zeros(3, side, side, dtype=torch.uint8)
                file.write(image.numpy().tobytes())
            file.flush()
            os.fsync(file.fileno())
        partial_note = note.with_name(f"{note.name}.{os.getpid()}.partial")
        partial_note.write_text(json.dumps(broken), encoding="utf-8")
        os.replace(partial_note, note)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return broken


def _decode(pictures: Sequence[PictureFile], image_size: int) -> Iterator[Tensor | InputError]:
    """In order, on as many threads as there are cores (Pillow decodes outside the interpreter's lock), a bounded number ahead."""

    def decode(path: Path) -> Tensor | InputError:
        try:
            return working_image(open_image(path), image_size)
        except InputError as error:
            return error

    workers = os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool:
        ahead: deque[Future[Tensor | InputError]] = deque()
        for picture in pictures:
            ahead.append(pool.submit(decode, picture.path))
            if len(ahead) > 8 * workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def remove_stale(cache_dir: Path) -> None:
    for path in cache_dir.glob("*.partial"):
        if time.time() - path.stat().st_mtime > STALE_SECONDS:
            path.unlink(missing_ok=True)
