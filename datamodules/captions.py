"""The four caption files in which Flickr30k is handed on, each read into {file name: [(sentence number, text)]}."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from insight.errors import InputError

logger = logging.getLogger(__name__)

FILES = {"karpathy": "dataset_flickr30k.json", "token": "results_20130124.token", "csv": "results.csv", "captions": "captions.txt"}
SPLITS = ("train", "val", "test")

Captions = dict[str, list[tuple[int, str]]]

_TOKEN_ROW = re.compile(r"(?P<name>[^\t]+)#(?P<number>\d+)\t(?P<text>.*)")
# one row of Kaggle's file lacks its second bar
_CSV_ROW = re.compile(r"(?P<name>[^|]+?)\s*\|\s*(?P<number>\d+)\s*(?P<bar>\||\s|$)\s*(?P<text>.*)")


class Annotation(NamedTuple):
    """What a caption file says."""

    captions: Captions
    splits: dict[str, str]  # file name -> train, val, test; empty when the file knows of none


def read_annotation(path: Path, format: str) -> Annotation:
    """
    Raises:
        InputError: the file is not of that format; it names the file and the line.
    """
    if format == "karpathy":
        return read_karpathy(path)
    return Annotation({"token": read_token, "csv": read_csv, "captions": read_captions}[format](path), {})


def read_karpathy(path: Path) -> Annotation:
    """Karpathy's JSON; its ``restval`` pictures count as training pictures."""
    try:
        images = json.loads(_text(path))["images"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not Karpathy's JSON, an object with 'images' ({error!r}): download it again") from error
    captions: Captions = {}
    splits: dict[str, str] = {}
    for index, image in enumerate(images):
        name, split, sentences = _karpathy_fields(image, f"{path}: images[{index}]")
        if name in captions:
            raise InputError(f"{path}: images[{index}]: '{name}' is listed twice: remove one of the entries")
        captions[name] = list(enumerate(sentences))
        splits[name] = split
    return Annotation(captions, splits)


def _karpathy_fields(image: Any, where: str) -> tuple[str, str, list[str]]:
    try:
        name, split = str(image["filename"]), image["split"]
        sentences = [str(sentence["raw"]) for sentence in image["sentences"]]
    except (KeyError, TypeError) as error:
        raise InputError(f"{where}: lacks {error}; an entry has filename, split and sentences, each with raw") from error
    split = {"restval": "train"}.get(split, split)
    if split not in SPLITS:
        raise InputError(f"{where}: split '{split}' of '{name}' is not one of train, restval, val, test")
    return name, split, sentences


def read_token(path: Path) -> Captions:
    """``results_20130124.token``: ``name#number<TAB>caption``."""
    captions: Captions = {}
    for where, line in _lines(path):
        row = _TOKEN_ROW.fullmatch(line)
        if row is None:
            raise InputError(f"{where}: not a row 'NAME#NUMBER<TAB>CAPTION': {line[:80]!r}")
        captions.setdefault(row["name"].strip(), []).append((int(row["number"]), row["text"].strip()))
    return captions


def read_csv(path: Path) -> Captions:
    """Kaggle's ``results.csv``: ``name| number| caption``, with or without spaces around the bars."""
    captions: Captions = {}
    repaired = []
    for index, (where, line) in enumerate(_lines(path)):
        if index == 0 and line.replace(" ", "").startswith("image_name|"):
            continue
        row = _CSV_ROW.fullmatch(line)
        if row is None:
            raise InputError(f"{where}: not a row 'NAME| NUMBER| CAPTION': {line[:80]!r}")
        if row["bar"] != "|":
            repaired.append(row["name"])
        captions.setdefault(row["name"].strip(), []).append((int(row["number"]), row["text"].strip()))
    if repaired:
        logger.info("%s: %d row(s) without their second bar were read all the same (%s)", path.name, len(repaired), ", ".join(repaired[:3]))
    return captions


def read_captions(path: Path) -> Captions:
    """``captions.txt``: ``image,caption`` or ``image_name,comment_number,comment``; a caption may be quoted, or hold bare commas."""
    captions: Captions = {}
    columns = 2
    for index, (where, line) in enumerate(_lines(path)):
        if index == 0 and line.replace(" ", "").lower() in ("image,caption", "image_name,comment"):
            continue
        if index == 0 and line.replace(" ", "").lower() == "image_name,comment_number,comment":
            columns = 3
            continue
        fields = line.split(",", columns - 1)
        if len(fields) < columns or (columns == 3 and not fields[1].strip().isdigit()):
            raise InputError(f"{where}: not a row '{'IMAGE,CAPTION' if columns == 2 else 'IMAGE,NUMBER,CAPTION'}': {line[:80]!r}")
        rows = captions.setdefault(_unquote(fields[0]), [])
        rows.append((int(fields[1]) if columns == 3 else len(rows), _unquote(fields[-1])))
    return captions


def _unquote(field: str) -> str:
    field = field.strip()
    inner = field[1:-1]
    if len(field) >= 2 and field[0] == field[-1] == '"' and '"' not in inner.replace('""', ""):
        return inner.replace('""', '"').strip()
    return field


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({error}): save it as UTF-8, or download it again") from error


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """Lines that hold something, each with its place for messages."""
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if line.strip():
            yield f"{path}, line {number}", line.rstrip("\r")
