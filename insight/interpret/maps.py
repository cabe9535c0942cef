"""Maps on disk: NAME.safetensors holds the arrays, NAME.json what they are of. Needs numpy only, so drawing starts fast.

Arrays, the first axis always the example (B examples, H heads, N image tokens of which row 0 is the class token, T text tokens, g patches
per side, Q phrases of the example that has most of them):

- ``picture`` (B, height, width, 3) uint8: what the model saw;
- ``rollout`` (B, N): row of the class token;
- ``class/LAYER`` (B, H, N): weights of the class token's query;
- ``words/LAYER`` (B, T, N): text tokens reading image tokens, mean over heads;
- ``heads/LAYER`` (B, H, T, N): the same, each head.

What a method of ``explain()`` says, by the method's name; each map in units of its own largest magnitude, since half precision has no room
for every method's scale:

- ``method/NAME/image`` (B, g, g): value of each patch for the caption's score;
- ``method/NAME/text`` (B, T): value of each text token;
- ``method/NAME/phrases`` (B, Q, g, g): a map for each of the example's phrases, in their order; zero beyond its last;
- ``method/NAME/pairs`` (B, T, g, g): each token with each patch.
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

VERSION = 2
READABLE = (1, 2)  # version 1 had no methods and no ranks
MAX_BYTES_PER_EXAMPLE = 95_000  # of arrays; a validation leaves two files (maps, score card), with their sidecars under 200 kB an example


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
    """One picture with one caption.

    Args:
        phrases: Annotated ones. Where there are arrays of methods: exactly those that have a map.
        ranks: By direction of retrieval, rank of the best right answer within the split, 1 = first; empty = not known.
        score: By method, the score that it explains: the logit of picture and caption.
    """

    filename: str
    caption: str
    words: tuple[WordSpan, ...] = ()
    phrases: tuple[BoxedPhrase, ...] = ()
    ranks: dict[str, int] = dataclasses.field(default_factory=dict)
    score: dict[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class MethodFacts:
    """One method of explanation, as it was asked.

    Args:
        function: Import path.
        arguments: Every setting, defaults included.
        family: What was explained, e.g. ``dual encoder``.
        query: How a phrase got its map: ``words in the caption`` or ``phrase alone``; empty = it got none.
        scores: The method's score card, by the names of ``insight/<method>/<score>``; empty = not scored.
        intervals: 95 % bootstrap intervals of some of the scores, drawn by picture.
    """

    function: str
    arguments: dict[str, Any]
    family: str
    query: str = ""
    scores: dict[str, float] = dataclasses.field(default_factory=dict)
    intervals: dict[str, tuple[float, float]] = dataclasses.field(default_factory=dict)


class Verdict(NamedTuple):
    """Of the randomisation check (``faithfulness.py``) of one method."""

    rho: float  # rank correlation with the maps of a model of shuffled weights
    passed: bool


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
        methods: By name, those that have arrays ``method/NAME/...``.
        verdicts: What the randomisation check said of a map that is shown, by the map's name; a map that is missing here was not checked.
    """

    stage: str
    epoch: int
    step: int
    grid: int
    shown: tuple[str, ...]
    examples: tuple[Example, ...]
    left_out: tuple[str, ...] = ()
    methods: dict[str, MethodFacts] = dataclasses.field(default_factory=dict)
    verdicts: dict[str, Verdict] = dataclasses.field(default_factory=dict)


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
    write_atomically(path, lambda temporary: save_file(kept, temporary))
    return path, _save_facts(path, dataclasses.replace(facts, left_out=tuple(left_out)))


def mark_maps(path: str | Path, verdicts: Mapping[str, Verdict]) -> Path:
    """Write to the sidecar of maps what the randomisation check has found since. Returns the sidecar; raises as ``load_facts``."""
    facts = load_facts(path)
    return _save_facts(Path(path), dataclasses.replace(facts, verdicts={**facts.verdicts, **verdicts}))


def _save_facts(path: Path, facts: MapFacts) -> Path:
    text = json.dumps({"version": VERSION, **dataclasses.asdict(facts)}, ensure_ascii=False, indent=1)
    sidecar = path.with_suffix(".json")
    write_atomically(sidecar, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    return sidecar


def load_maps(path: str | Path) -> tuple[dict[str, np.ndarray], MapFacts]:
    """What ``save_maps`` wrote.

    Raises:
        FileNotFoundError: one of the two files is missing.
        InputError: they are not such files, or of a version that is not known.
    """
    path = Path(path)
    facts = load_facts(path)
    try:
        return load_file(path), facts
    except SafetensorError as error:
        raise InputError(f"{path}: not maps ({type(error).__name__}: {error}); write them again") from error


def load_facts(path: str | Path) -> MapFacts:
    """What ``NAME.safetensors`` is of, without reading the arrays; raises as ``load_maps``."""
    path = Path(path)
    sidecar = path.with_suffix(".json")
    for needed in (path, sidecar):
        if not needed.is_file():
            raise FileNotFoundError(f"{needed}: no such file; maps are a pair NAME.safetensors and NAME.json (RUN/NN-stage/maps)")
    try:
        raw = json.loads(sidecar.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{sidecar}: not JSON ({error}); write the maps again") from error
    if not isinstance(raw, dict) or raw.pop("version", None) not in READABLE:
        raise InputError(f"{sidecar}: not maps of version {VERSION}; write them again with this version of the code")
    try:
        return _facts(raw)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{sidecar}: not the facts of maps ({type(error).__name__}: {error}); write them again") from error


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
            ranks=one.get("ranks", {}),
            score=one.get("score", {}),
        )
        for one in raw["examples"]
    )
    methods = {
        name: MethodFacts(**{**one, "intervals": {score: (low, high) for score, (low, high) in one["intervals"].items()}})
        for name, one in raw.get("methods", {}).items()
    }
    verdicts = {name: Verdict(*one) for name, one in raw.get("verdicts", {}).items()}
    known = {"examples": examples, "methods": methods, "verdicts": verdicts}
    return MapFacts(**{**raw, "shown": tuple(raw["shown"]), "left_out": tuple(raw["left_out"]), **known})
