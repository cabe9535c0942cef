"""Flickr30k on disk: where its caption file and pictures are, which belong together, and which split they are in."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import NamedTuple, TypedDict

from datamodules.captions import FILES, SPLITS, Annotation, Captions, read_annotation
from insight.errors import InputError

logger = logging.getLogger(__name__)

IMAGE_FOLDERS = (
    "images",
    "flickr30k-images",
    "flickr30k_images/flickr30k_images",
    "flickr30k_images",
    "Images",
    ".",
)
ANNOTATION_FOLDERS = (".", "flickr30k_images", "annotations")
EXTENSIONS = (".jpg", ".jpeg", ".png")
LARGEST_DEFAULT_SPLIT = 1000  # pictures, as in Karpathy's splits


class Picture(NamedTuple):
    """One picture file with its captions."""

    filename: str
    path: Path
    size: int  # bytes
    modified: int  # nanoseconds
    split: str
    captions: tuple[str, ...]
    numbers: tuple[int, ...]  # sentence number of each caption, as in Flickr30k Entities


class Flickr30kFiles(NamedTuple):
    """What a folder holds."""

    root: Path
    format: str
    splits_by: str  # who made the splits, for the first line of a run
    pictures: tuple[Picture, ...]

    def split(self, name: str) -> tuple[Picture, ...]:
        return tuple(picture for picture in self.pictures if picture.split == name)


class HardNegative(TypedDict):
    """A true caption and one that differs from it in what belongs to what."""

    filename: str
    caption: str
    negative: str
    kind: str
    seen: bool  # whether its attribute combinations occur in training


def remedies(problem: str) -> str:
    return (
        f"{problem}. Give your own Flickr30k: data.init_args.root=PATH (or the variable FLICKR30K_ROOT), a folder with a caption file "
        f"({', '.join(FILES.values())}) and the pictures in images/ or flickr30k-images/. Or use the generated set: data=scenes"
    )


def read_flickr30k(
    root: Path,
    format: str | None = None,
    seed: int = 0,
    val_size: float | None = None,
    test_size: float | None = None,
    skip_broken: bool = False,
    needed: Sequence[str] = SPLITS,
) -> Flickr30kFiles:
    """Find, read and match captions and picture files. No picture is opened.

    Args:
        root: The folder.
        format: A key of ``FILES``; None: the first whose file is there.
        seed: Of the split, where Karpathy's is not known.
        val_size: Below 1 a fraction of the pictures, from 1 on a count; None: a tenth, at most 1000. Not used where Karpathy's is known.
        test_size: The same for the test split.
        skip_broken: Leave out what does not belong together, and say how much, instead of stopping.
        needed: Splits that must have a picture.

    Raises:
        InputError: no such folder or caption file, a malformed row, a path that leaves the folder, pictures without captions, captions
            without a picture, empty captions, a split without pictures.
    """
    if not root.is_dir():
        raise InputError(remedies(f"{root}: no such folder"))
    format, path = find_annotation(root, format)
    annotation = read_annotation(path, format)
    for name in annotation.captions:
        check_inside(name, path)
    folder, files = find_images(root)
    captions, splits = dict(annotation.captions), annotation.splits
    logger.info("%s: captions from %s (%s), pictures from %s", root, path.name, format, folder)
    karpathy = path if format == "karpathy" else next(iter(_existing(root, FILES["karpathy"])), None)
    if karpathy is not None and not splits:
        splits = read_annotation(karpathy, "karpathy").splits
        unknown = [name for name in captions if name not in splits]
        if unknown:
            logger.info("%d pictures are in none of Karpathy's splits (%s) and left out", len(unknown), karpathy)
        captions = {name: rows for name, rows in captions.items() if name in splits}
    if karpathy is None:
        nameless = [name for name in files if name not in captions]
    else:  # Karpathy's splits leave 769 of Flickr30k's pictures out on purpose
        nameless = []
        logger.info("%d picture files have no place in Karpathy's splits", sum(name not in splits for name in files))
    captions = _matching(Annotation(captions, splits), files, nameless, folder, path, skip_broken)
    if karpathy is None:
        splits = draw_splits(captions, seed, val_size, test_size)
    pictures = tuple(
        Picture(name, folder / name, *files[name], splits[name], tuple(text for _, text in rows), tuple(number for number, _ in rows))
        for name, rows in captions.items()
    )
    for split in needed:
        if not any(picture.split == split for picture in pictures):
            raise InputError(
                f"{root}: no picture is in the {split} split of {karpathy or 'the lot'}: each of {', '.join(SPLITS)} needs one"
            )
    return Flickr30kFiles(root, format, "Karpathy's splits" if karpathy else f"splits by seed {seed}", pictures)


def find_annotation(root: Path, format: str | None) -> tuple[str, Path]:
    """The caption file: that of ``format``, or the first kind that is there."""
    if format is not None and format not in FILES:
        raise InputError(f"data.init_args.format='{format}': must be one of {', '.join(FILES)}")
    for kind in [format] if format else FILES:
        for path in _existing(root, FILES[kind]):
            return kind, path
    raise InputError(remedies(f"{root}: no {FILES[format] if format else 'caption file'} there"))


def _existing(root: Path, name: str) -> list[Path]:
    return [path for folder in ANNOTATION_FOLDERS if (path := root / folder / name).is_file()]


def find_images(root: Path) -> tuple[Path, dict[str, tuple[int, int]]]:
    """The first usual folder that holds picture files, and (bytes, time of change) of each of them."""
    for name in IMAGE_FOLDERS:
        folder = root / name
        if not folder.is_dir():
            continue
        with os.scandir(folder) as entries:
            found = [entry for entry in entries if entry.name.lower().endswith(EXTENSIONS) and entry.is_file()]
        if found:
            status = {entry.name: entry.stat() for entry in found}
            return folder, {key: (one.st_size, one.st_mtime_ns) for key, one in sorted(status.items())}
    raise InputError(remedies(f"{root}: no folder with pictures there (looked for {', '.join(IMAGE_FOLDERS[:-1])})"))


def check_inside(name: str, source: Path) -> None:
    """
    Raises:
        InputError: a file name that could lead out of the picture folder.
    """
    if not name or ".." in PureWindowsPath(name).parts or PurePosixPath(name).is_absolute() or PureWindowsPath(name).anchor:
        raise InputError(f"{source}: the file name '{name}' leaves the picture folder: correct it to a plain file name")


def _matching(
    annotation: Annotation, files: Mapping[str, tuple[int, int]], nameless: list[str], folder: Path, path: Path, skip_broken: bool
) -> Captions:
    """The captions that are left when what does not belong together is reported or left out."""
    captions = annotation.captions
    empty = [f"{name}#{number}" for name, rows in captions.items() for number, text in rows if not text.strip()]
    wordless = nameless + [name for name, rows in captions.items() if not rows]
    missing = [name for name in captions if name not in files]
    for problem, found, fix in (
        (f"captions in {path.name} have no picture file in {folder}", missing, "restore the pictures or remove the rows"),
        (f"pictures in {folder} have no caption in {path.name}", wordless, "add captions or remove the files"),
        (f"captions in {path.name} are empty", empty, "write them or remove the rows"),
    ):
        if found and not skip_broken:
            names = ", ".join(found[:5]) + (", ..." if len(found) > 5 else "")
            raise InputError(f"{len(found)} {problem}: {names}. Mend it: {fix}; or go on without them: data.init_args.skip_broken=true")
        if found:
            logger.warning("left out: %d %s, e.g. %s", len(found), problem, found[0])
    kept = {name: [row for row in rows if row[1].strip()] for name, rows in captions.items() if name in files}
    return {name: rows for name, rows in kept.items() if rows}


def draw_splits(names: Iterable[str], seed: int, val_size: float | None, test_size: float | None) -> dict[str, str]:
    """File name -> split, by lot: whole pictures, whatever the order in which they are given.

    Raises:
        InputError: the sizes leave nothing for training, or are negative.
    """
    names = sorted(names)
    counts = {}
    for split, size in (("val", val_size), ("test", test_size)):
        if size is None:
            counts[split] = max(1, min(LARGEST_DEFAULT_SPLIT, len(names) // 10))
        elif size > 0:
            counts[split] = max(1, round(size * len(names))) if size < 1 else int(size)
        else:
            raise InputError(f"data.init_args.{split}_size={size}: must be above 0: a fraction below 1, or a number of pictures")
    if sum(counts.values()) >= len(names):
        raise InputError(
            f"data.init_args.val_size ({counts['val']} pictures) and test_size ({counts['test']}) leave nothing of {len(names)} pictures "
            "for training: choose smaller ones"
        )
    random.Random(seed).shuffle(names)
    held_out = counts["val"] + counts["test"]
    return {name: "val" if place < counts["val"] else "test" if place < held_out else "train" for place, name in enumerate(names)}


def fingerprint(pictures: Iterable[Picture]) -> str:
    """SHA-256 over file names, file sizes, splits and captions: changes with the data, not with the place where it lies."""
    digest = hashlib.sha256()
    for picture in sorted(pictures):
        digest.update(json.dumps([picture.filename, picture.size, picture.split, picture.captions]).encode())
    return digest.hexdigest()


def read_hard_negatives(root: Path, known: Iterable[str]) -> list[HardNegative]:
    """``hard_negatives.json`` where there is one: a list of {filename, caption, negative, kind, seen}.

    Raises:
        InputError: it is malformed, or speaks of a picture that the captions don't know.
    """
    path = root / "hard_negatives.json"
    if not path.is_file():
        return []
    known, fields = set(known), list(HardNegative.__annotations__)
    try:
        found = [HardNegative(**{field: row[field] for field in fields}) for row in json.loads(path.read_text(encoding="utf-8"))]  # type: ignore[typeddict-item]
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path}: not a list of {{{', '.join(fields)}}} ({error!r}): remove or rewrite it") from error
    strangers = sorted({one["filename"] for one in found} - known)
    if strangers:
        raise InputError(f"{path}: {len(strangers)} of its pictures have no captions, e.g. {strangers[0]}: remove or rewrite it")
    return found
