"""Features of a locked image tower, computed once and kept in a memory-mapped file: a stage that trains on them reads no pictures.

N pictures, V views of each, T tokens (row 0 = the pooled vector), W width of the tower.

The file's name is a digest of the tower's weights and preprocessing, of the pictures and of how their views are made: other features are
another file. It may be deleted at any time.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import logging
import os
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.progress import track
from torch import Tensor

from datamodules.flickr30k_files import Picture
from datamodules.image_cache import remove_stale
from insight.data.images import PREPROCESSING_VERSION, normalise
from insight.errors import InputError
from insight.models.tower import ImageTower

logger = logging.getLogger(__name__)

AT_ONCE = 32  # views that the tower reads together


@dataclasses.dataclass(frozen=True)
class Features:
    """How training pictures are seen where an image tower is locked: as a few fixed views, whose features can be kept.

    Args:
        views: Of each training picture: the whole one, its mirror image (where ``flip`` is set), then random crops, drawn once for all
            stages. A sample is one of them, chosen by its own seed. Evaluation has the whole picture alone.
        precision: In which the features are kept. ``float16`` takes half the space and rounds each to 11 significant bits.
        cache: False makes the same views, and computes their features in every batch.
    """

    views: int = 4
    precision: Literal["float16", "float32"] = "float16"
    cache: bool = True

    def __post_init__(self) -> None:
        if self.views < 1:
            raise InputError(f"data.init_args.features.views={self.views}: must be at least 1 (the whole picture)")


class FeatureCache:
    """(N, V, T, W); read-only, safe to send to worker processes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._features: np.ndarray | None = None

    def __getitem__(self, place: tuple[int, int]) -> Tensor:
        """Of (picture, view): (T, W)."""
        if self._features is None:
            self._features = np.load(self.path, mmap_mode="r")
        return torch.from_numpy(np.array(self._features[place]))

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_features": None}  # a pickled memory map would carry all features


def build_features(
    tower: ImageTower,
    pictures: Sequence[Picture],
    pixels: Callable[[int, int], Tensor],
    num_views: int,
    views_key: Sequence[Any],
    precision: Literal["float16", "float32"],
    regions: bool,
    cache_dir: Path,
    stop_asked: Callable[[], bool],
) -> FeatureCache:
    """Find the features of these pictures, or compute them. The file appears under its name only when it is whole; one that was damaged
    since is made anew. Interrupted, it stops at the next batch, and the next call goes on from there.

    Args:
        tower: Locked; it is used where and as it is, in evaluation mode, without autocast.
        pictures: Of one split.
        pixels: (picture, view) -> (3, H, W) uint8.
        num_views: V.
        views_key: All that ``pixels`` depends on, beside the pictures.
        precision: Of the file.
        regions: Keep the regions too; False: the pooled vector alone, T = 1.
        cache_dir: Where the file lies.
        stop_asked: Whether to stop.

    Raises:
        KeyboardInterrupt: it was asked to stop.
    """
    tokens = 1 + tower.grid_size**2 if regions else 1
    shape, dtype = (len(pictures), num_views, tokens, tower.dim), np.dtype(precision)
    facts = [[picture.filename, picture.size, picture.modified] for picture in pictures]
    key = json.dumps([PREPROCESSING_VERSION, tower.features_digest(), list(views_key), precision, shape, facts])
    path = cache_dir / f"features-{hashlib.sha256(key.encode()).hexdigest()[:32]}.npy"
    if not is_whole(path, shape, dtype):
        cache_dir.mkdir(parents=True, exist_ok=True)
        remove_stale(cache_dir)
        _write(tower, pixels, shape, dtype, path, stop_asked)
    return FeatureCache(path)


def is_whole(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> bool:
    """Whether the file has this shape and the checksum that it was written with."""
    note = path.with_suffix(".json")
    if not (path.is_file() and note.is_file()):
        return False
    try:
        found = np.load(path, mmap_mode="r")
        checksum = json.loads(note.read_text(encoding="utf-8"))["crc32"]
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        logger.warning("%s is damaged (%s): its features are computed again", path, error)
        return False
    if found.shape != shape or found.dtype != dtype or crc32(found) != checksum:
        logger.warning("%s is damaged: its features are computed again", path)
        return False
    return True


def crc32(features: np.ndarray) -> int:
    """Of the bytes, picture by picture."""
    checksum = 0
    for one in features:
        checksum = zlib.crc32(np.ascontiguousarray(one).tobytes(), checksum)
    return checksum


@torch.no_grad()
def _write(
    tower: ImageTower,
    pixels: Callable[[int, int], Tensor],
    shape: tuple[int, ...],
    dtype: np.dtype,
    path: Path,
    stop_asked: Callable[[], bool],
) -> None:
    """Compute them into ``path``. What is done when Ctrl-C interrupts is kept beside it, and the next call goes on from there."""
    num_pictures, num_views, tokens, width = shape
    places = [(picture, view) for picture in range(num_pictures) for view in range(num_views)]
    batches = [places[start : start + AT_ONCE] for start in range(0, len(places), AT_ONCE)]
    position = next(tower.parameters())
    modes = [(module, module.training) for module in tower.modules()]
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": dtype.str, "fortran_order": False, "shape": shape})
    sizes = [len(header.getvalue()), *(len(batch) * tokens * width * dtype.itemsize for batch in batches)]
    done, checksum = _taken_over(path, partial, sizes)
    try:
        tower.eval()
        with open(partial, "r+b" if done else "wb") as file, torch.autocast(position.device.type, enabled=False):
            file.write(header.getvalue())
            file.truncate(sum(sizes[: 1 + done]))  # half a batch may stand behind what is whole
            file.seek(0, os.SEEK_END)
            for batch in track(batches[done:], "Computing the locked tower's features once", transient=True):
                if stop_asked():
                    raise KeyboardInterrupt
                image = normalise(torch.stack([pixels(*place) for place in batch])).to(position)
                written = tower.embed(image)[:, :tokens].float().cpu().numpy().astype(dtype).tobytes()
                file.write(written)
                done, checksum = done + 1, zlib.crc32(written, checksum)
            file.flush()
            os.fsync(file.fileno())
        _write_note(path.with_suffix(".json"), {"crc32": checksum, "shape": shape})
        os.replace(partial, path)
    except KeyboardInterrupt:
        if done and partial.exists():  # else it was just finished
            _write_note(_begun(path).with_suffix(".json"), {"crc32": checksum, "batches": done})
            os.replace(partial, _begun(path))
        raise
    finally:
        partial.unlink(missing_ok=True)
        for module, training in modes:
            module.training = training


def _begun(path: Path) -> Path:
    """Where an interrupted computation keeps what it has."""
    return path.with_suffix(".begun.npy")


def _taken_over(path: Path, partial: Path, sizes: Sequence[int]) -> tuple[int, int]:
    """Batches that an interrupted computation left, whose file now is ``partial``, and their checksum; (0, 0): there are none.

    Args:
        sizes: Bytes of the header, and of each batch.
    """
    try:
        os.replace(_begun(path), partial)  # of several processes, one gets it
        written = _begun(path).with_suffix(".json")
        note = json.loads(written.read_text(encoding="utf-8"))
        written.unlink()
        done, checksum, found = int(note["batches"]), int(note["crc32"]), 0
        with open(partial, "rb") as file:
            file.seek(sizes[0])
            for size in sizes[1 : 1 + done]:
                found = zlib.crc32(file.read(size), found)
    except (OSError, ValueError, KeyError, TypeError):
        return 0, 0
    return (done, checksum) if found == checksum else (0, 0)


def _write_note(note: Path, facts: dict[str, Any]) -> None:
    """Atomically."""
    partial = note.with_name(f"{note.name}.{os.getpid()}.partial")
    partial.write_text(json.dumps(facts), encoding="utf-8")
    os.replace(partial, note)
