"""Raw attention maps on disk: NAME.safetensors holds the arrays, NAME.json what they are of. Needs numpy only, so drawing starts fast.

Arrays, the first axis always the example (B examples, H heads, N image tokens of which row 0 is the class token, T text tokens):

- ``picture`` (B, height, width, 3) uint8: what the model saw;
- ``rollout`` (B, N): row of the class token;
- ``class/LAYER`` (B, H, N): weights of the class token's query;
- ``words/LAYER`` (B, T, N): text tokens reading image tokens, mean over heads;
- ``heads/LAYER`` (B, H, T, N): the same, each head.
"""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from insight.errors import InputError

VERSION = 1
MAX_BYTES_PER_EXAMPLE = 200_000


class WordSpan(NamedTuple):
    """One word of a caption, and where its tokens stand."""

    text: str
    start: int  # character span in the caption
    end: int
    positions: tuple[int, ...]  # text tokens


class BoxedPhrase(NamedTuple):
    """One annotated phrase of the caption."""

    text: str
    start: int  # character span in the caption
    end: int
    entity: str
    boxes: tuple[tuple[float, float, float, float], ...]  # x1, y1, x2, y2 as fractions of the picture


@dataclasses.dataclass(frozen=True)
class Example:
    """One picture with one caption."""

    filename: str
    caption: str
    words: tuple[WordSpan, ...] = ()
    phrases: tuple[BoxedPhrase, ...] = ()


@dataclasses.dataclass(frozen=True)
class MapFacts:
    """What the arrays are of.

    Args:
        stage: Name of the stage, may be empty.
        epoch: Epochs begun, from 1.
        step: Optimiser steps done.
        grid: Patches per side.
        shown: Image layers that the pictures show.
        examples: In the order of the arrays' first axis.
        left_out: Arrays that the size limit left out.
    """

    stage: str
    epoch: int
    step: int
    grid: int
    shown: tuple[str, ...]
    examples: tuple[Example, ...]
    left_out: tuple[str, ...] = ()


def save_maps(
    path: str | Path, arrays: Mapping[str, np.ndarray], facts: MapFacts, max_bytes_per_example: int = MAX_BYTES_PER_EXAMPLE
) -> tuple[Path, Path]:
    """Write ``path`` (.safetensors) and its sidecar (.json), each atomically, the sidecar last. Returns both.

    Floats are kept in half precision. Arrays are taken in the order given while their example's share fits in ``max_bytes_per_example``;
    the names of the others go to ``left_out``.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    kept: dict[str, np.ndarray] = {}
    left_out: list[str] = []
    room = max_bytes_per_example * len(facts.examples)
    for name, array in arrays.items():
        array = np.ascontiguousarray(array.astype(np.float16) if np.issubdtype(array.dtype, np.floating) else array)
        if array.nbytes <= room:
            kept[name] = array
            room -= array.nbytes
        else:
            left_out.append(name)
    facts = dataclasses.replace(facts, left_out=tuple(left_out))
    text = json.dumps({"version": VERSION, **dataclasses.asdict(facts)}, ensure_ascii=False, indent=1)
    sidecar = path.with_suffix(".json")
    write_atomically(path, lambda temporary: save_file(kept, temporary))
    write_atomically(sidecar, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    return path, sidecar


def load_maps(path: str | Path) -> tuple[dict[str, np.ndarray], MapFacts]:
    """What ``save_maps`` wrote.

    Raises:
        FileNotFoundError: one of the two files is missing.
        InputError: they are not such files, or of another version.
    """
    path = Path(path)
    sidecar = path.with_suffix(".json")
    for needed in (path, sidecar):
        if not needed.is_file():
            raise FileNotFoundError(f"{needed}: no such file; maps are a pair NAME.safetensors and NAME.json (RUN/NN-stage/maps)")
    try:
        raw = json.loads(sidecar.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{sidecar}: not JSON ({error}); write the maps again") from error
    if not isinstance(raw, dict) or raw.pop("version", None) != VERSION:
        raise InputError(f"{sidecar}: not attention maps of version {VERSION}; write them again with this version of the code")
    try:
        return load_file(path), _facts(raw)
    except (SafetensorError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not attention maps ({type(error).__name__}: {error}); write them again") from error


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """``write`` gets a temporary path beside ``path``; a reader sees the old file or the whole new one, never a part."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        temporary.chmod(0o644)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _facts(raw: dict[str, Any]) -> MapFacts:
    examples = tuple(
        Example(
            filename=one["filename"],
            caption=one["caption"],
            words=tuple(WordSpan(text, start, end, tuple(positions)) for text, start, end, positions in one["words"]),
            phrases=tuple(
                BoxedPhrase(text, start, end, entity, tuple((x1, y1, x2, y2) for x1, y1, x2, y2 in boxes))
                for text, start, end, entity, boxes in one["phrases"]
            ),
        )
        for one in raw["examples"]
    )
    return MapFacts(**{**raw, "shown": tuple(raw["shown"]), "left_out": tuple(raw["left_out"]), "examples": examples})
