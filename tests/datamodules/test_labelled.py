"""Pictures with classes: scenes, folders, torchvision's data sets."""

from __future__ import annotations

import json

import pytest
import torch
import torchvision
from PIL import Image

from datamodules.image_folder import ImageFolderDataModule, read_image_folder
from datamodules.scenes_labels import ScenesLabelsDataModule, label_of
from datamodules.scenes_world import sample_scene
from datamodules.torchvision_data import TorchvisionDataModule
from insight.data.images import ImageTransform
from insight.errors import InputError

COLOURS = ("red", "green", "blue")


def scenes(cache, **arguments):
    return ScenesLabelsDataModule(cache_dir=str(cache), image_size=32, **{"num_train": 24, "num_val": 24, "num_test": 24, **arguments})


def folder(root, splits=("train", "val", "test"), count=4):
    for split in splits:
        for name in COLOURS:
            place = root / split / name if split else root / name
            place.mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (20, 10 + number), name).save(place / f"{number}.png")
    return root


def test_a_scene_is_labelled_by_its_leftmost_thing_as_the_generator_placed_it(scenes_cache):
    data = scenes(scenes_cache)
    for split in ("train", "test"):
        for index, (filename, label) in enumerate(zip(data.splits()[split], data.labels(split), strict=True)):
            assert filename == f"{split}-{index:05d}.jpg"
            things = sorted(sample_scene(0, split, index).things, key=lambda thing: thing.x - thing.radius)
            if things[1].x - things[1].radius - (things[0].x - things[0].radius) > 4:  # drawn edges are whole pixels, and shapes differ
                assert data.class_names()[label] == things[0].colour
    assert set(data.labels("train")) <= set(range(8)) and "colour of the leftmost thing" in data.describe()


def test_other_labels_count_things_or_name_the_background():
    row = {"background": "grainy pale blue", "things": [{"box": [9, 0, 20, 5], "shape": "star"}, {"box": [3, 0, 8, 5], "shape": "ring"}]}
    assert [label_of(row, label) for label in ("shape", "count", "background")] == ["ring", "2", "pale blue"]


def test_a_mirrored_scene_is_refused(scenes_cache):
    with pytest.raises(InputError, match="flip=true: a mirrored scene has another thing at its left"):
        scenes(scenes_cache).configure_stage(0, flip=True)


def test_training_crops_depend_on_the_seed_alone_and_evaluation_sees_the_whole_picture(scenes_cache):
    first, second = scenes(scenes_cache, batch_size=6, crop_scale_min=0.5), scenes(scenes_cache, batch_size=6, crop_scale_min=0.5)
    for one, two in zip(first.train_dataloader(), second.train_dataloader(), strict=True):
        assert torch.equal(one.image, two.image) and torch.equal(one.label, two.label) and one.filenames == two.filenames
    second.configure_stage(1)
    assert not torch.equal(next(iter(second.train_dataloader())).image, next(iter(first.train_dataloader())).image)
    (row,) = [place for place, name in enumerate(first.splits()["val"]) if name == "val-00003.jpg"]
    (seen,) = [
        image for batch in first.val_dataloader() for image, name in zip(batch.image, batch.filenames, strict=True) if name[4:9] == "00003"
    ]
    path = first._split("val").pictures[row].path
    torch.testing.assert_close(seen, ImageTransform(32).open(path), atol=1e-6, rtol=0)


@pytest.mark.parametrize("world", [2, 5])
def test_every_picture_is_counted_once_by_all_devices_together(scenes_cache, world, monkeypatch):
    data, names = scenes(scenes_cache, num_val=7, num_train=24, num_test=7, eval_batch_size=2), []
    for rank in range(world):
        monkeypatch.setattr(data, "_ranks", lambda rank=rank: (rank, world))
        for batch in data.val_dataloader():
            names += [name for name, counted in zip(batch.filenames, batch.counted.tolist(), strict=True) if counted]
    assert sorted(names) == data.splits()["val"]


def test_the_probe_shows_as_many_classes_as_it_can_and_the_same_pictures_again(scenes_cache):
    batch, again = scenes(scenes_cache).probe("val", 4, 3), scenes(scenes_cache).probe("val", 4, 3)
    assert len(set(batch.label.tolist())) == 4 and batch.filenames == again.filenames


def test_folders_are_classes_in_the_order_of_their_names(tmp_path):
    data = ImageFolderDataModule(str(folder(tmp_path / "set")), str(tmp_path / "cache"), image_size=16, batch_size=4)
    assert data.class_names() == ("blue", "green", "red") and data.describe().endswith("12/12/12 pictures (splits by folder), 3 classes")
    batch = next(iter(data.val_dataloader()))
    channel = {"red": 0, "green": 1, "blue": 2}
    for image, label, name in zip(batch.image, batch.label.tolist(), batch.filenames, strict=True):
        assert int(image.mean(dim=(1, 2)).argmax()) == channel[data.class_names()[label]] == channel[name.split("/")[1]]


def test_splits_that_are_missing_are_drawn_from_each_class_once_and_for_all(tmp_path):
    root = folder(tmp_path / "set", splits=("",), count=10)
    found, again = (read_image_folder(root, {"val": 0.2, "test": 0.3}, seed=1) for _ in range(2))
    assert found == again and "val and test by lot with seed 1" in found.splits_by
    for label in range(3):
        own = [one for one in found.pictures if one.label == label]
        assert [sum(one.split == split for one in own) for split in ("train", "val", "test")] == [5, 2, 3]
    assert read_image_folder(root, {"val": 0.2, "test": 0.3}, seed=2) != found


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda root: None, "there is no such folder"),
        (lambda root: (root / "one").mkdir(parents=True), "holds 0 folders of pictures: there must be one for each class"),
        (lambda root: (folder(root), (root / "val" / "red").rename(root / "val" / "rot")), "'rot' is no class of the training pictures"),
        (lambda root: folder(root, splits=("",), count=1), "too few pictures"),
    ],
)
def test_a_folder_that_is_no_set_of_classes_is_one_error(tmp_path, make, said):
    make(tmp_path / "set")
    with pytest.raises(InputError, match=said):
        ImageFolderDataModule(str(tmp_path / "set"), str(tmp_path / "cache")).prepare_data()


def test_a_broken_picture_is_named_or_left_out(tmp_path):
    root = folder(tmp_path / "set")
    (root / "train" / "red" / "0.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"train/red/0\.png|0\.png.*skip_broken=true"):
        ImageFolderDataModule(str(root), str(tmp_path / "cache")).prepare_data()
    data = ImageFolderDataModule(str(root), str(tmp_path / "cache"), skip_broken=True)
    assert len(data.labels("train")) == 11 and "train/red/0.png" not in data.splits()["train"]


def test_a_data_set_of_torchvision_is_written_once_and_keeps_its_parts_and_labels(tmp_path, monkeypatch):
    class Colours(torchvision.datasets.VisionDataset):
        classes = list(COLOURS)

        def __init__(self, root, train=True, download=False):
            super().__init__(root)
            self.names = COLOURS * (6 if train else 2)

        def __len__(self):
            return len(self.names)

        def __getitem__(self, index):
            return Image.new("RGB", (8, 8), self.names[index]), COLOURS.index(self.names[index])

    monkeypatch.setattr(torchvision.datasets, "Colours", Colours, raising=False)
    monkeypatch.setattr(torchvision.datasets, "__all__", (*torchvision.datasets.__all__, "Colours"))
    data = TorchvisionDataModule("Colours", cache_dir=str(tmp_path), image_size=8, batch_size=2, val_size=0.2)
    assert data.class_names() == ("0000-red", "0001-green", "0002-blue") and data.describe().startswith("torchvision's Colours at")
    assert [len(data.labels(split)) for split in ("train", "val", "test")] == [15, 3, 6]
    batch = next(iter(data.test_dataloader()))
    assert torch.equal(batch.image.mean(dim=(2, 3)).argmax(dim=1), batch.label)
    monkeypatch.setattr(Colours, "__getitem__", None)  # it is not asked again
    assert TorchvisionDataModule("Colours", cache_dir=str(tmp_path), image_size=8, val_size=0.2).splits() == data.splits()


def test_a_data_set_that_torchvision_lacks_or_cannot_read_is_one_error(tmp_path):
    with pytest.raises(InputError, match=r"name=CIFAR11: .*did you mean 'CIFAR10'"):
        TorchvisionDataModule("CIFAR11")
    with pytest.raises(InputError, match=r"name=CIFAR10: torchvision cannot read it .*download=true"):
        TorchvisionDataModule("CIFAR10", root=str(tmp_path), cache_dir=str(tmp_path / "cache")).prepare_data()
    assert not list((tmp_path / "cache").glob("*"))


def test_weights_of_other_classes_are_refused(scenes_cache):
    data = scenes(scenes_cache)
    data.setup()
    data.load_state_dict(json.loads(json.dumps(data.state_dict())))
    with pytest.raises(InputError, match="know the classes a, b, the data have red"):
        data.load_state_dict({"classes": ["a", "b"], "fingerprint": "f"})
