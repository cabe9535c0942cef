"""The folder of scenes: complete or absent, byte-equal for the same settings, in the form that Entities readers expect."""

import json
import os
import re
import tarfile
import time
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from datamodules import scenes_files
from datamodules.entities import align, read_entities
from datamodules.scenes_files import Settings, ensure_scenes, make_example
from insight.errors import InputError

TINY = Settings(seed=0, train=4, val=2, test=5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return ensure_scenes(tmp_path_factory.mktemp("cache"), TINY)


def test_the_same_settings_give_the_same_bytes(folder, tmp_path):
    again = ensure_scenes(tmp_path, TINY)
    assert again.name == folder.name == "scenes-v1-seed0-4-2-5"
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    assert len(files) == 4 + 11
    for file in files:
        assert (folder / file).read_bytes() == (again / file).read_bytes(), file


def test_a_picture_does_not_depend_on_how_many_come_before_it(folder, tmp_path):
    other = ensure_scenes(tmp_path, Settings(seed=0, train=1, val=1, test=2))
    for name in ("test-00001.jpg", "train-00000.jpg"):
        assert (other / "flickr30k_images" / name).read_bytes() == (folder / "flickr30k_images" / name).read_bytes()
    captions = []
    for root in (folder, other):
        images = json.loads((root / "dataset_flickr30k.json").read_text())["images"]
        captions.append({image["filename"]: [one["raw"] for one in image["sentences"]] for image in images})
    assert captions[0]["test-00001.jpg"] == captions[1]["test-00001.jpg"]


def test_the_first_captions_stay_what_they_were_when_version_1_was_fixed():
    assert sorted(caption.text for caption in make_example(0, "train", 0).captions) == [
        "A huge circle on the left.",
        "A picture of a disc and a heart.",
        "I can see an orange heart partly covering a huge black circle.",
        "I can see two huge shapes on a grey background.",
        "This image shows a black ball behind an orange heart.",
    ]


def test_the_json_is_karpathys_and_the_picture_shows_what_was_drawn(folder):
    images = json.loads((folder / "dataset_flickr30k.json").read_text())["images"]
    assert [image["split"] for image in images] == ["train"] * 4 + ["val"] * 2 + ["test"] * 5
    assert [sentid for image in images for sentid in image["sentids"]] == list(range(55))
    assert images[3]["imgid"] == 3 and images[3]["sentences"][2]["sentid"] == 17
    assert images[0]["sentences"][0]["tokens"] == re.findall("[a-z]+", images[0]["sentences"][0]["raw"].lower())
    shown = np.asarray(Image.open(folder / "flickr30k_images" / "val-00001.jpg")).astype(float)
    assert np.abs(shown - make_example(0, "val", 1).picture.pixels).mean() < 6  # but for what JPEG loses of the noise
    assert np.abs(shown - make_example(0, "val", 0).picture.pixels).mean() > 12


def test_every_phrase_of_every_caption_comes_back_with_its_boxes_through_the_reader(folder):
    entities = read_entities(folder, [f"test-{index:05d}.jpg" for index in range(5)])
    for index in range(5):
        example = make_example(0, "test", index)
        read = entities[example.filename]
        for number, caption in enumerate(example.captions):
            spans, lost = align(caption.text, number, read.sentences)
            assert lost == 0
            assert [(span.start, span.end) for span in spans] == [(phrase.start, phrase.end) for phrase in caption.phrases]
            for span, phrase in zip(spans, caption.phrases, strict=True):
                expected = sorted(tuple(edge / 128 for edge in example.picture.boxes[thing]) for thing in phrase.members)
                assert sorted(read.boxes.get(span.chain, ())) == expected
                assert (span.chain == "0") == (phrase.kind == "notvisual")


def test_the_archive_holds_valid_annotations_with_the_background_as_a_scene_without_a_box(folder):
    with tarfile.open(folder / "flickr30k_entities.tar.gz") as archive:
        assert len(archive.getnames()) == 22
        tree = ElementTree.fromstring(archive.extractfile("Annotations/train-00000.xml").read())
        lines = archive.extractfile("Sentences/train-00000.txt").read().decode().splitlines()
    assert tree.findtext("filename") == "train-00000.jpg" and tree.findtext("size/width") == "128"
    scenes = [one for one in tree.iter("object") if one.findtext("scene") == "1"]
    assert len(scenes) == 1 and scenes[0].find("bndbox") is None
    assert len(lines) == 5 and all(line.endswith(" .") for line in lines)


def test_pictures_with_unseen_combinations_are_marked(folder):
    pictures = {one["filename"]: one for one in json.loads((folder / "scenes.json").read_text())["pictures"]}
    assert [pictures[f"test-{index:05d}.jpg"]["seen"] for index in range(5)] == [True, False, True, False, True]
    assert all(one["seen"] == all(thing["seen"] for thing in one["things"]) for one in pictures.values())
    negatives = json.loads((folder / "hard_negatives.json").read_text())
    assert negatives and set(negatives[0]) == {"filename", "caption", "negative", "kind", "seen"}
    assert {one["filename"][:4] for one in negatives} == {"test"}


def test_a_killed_rendering_leaves_nothing_that_looks_finished(tmp_path, monkeypatch):
    calls = []

    def make_three(*place):
        calls.append(place)
        if len(calls) > 3:
            raise KeyboardInterrupt
        return make_example(*place)

    monkeypatch.setattr(scenes_files, "make_example", make_three)
    with pytest.raises(KeyboardInterrupt):
        ensure_scenes(tmp_path, TINY)
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_cleared_away_once_it_is_old(tmp_path):
    old, new = tmp_path / f"{TINY.folder_name}.partial-1", tmp_path / f"{TINY.folder_name}.partial-2"
    old.mkdir()
    new.mkdir()
    os.utime(old, (time.time() - 7200,) * 2)
    ensure_scenes(tmp_path, TINY)
    assert not old.exists() and new.exists()


def test_a_finished_folder_is_not_rendered_again(folder, monkeypatch):
    monkeypatch.setattr(scenes_files, "make_example", None)
    assert ensure_scenes(folder.parent, TINY) == folder


@pytest.mark.parametrize("content", ["", "[]", '{"settings": {"version": 0}}'])
def test_a_folder_of_that_name_with_something_else_is_refused_by_name(tmp_path, content):
    strange = tmp_path / TINY.folder_name
    strange.mkdir()
    (strange / "scenes.json").write_text(content)
    with pytest.raises(InputError, match=r"scenes\.json.*remove the folder"):
        ensure_scenes(tmp_path, TINY)
