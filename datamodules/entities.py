"""Flickr30k Entities (https://arxiv.org/abs/1505.04870): which words of a caption stand where in the picture.

``Sentences/NAME.txt`` holds one sentence a line with phrases marked ``[/EN#chain/type the words]``; ``Annotations/NAME.xml`` holds the
boxes of each chain in pixels, and the size of the picture that they were drawn on. Both are read from folders or straight from the archive.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import re
import tarfile
import zipfile
import zlib
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from difflib import SequenceMatcher
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from xml.etree import ElementTree

from insight.data.batch import Box
from insight.errors import InputError

logger = logging.getLogger(__name__)

FOLDERS = (".", "flickr30k_entities", "Flickr30kEntities", "flickr30k_entities/annotations", "annotations")
ARCHIVES = ("flickr30k_entities.tar.gz", "flickr30k_entities.tgz", "flickr30k_entities.zip", "annotations.zip")
ALIKE = 0.8  # a caption and a sentence that have less than this part of their letters in common are different sentences

_PHRASE = re.compile(r"\[/EN#(?P<chain>\d+)/(?P<type>\S+)\s+(?P<text>[^\]]*)\]")


class Span(NamedTuple):
    """A phrase in a sentence: characters ``start`` to ``end``."""

    start: int
    end: int
    chain: str


class Entities(NamedTuple):
    """Of one picture."""

    sentences: tuple[tuple[str, tuple[Span, ...]], ...]
    boxes: dict[str, tuple[Box, ...]]  # by chain, in fractions of the picture


def read_entities(root: Path, filenames: Iterable[str]) -> dict[str, Entities] | None:
    """By file name, for those pictures that have some; None where there are no Entities at all.

    Raises:
        InputError: a broken archive, XML file or sentence.
    """
    wanted = {PurePosixPath(name).stem: name for name in filenames}
    source = find_entities(root)
    if source is None:
        return None
    sentences: dict[str, tuple[tuple[str, tuple[Span, ...]], ...]] = {}
    boxes: dict[str, dict[str, tuple[Box, ...]]] = {}
    for place, kind, stem, content in _contents(source, set(wanted)):
        if kind == "Sentences":
            lines = content.decode("utf-8", errors="replace").splitlines()
            sentences[wanted[stem]] = tuple(parse_sentence(line, place) for line in lines if line.strip())
        else:
            boxes[wanted[stem]] = parse_boxes(content, place)
    logger.info("Flickr30k Entities from %s: %d of %d pictures", source, len(sentences), len(wanted))
    return {name: Entities(marked, boxes.get(name, {})) for name, marked in sentences.items()}


def find_entities(root: Path) -> Path | None:
    """The folder that holds Annotations/ and Sentences/, or the archive."""
    for name in FOLDERS:
        if (root / name / "Annotations").is_dir() and (root / name / "Sentences").is_dir():
            return root / name
    for folder in FOLDERS:
        for name in ARCHIVES:
            if (root / folder / name).is_file():
                return root / folder / name
    return None


def _contents(source: Path, wanted: set[str]) -> Iterator[tuple[str, str, str, bytes]]:
    """(place for messages, folder name, stem, content) of every wanted file."""
    if source.is_dir():
        for kind, ending in (("Annotations", ".xml"), ("Sentences", ".txt")):
            for stem in sorted(wanted):
                with contextlib.suppress(FileNotFoundError):  # a picture without Entities
                    path = source / kind / f"{stem}{ending}"
                    yield str(path), kind, stem, path.read_bytes()
        return
    try:
        yield from _zip_contents(source, wanted) if zipfile.is_zipfile(source) else _tar_contents(source, wanted)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError, zlib.error) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"{source}: the archive cannot be read ({reason}): download it again, or do without: data.init_args.entities=false"
        ) from error


def _zip_contents(source: Path, wanted: set[str]) -> Iterator[tuple[str, str, str, bytes]]:
    with zipfile.ZipFile(source) as archive:
        for name in archive.namelist():
            kind, stem = _kind_and_stem(name)
            if kind and stem in wanted:
                yield f"{source}: {name}", kind, stem, archive.read(name)


def _tar_contents(source: Path, wanted: set[str]) -> Iterator[tuple[str, str, str, bytes]]:
    with tarfile.open(source) as archive:
        for member in archive:
            kind, stem = _kind_and_stem(member.name)
            if kind and stem in wanted and member.isfile():
                file = archive.extractfile(member)
                assert file is not None  # a regular file has content
                yield f"{source}: {member.name}", kind, stem, file.read()


def _kind_and_stem(name: str) -> tuple[str, str]:
    path = PurePosixPath(name)
    if (path.parent.name, path.suffix) in (("Annotations", ".xml"), ("Sentences", ".txt")) and not path.name.startswith("."):
        return path.parent.name, path.stem
    return "", ""


def parse_sentence(line: str, place: str) -> tuple[str, tuple[Span, ...]]:
    """A marked sentence -> its plain text and the phrases in it.

    >>> parse_sentence("[/EN#7/animals A dog] runs on [/EN#0/notvisual it] .", "")
    ('A dog runs on it .', (Span(start=0, end=5, chain='7'), Span(start=14, end=16, chain='0')))
    """
    plain, spans, end = "", [], 0
    for match in _PHRASE.finditer(line):
        plain += line[end : match.start()]
        spans.append(Span(len(plain), len(plain) + len(match["text"]), match["chain"]))
        plain += match["text"]
        end = match.end()
    plain += line[end:]
    if "[/EN#" in plain:
        raise InputError(f"{place}: a phrase is not closed in {line[:80]!r}: download it again")
    return plain, tuple(spans)


def parse_boxes(content: bytes, place: str) -> dict[str, tuple[Box, ...]]:
    """Boxes by chain, scaled by the ``<size>`` that the file itself gives."""
    boxes: dict[str, list[Box]] = {}
    try:
        tree = ElementTree.fromstring(content)
        width, height = (float(tree.findtext(f"size/{side}", "")) for side in ("width", "height"))
        for thing in tree.iter("object"):
            found = thing.find("bndbox")
            if found is None:
                continue  # a scene, or a thing without a box
            x1, y1, x2, y2 = (float(found.findtext(corner, "")) for corner in ("xmin", "ymin", "xmax", "ymax"))
            box = (max(0.0, x1 / width), max(0.0, y1 / height), min(1.0, x2 / width), min(1.0, y2 / height))
            if box[0] < box[2] and box[1] < box[3]:
                for name in thing.findall("name"):
                    boxes.setdefault(name.text or "", []).append(box)
    except (ElementTree.ParseError, ValueError, ZeroDivisionError) as error:
        raise InputError(f"{place}: not an annotation of Flickr30k Entities ({error}): download it again") from error
    return {chain: tuple(found) for chain, found in boxes.items()}


def align(caption: str, number: int, sentences: Sequence[tuple[str, tuple[Span, ...]]]) -> tuple[list[Span], int]:
    """Phrases of the sentence that the caption is -> spans in the caption, and how many could not be placed.

    The caption may differ in case, spaces and punctuation (any sentence of the picture may then be the one), or in a few letters (then
    only the sentence of its own number may be). A phrase is placed only where all of its letters are found, at the bounds of words.
    """
    letters, places = _letters(caption)
    order = sorted(range(len(sentences)), key=lambda index: index != number)
    for index in order:
        if _letters(sentences[index][0])[0] == letters:
            return _transfer(caption, letters, places, sentences[index], SequenceMatcher(None, "", ""))
    if not 0 <= number < len(sentences):
        return [], 0
    matcher = SequenceMatcher(None, _letters(sentences[number][0])[0], letters, autojunk=False)
    if matcher.ratio() < ALIKE:
        return [], len(sentences[number][1])
    return _transfer(caption, letters, places, sentences[number], matcher)


@functools.lru_cache(maxsize=32)  # the sentences of one picture are compared with each of its captions
def _letters(text: str) -> tuple[str, list[int]]:
    """Lower-cased letters and digits, and the place of each in the text."""
    small = text.lower()
    if len(small) == len(text):
        places = [place for place, character in enumerate(small) if character.isalnum()]
        return "".join([small[place] for place in places]), places
    found = [(part, place) for place, character in enumerate(text) if character.isalnum() for part in character.lower()]
    return "".join(part for part, _ in found), [place for _, place in found]


def _transfer(
    caption: str, letters: str, places: list[int], sentence: tuple[str, tuple[Span, ...]], matcher: SequenceMatcher
) -> tuple[list[Span], int]:
    own_letters, own_places = _letters(sentence[0])
    blocks = [(0, 0, len(letters))] if own_letters == letters else [tuple(block) for block in matcher.get_matching_blocks()]
    spans = []
    for span in sentence[1]:
        first, last = bisect_left(own_places, span.start), bisect_left(own_places, span.end) - 1  # its first and last letter
        for own, other, length in blocks:
            if own <= first <= last < own + length:
                start, end = places[first - own + other], places[last - own + other] + 1
                if not caption[start - 1 : start].isalnum() and not caption[end : end + 1].isalnum():
                    spans.append(Span(start, end, span.chain))
    return spans, len(sentence[1]) - len(spans)
