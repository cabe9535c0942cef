"""Phrases are found once and kept, and found again when what they came from has changed."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from datamodules import phrases
from datamodules.entities import read_entities
from datamodules.flickr30k_files import read_flickr30k
from datamodules.phrases import find_phrases, read_phrases

Write = Callable[..., Path]


def pack(root: Path) -> None:
    with zipfile.ZipFile(root / "annotations.zip", "w") as archive:
        for path in sorted(root.glob("[AS]*s/*")):
            archive.write(path, path.relative_to(root))
    for name in ("Annotations", "Sentences"):
        shutil.rmtree(root / name)


@pytest.mark.parametrize("archive", [False, True])
def test_kept_phrases_are_those_that_are_found_anew(write_flickr: Write, tmp_path: Path, monkeypatch, archive: bool) -> None:
    root = write_flickr("token", entities=True)
    if archive:
        pack(root)
    pictures = read_flickr30k(root).pictures
    expected, _ = find_phrases(pictures, read_entities(root, [picture.filename for picture in pictures]) or {})
    assert sum(len(row) for rows in expected.values() for row in rows) > len(pictures)
    assert read_phrases(root, pictures, tmp_path / "cache") == expected
    monkeypatch.setattr(phrases, "read_entities", lambda *_: pytest.fail("read again"))
    assert read_phrases(root, pictures, tmp_path / "cache") == expected


def test_another_annotation_or_caption_is_read_again(write_flickr: Write, tmp_path: Path) -> None:
    root, cache = write_flickr("token", entities=True), tmp_path / "cache"
    pictures = read_flickr30k(root).pictures
    before = read_phrases(root, pictures, cache)
    path = root / "Annotations" / "1000.xml"
    path.write_text(path.read_text().replace("<xmax>60</xmax>", "<xmax>30</xmax>"))
    after = read_phrases(root, pictures, cache)
    assert before["1000.jpg"][0][0].boxes == ((0.0, 0.0, 0.5, 1.0),) and after["1000.jpg"][0][0].boxes == ((0.0, 0.0, 0.25, 1.0),)
    changed = [picture._replace(captions=("Nothing at all", *picture.captions[1:])) for picture in pictures]
    assert before["1001.jpg"][0] and not read_phrases(root, changed, cache)["1001.jpg"][0]


def test_without_entities_nothing_is_kept(write_flickr: Write, tmp_path: Path) -> None:
    root = write_flickr("token")
    assert read_phrases(root, read_flickr30k(root).pictures, tmp_path / "cache") == {} and not (tmp_path / "cache").exists()
