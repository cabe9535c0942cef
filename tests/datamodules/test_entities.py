"""Phrase boxes are read from every place they come in, and put on the right words or on none."""

from __future__ import annotations

import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from datamodules.entities import Span, align, parse_boxes, parse_sentence, read_entities
from insight.errors import InputError

Write = Callable[..., Path]
Five = Callable[[int], list[str]]


def pack(root: Path, kind: str) -> None:
    """Move the Entities folders to where ``kind`` says."""
    if kind.endswith(".tar.gz"):
        with tarfile.open(root / kind, "w:gz") as archive:
            for name in ("Annotations", "Sentences"):
                archive.add(root / name, arcname=f"Flickr30kEntities/{name}")
    elif kind.endswith(".zip"):
        with zipfile.ZipFile(root / kind, "w") as archive:
            for path in sorted(root.glob("[AS]*s/*")):
                archive.write(path, path.relative_to(root))
    elif kind != ".":
        for name in ("Annotations", "Sentences"):
            (root / kind).mkdir(exist_ok=True)
            shutil.copytree(root / name, root / kind / name)
    if kind != ".":
        shutil.rmtree(root / "Annotations")
        shutil.rmtree(root / "Sentences")


@pytest.mark.parametrize("kind", [".", "flickr30k_entities", "Flickr30kEntities", "flickr30k_entities.tar.gz", "annotations.zip"])
def test_entities_are_read_from_folders_and_archives(write_flickr: Write, captions_of: Five, kind: str) -> None:
    root = write_flickr("token", entities=True)
    pack(root, kind)
    found = read_entities(root, ["1000.jpg", "1005.jpg", "unknown.jpg"])
    assert found is not None and sorted(found) == ["1000.jpg", "1005.jpg"]
    assert [text for text, _ in found["1005.jpg"].sentences] == captions_of(5)
    assert found["1000.jpg"].boxes == {"7": ((0.0, 0.0, 0.5, 1.0),), "9": ((0.75, 0.25, 1.0, 0.75),), "10": ((0.75, 0.25, 1.0, 0.75),)}


def test_no_entities_is_none(write_flickr: Write) -> None:
    assert read_entities(write_flickr("token"), ["1000.jpg"]) is None


def test_broken_entities_are_named(write_flickr: Write) -> None:
    root = write_flickr("token", entities=True)
    (root / "Annotations" / "1000.xml").write_text("<annotation><size><width>12")
    with pytest.raises(InputError, match=r"1000\.xml: not an annotation"):
        read_entities(root, ["1000.jpg"])
    with pytest.raises(InputError, match="not closed"):
        parse_sentence("[/EN#3/people a man", "1.txt")
    pack(root, "annotations.zip")
    archive = root / "annotations.zip"
    archive.rename(root / "flickr30k_entities.tar.gz")
    (root / "flickr30k_entities.tar.gz").write_bytes(b"\x1f\x8b no archive")
    with pytest.raises(InputError, match=r"the archive cannot be read.*entities=false"):
        read_entities(root, ["1000.jpg"])


def test_boxes_are_scaled_by_the_xmls_own_size_and_clipped() -> None:
    xml = (
        "<annotation><size><width>200</width><height>100</height></size><object><name>5</name>"
        "<bndbox><xmin>50</xmin><ymin>-5</ymin><xmax>210</xmax><ymax>25</ymax></bndbox></object></annotation>"
    )
    assert parse_boxes(xml.encode(), "here") == {"5": ((0.25, 0.0, 1.0, 0.25),)}


SENTENCES = [
    parse_sentence("[/EN#1/people A man] with [/EN#2/clothing a `` tri-colored '' hat] walks [/EN#3/animals a dog] .", ""),
    parse_sentence("[/EN#1/people A man] and [/EN#3/animals a dog] .", ""),
]


@pytest.mark.parametrize(
    "caption",
    [
        "A man with a `` tri-colored '' hat walks a dog .",
        'A man with a "tri-colored" hat walks a dog.',
        "a  man with a tricolored hat\twalks a dog",
        "A MAN WITH A TRI COLORED HAT WALKS A DOG!",
    ],
)
def test_phrases_are_found_whatever_the_spaces_case_and_punctuation(caption: str) -> None:
    spans, lost = align(caption, 0, SENTENCES)
    assert lost == 0 and [span.chain for span in spans] == ["1", "2", "3"]
    letters = ["".join(filter(str.isalnum, caption[span.start : span.end])).lower() for span in spans]
    assert letters == ["aman", "atricoloredhat", "adog"]


def test_a_caption_under_another_number_finds_its_sentence() -> None:
    assert align("A man and a dog.", 0, SENTENCES) == ([Span(0, 5, "1"), Span(10, 15, "3")], 0)


def test_a_typing_error_costs_only_the_phrase_that_it_is_in() -> None:
    caption = "A man with a tri-colred hat walks a dog ."
    spans, lost = align(caption, 0, SENTENCES)
    assert lost == 1 and [caption[span.start : span.end] for span in spans] == ["A man", "a dog"]


def test_a_phrase_is_never_put_on_a_part_of_a_word() -> None:
    caption = "A manx with a tri-colored hat walks a dogs."
    spans, lost = align(caption, 0, SENTENCES)
    assert lost == 2 and [caption[span.start : span.end] for span in spans] == ["a tri-colored hat"]


def test_phrases_are_not_put_on_a_caption_that_says_something_else() -> None:
    assert align("A man watches television while his wife sleeps .", 0, SENTENCES) == ([], 3)
    assert align("A man", 7, SENTENCES) == ([], 0)


def test_repeated_words_are_told_apart_by_their_place() -> None:
    sentence = parse_sentence("a dog chases [/EN#4/animals a dog] .", "")
    assert align("A dog chases a dog.", 0, [sentence]) == ([Span(13, 18, "4")], 0)


def test_letters_that_grow_when_lower_cased_do_not_shift_the_spans() -> None:
    sentence = parse_sentence("İİİ sees [/EN#4/animals a dog] .", "")
    spans, _ = align("İİİ sees a dog.", 0, [sentence])
    assert spans == [Span(9, 14, "4")]


def test_a_phrase_with_a_word_put_into_it_is_dropped_not_cut() -> None:
    caption = "A man with a tri-colored big hat walks a dog ."
    spans, lost = align(caption, 0, SENTENCES)
    assert lost == 1 and [caption[span.start : span.end] for span in spans] == ["A man", "a dog"]
