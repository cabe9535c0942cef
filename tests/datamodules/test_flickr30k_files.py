"""What people have on disk is read alike in every format; what does not belong together is named."""

from __future__ import annotations

import json
import logging
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from datamodules.flickr30k_files import draw_splits, find_images, fingerprint, read_flickr30k, read_hard_negatives
from insight.errors import InputError

Write = Callable[..., Path]
Five = Callable[[int], list[str]]


@pytest.mark.parametrize("format", ["karpathy", "token", "csv", "captions"])
def test_every_format_gives_the_same_pictures_and_captions(write_flickr: Write, captions_of: Five, format: str) -> None:
    found = read_flickr30k(write_flickr(format))
    assert found.format == format
    assert {picture.filename: list(picture.captions) for picture in found.pictures} == {
        f"{1000 + index}.jpg": captions_of(index) for index in range(16)
    }
    assert all(picture.numbers == (0, 1, 2, 3, 4) for picture in found.pictures)


def test_formats_are_detected_in_order_said_and_can_be_forced(write_flickr: Write, caplog: pytest.LogCaptureFixture) -> None:
    root = write_flickr("karpathy", "token", "csv", "captions")
    with caplog.at_level(logging.INFO, logger="datamodules"):
        assert read_flickr30k(root).format == "karpathy"
    assert "dataset_flickr30k.json (karpathy)" in caplog.text
    assert read_flickr30k(root, format="csv").format == "csv"
    for name, following in (("dataset_flickr30k.json", "token"), ("results_20130124.token", "csv"), ("results.csv", "captions")):
        (root / name).unlink()
        assert read_flickr30k(root).format == following
    with pytest.raises(InputError, match=r"no results\.csv there.*data\.init_args\.root=PATH.*data=scenes"):
        read_flickr30k(root, format="csv")
    with pytest.raises(InputError, match="format='xml': must be one of karpathy"):
        read_flickr30k(root, format="xml")


def test_kaggles_broken_row_is_read_and_said(write_flickr: Write, captions_of: Five, caplog: pytest.LogCaptureFixture) -> None:
    root = write_flickr("csv")
    assert "1000.jpg| 4   Somebody" in (root / "results.csv").read_text()
    with caplog.at_level(logging.INFO, logger="datamodules"):
        pictures = read_flickr30k(root).pictures
    assert pictures[0].captions[4] == captions_of(0)[4]
    assert "1 row(s) without their second bar" in caplog.text


def test_bars_without_spaces_windows_lines_and_a_byte_order_mark_are_read(write_flickr: Write, captions_of: Five) -> None:
    root = write_flickr("csv")
    path = root / "results.csv"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_text().replace("| ", "|").replace("\n", "\r\n").encode())
    assert list(read_flickr30k(root).pictures[1].captions) == captions_of(1)


@pytest.mark.parametrize("images", ["images", "flickr30k-images", "flickr30k_images", "flickr30k_images/flickr30k_images", "Images", "."])
def test_picture_folders_are_found_under_their_usual_names(write_flickr: Write, images: str) -> None:
    assert len(read_flickr30k(write_flickr("token", images=images)).pictures) == 16


def test_kaggles_layout_with_the_captions_inside_the_picture_folder_is_found(write_flickr: Write) -> None:
    root = write_flickr("csv", images="flickr30k_images/flickr30k_images")
    (root / "results.csv").rename(root / "flickr30k_images" / "results.csv")
    assert read_flickr30k(root).format == "csv"


def test_karpathys_splits_count_for_every_format_and_restval_is_training(write_flickr: Write) -> None:
    root = write_flickr("karpathy", "token", "captions")
    for format in (None, "token", "captions"):
        found = read_flickr30k(root, format=format)
        assert Counter(picture.split for picture in found.pictures) == {"train": 10, "val": 3, "test": 3}
        assert found.splits_by == "Karpathy's splits"
        assert {picture.filename for picture in found.split("val")} == {"1010.jpg", "1011.jpg", "1012.jpg"}


def test_pictures_outside_karpathys_splits_are_no_mistake(write_flickr: Write) -> None:
    root = write_flickr("karpathy", "token")
    entries = json.loads((root / "dataset_flickr30k.json").read_text())
    del entries["images"][0]
    (root / "dataset_flickr30k.json").write_text(json.dumps(entries))
    assert len(read_flickr30k(root).pictures) == len(read_flickr30k(root, format="token").pictures) == 15


def test_drawn_splits_are_by_picture_seeded_and_independent_of_order() -> None:
    names = [f"{index}.jpg" for index in range(100)]
    splits = draw_splits(names, seed=1, val_size=0.2, test_size=15)
    assert Counter(splits.values()) == {"train": 65, "val": 20, "test": 15} and set(splits) == set(names)
    assert draw_splits(reversed(names), 1, 0.2, 15) == splits
    assert draw_splits(names, 2, 0.2, 15) != splits
    assert Counter(draw_splits([str(index) for index in range(20_000)], 0, None, None).values())["val"] == 1000
    assert Counter(draw_splits(names, 0, None, None).values()) == {"train": 80, "val": 10, "test": 10}


@pytest.mark.parametrize(("val", "test"), [(0.5, 0.5), (99, 1), (-1, None), (None, 0)])
def test_split_sizes_that_cannot_be_are_refused(val: float | None, test: float | None) -> None:
    with pytest.raises(InputError, match=r"data\.init_args\.(val|test)_size"):
        draw_splits([str(index) for index in range(100)], 0, val, test)


def test_a_missing_folder_caption_file_or_pictures_names_both_remedies(tmp_path: Path) -> None:
    remedies = r"data\.init_args\.root=PATH \(or the variable FLICKR30K_ROOT\).*data=scenes"
    with pytest.raises(InputError, match=f"nowhere: no such folder.*{remedies}"):
        read_flickr30k(tmp_path / "nowhere")
    with pytest.raises(InputError, match=f"no caption file there.*{remedies}"):
        read_flickr30k(tmp_path)
    (tmp_path / "results_20130124.token").write_text("1.jpg#0\tA dog\n")
    with pytest.raises(InputError, match=f"no folder with pictures there.*{remedies}"):
        read_flickr30k(tmp_path)


def test_captions_without_pictures_are_listed_or_left_out(write_flickr: Write, caplog: pytest.LogCaptureFixture) -> None:
    root = write_flickr("token")
    for index in range(7):
        (root / "images" / f"{1000 + index}.jpg").unlink()
    with pytest.raises(InputError, match=r"7 captions .*no picture file.*: 1000\.jpg, .*1004\.jpg, \.\.\.\. Mend it.*skip_broken=true"):
        read_flickr30k(root)
    assert len(read_flickr30k(root, skip_broken=True).pictures) == 9
    assert "left out: 7" in caplog.text


def test_pictures_without_captions_are_listed_or_left_out(write_flickr: Write) -> None:
    root = write_flickr("csv")
    shutil.copy(root / "images" / "1000.jpg", root / "images" / "stray.jpg")
    with pytest.raises(InputError, match=r"1 pictures .*have no caption in results\.csv: stray\.jpg"):
        read_flickr30k(root)
    assert len(read_flickr30k(root, skip_broken=True).pictures) == 16


def test_a_karpathy_entry_without_sentences_is_listed_or_left_out(write_flickr: Write) -> None:
    root = write_flickr("karpathy")
    entries = json.loads((root / "dataset_flickr30k.json").read_text())
    entries["images"][3]["sentences"] = []
    (root / "dataset_flickr30k.json").write_text(json.dumps(entries))
    with pytest.raises(InputError, match=r"have no caption in dataset_flickr30k\.json: 1003\.jpg"):
        read_flickr30k(root)
    assert len(read_flickr30k(root, skip_broken=True).pictures) == 15


@pytest.mark.parametrize(
    ("format", "file", "row"), [("token", "results_20130124.token", "1001.jpg#3\t"), ("csv", "results.csv", "1001.jpg| 3| ")]
)
def test_an_empty_caption_is_listed_or_left_out_without_moving_the_others(
    write_flickr: Write, captions_of: Five, format: str, file: str, row: str
) -> None:
    root = write_flickr(format)
    text = (root / file).read_text()
    assert row in text
    (root / file).write_text(text.replace(row + captions_of(1)[3], row + "  "))
    with pytest.raises(InputError, match=r"1 captions .*are empty: 1001\.jpg#3"):
        read_flickr30k(root)
    picture = read_flickr30k(root, skip_broken=True).pictures[1]
    assert picture.numbers == (0, 1, 2, 4) and picture.captions[3] == captions_of(1)[4]


@pytest.mark.parametrize("name", ["../secret.jpg", "/etc/secret.jpg", "a/../../secret.jpg", "..\\secret.jpg", "C:\\secret.jpg"])
def test_a_file_name_that_leaves_the_folder_is_refused(write_flickr: Write, name: str) -> None:
    root = write_flickr("token")
    with (root / "results_20130124.token").open("a") as file:
        file.write(f"{name}#0\tA dog\n")
    with pytest.raises(InputError, match="leaves the picture folder"):
        read_flickr30k(root, skip_broken=True)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("results_20130124.token", "1000.jpg A dog\n", r"line 1: not a row 'NAME#NUMBER<TAB>CAPTION': '1000\.jpg A dog'"),
        ("results.csv", "image_name| comment_number| comment\n1000.jpg, 0, A dog\n", r"line 2: not a row 'NAME\| NUMBER\| CAPTION'"),
        ("captions.txt", "image,caption\n1000.jpg A dog\n", r"line 2: not a row 'IMAGE,CAPTION'"),
        ("dataset_flickr30k.json", "[1, 2]", "not Karpathy's JSON"),
        ("dataset_flickr30k.json", '{"images": [{"filename": "1.jpg"}]}', r"images\[0\]: lacks 'split'"),
        (
            "dataset_flickr30k.json",
            '{"images": [{"filename": "1.jpg", "split": "dev", "sentences": []}]}',
            "split 'dev' of '1.jpg' is not one of",
        ),
    ],
)
def test_a_malformed_caption_file_is_named_with_its_place(write_flickr: Write, file: str, content: str, message: str) -> None:
    root = write_flickr()
    (root / file).write_text(content)
    with pytest.raises(InputError, match=message):
        read_flickr30k(root)


def test_text_that_is_not_utf8_is_named(write_flickr: Write) -> None:
    root = write_flickr()
    (root / "captions.txt").write_bytes(b"image,caption\n1000.jpg,caf\xe9\n")
    with pytest.raises(InputError, match=r"captions\.txt: not UTF-8"):
        read_flickr30k(root)


def test_a_captions_file_may_number_its_rows_and_hold_bare_commas(write_flickr: Write) -> None:
    root = write_flickr(count=3)
    rows = [f"{1000 + index}.jpg,{number},A dog, a cat, {number}" for index in range(3) for number in (1, 0)]
    (root / "captions.txt").write_text("image_name,comment_number,comment\n" + "\n".join(rows))
    picture = read_flickr30k(root).pictures[0]
    assert picture.captions == ("A dog, a cat, 1", "A dog, a cat, 0") and picture.numbers == (1, 0)


def test_the_fingerprint_changes_with_captions_splits_and_files_but_not_with_the_place(write_flickr: Write) -> None:
    root, twin = write_flickr("token"), write_flickr("token", name="twin")
    original = fingerprint(read_flickr30k(root).pictures)
    assert fingerprint(read_flickr30k(twin).pictures) == original
    assert fingerprint(read_flickr30k(root, seed=1).pictures) != original
    (root / "images" / "1002.jpg").write_bytes((root / "images" / "1002.jpg").read_bytes() + b"\0")
    assert fingerprint(read_flickr30k(root).pictures) != original
    text = (twin / "results_20130124.token").read_text()
    (twin / "results_20130124.token").write_text(text.replace("number 1 ", "number one "))
    assert fingerprint(read_flickr30k(twin).pictures) != original


def test_hard_negatives_are_read_and_their_pictures_must_be_known(tmp_path: Path) -> None:
    assert read_hard_negatives(tmp_path, []) == []
    row = {"filename": "1.jpg", "caption": "a", "negative": "b", "kind": "swap", "seen": True}
    (tmp_path / "hard_negatives.json").write_text(json.dumps([row]))
    assert read_hard_negatives(tmp_path, ["1.jpg"]) == [row]
    with pytest.raises(InputError, match=r"hard_negatives\.json: 1 of its pictures have no captions, e\.g\. 1\.jpg"):
        read_hard_negatives(tmp_path, ["2.jpg"])
    (tmp_path / "hard_negatives.json").write_text('[{"filename": "1.jpg"}]')
    with pytest.raises(InputError, match="not a list of"):
        read_hard_negatives(tmp_path, ["1.jpg"])


def test_only_picture_files_count_as_pictures(write_flickr: Write) -> None:
    root = write_flickr("token")
    (root / "images" / "Thumbs.db").write_text("")
    (root / "images" / "readme.txt").write_text("")
    assert len(find_images(root)[1]) == 16
