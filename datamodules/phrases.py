"""Phrases of Flickr30k Entities in a data set's own captions: found once and kept, since all of Flickr30k takes half a minute."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from datamodules.entities import Entities, align, find_entities, read_entities
from datamodules.flickr30k_files import Picture
from insight.data.batch import Phrase

logger = logging.getLogger(__name__)

VERSION = 1  # of reading and aligning, and of the file

Phrases = dict[str, tuple[tuple[Phrase, ...], ...]]  # file name -> caption -> its phrases


def read_phrases(root: Path, pictures: Sequence[Picture], cache_dir: Path) -> Phrases:
    """Phrases of every caption by file name; empty where there are no Entities.

    Raises:
        InputError: a broken archive, XML file or sentence.
    """
    source = find_entities(root)
    if source is None:
        return {}
    path = cache_dir / f"phrases-{_key(source, pictures)}.json"
    if path.is_file():
        kept = json.loads(path.read_text(encoding="utf-8"))
    else:
        phrases, lost = find_phrases(pictures, read_entities(root, [picture.filename for picture in pictures]) or {})
        kept = {"lost": lost, "phrases": {name: [[one[:6] for one in row] for row in rows] for name, rows in phrases.items()}}
        cache_dir.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        partial.write_text(json.dumps(kept, separators=(",", ":")), encoding="utf-8")
        os.replace(partial, path)
    if kept["lost"]:
        logger.info("%d phrases of Flickr30k Entities are not in the captions word for word, and left out", kept["lost"])
    return {name: tuple(tuple(_phrase(*one) for one in row) for row in rows) for name, rows in kept["phrases"].items()}


def find_phrases(pictures: Sequence[Picture], entities: Mapping[str, Entities]) -> tuple[Phrases, int]:
    """Phrases of every caption by file name, and how many of Entities' phrases could not be found in the captions."""
    found, num_lost = {}, 0
    for picture in pictures:
        if picture.filename not in entities:
            continue
        sentences, boxes = entities[picture.filename]
        rows = []
        for text, number in zip(picture.captions, picture.numbers, strict=True):
            spans, lost = align(text, number, sentences)
            num_lost += lost
            rows.append(tuple(Phrase(-1, text[a:b], a, b, chain, boxes.get(chain, ())) for a, b, chain in spans))
        found[picture.filename] = tuple(rows)
    return found, num_lost


def _phrase(caption: int, text: str, start: int, end: int, entity: str, boxes: Sequence[Sequence[float]]) -> Phrase:
    return Phrase(caption, text, start, end, entity, tuple((x1, y1, x2, y2) for x1, y1, x2, y2 in boxes))


def _key(source: Path, pictures: Sequence[Picture]) -> str:
    """Changes with the archive (or the files of the folders), the captions, and the way of reading them."""
    places = [source / "Annotations", source / "Sentences"] if source.is_dir() else [source]
    facts: list[object] = [VERSION, str(source.absolute())]
    for place in places:
        if place.is_dir():
            with os.scandir(place) as entries:
                facts += sorted((entry.name, entry.stat().st_size, entry.stat().st_mtime_ns) for entry in entries)
        else:
            facts.append((place.stat().st_size, place.stat().st_mtime_ns))
    facts += [(picture.filename, picture.captions, picture.numbers) for picture in pictures]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]
