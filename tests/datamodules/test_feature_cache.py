"""Features on disk are what the tower says of the same views, whoever asks and whatever happened to the file."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from datamodules.feature_cache import FeatureCache, Features, is_whole
from datamodules.flickr30k import Flickr30kDataModule
from datamodules.samples import FixedViews
from insight.data.images import ImageTransform, normalise
from insight.errors import InputError
from insight.models.tower import ImageTower


class Halves(ImageTower):
    """Mean colour of four quarters of the picture, times a weight; the pooled vector is their mean."""

    def __init__(self, image_size: int = 16, weight: float = 2.0) -> None:
        super().__init__(torch.nn.Conv2d(3, 5, 1, bias=False), image_size, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "mean")
        torch.nn.init.constant_(self.network.weight, weight)
        self.calls = 0
        self.measure()

    def look(self, pixels_B3HW):
        self.calls += 1
        quarters = torch.nn.functional.adaptive_avg_pool2d(self.network(pixels_B3HW), 2)
        return quarters.flatten(2).transpose(1, 2), None


@pytest.fixture
def make(write_flickr, tmp_path):
    """A data module over a small folder, and with which settings."""
    root = write_flickr("karpathy")

    def made(features: Features | None, **settings) -> Flickr30kDataModule:
        settings = {"batch_size": 4, "eval_batch_size": 2, "flip": True, "crop_scale_min": 0.5, "vocab_size": 300, **settings}
        return Flickr30kDataModule(str(root), str(tmp_path / "cache"), image_size=16, features=features, **settings)

    return made


def features_files(tmp_path):
    return sorted((tmp_path / "cache").glob("features-*.npy"))


def batches(loader):
    return {name: row for batch in loader for name, row in zip(batch.filenames, batch.image, strict=True)}


def test_the_file_holds_what_the_tower_says_of_each_view(make, tmp_path):
    data, tower = make(Features(views=4, precision="float32")), Halves()
    data.serve_features(tower)
    list(data.train_dataloader())
    (path,) = features_files(tmp_path)
    stored, split = np.load(path), data._split("train")
    assert stored.shape == (10, 4, 5, 5)
    views = FixedViews(ImageTransform(16, 0.5, 0.0, True), 4, seed=0)
    for row in (0, 7):
        working = split.cache[split.rows[row]]
        whole = data.transform.resize(working)
        for view in range(4):
            pixels = whole if view == 0 else whole.flip(-1) if view == 1 else views.pixels(working, row, view)
            with torch.no_grad():
                expected = tower.embed(normalise(pixels[None]))[0]
            torch.testing.assert_close(torch.from_numpy(stored[row, view]), expected)
    assert not np.array_equal(stored[0, 2], stored[0, 3]) and not np.array_equal(stored[0, 2], stored[1, 2])


def test_training_batches_are_the_same_with_pixels_and_with_features(make):
    tower = Halves()
    kept, fresh = make(Features(views=3, precision="float32"), views=2), make(Features(views=3, cache=False), views=2)
    kept.serve_features(tower)
    fresh.serve_features(tower)
    for one, other in zip(kept.train_dataloader(), fresh.train_dataloader(), strict=True):
        assert one.image.shape == (4, 5, 5) and other.image.shape == (4, 3, 16, 16) and one.filenames == other.filenames
        with torch.no_grad():
            torch.testing.assert_close(one.image, tower.embed(other.image))
            torch.testing.assert_close(one.view, tower.embed(other.view))
        assert one.phrases == other.phrases and torch.equal(one.tokens, other.tokens)
    for one, other in zip(kept.val_dataloader(), fresh.val_dataloader(), strict=True):
        with torch.no_grad():
            torch.testing.assert_close(one.image, tower.embed(other.image))


def test_callbacks_get_pixels_in_any_case(make):
    data = make(Features())
    data.serve_features(Halves())
    data.val_dataloader()
    assert data.probe("val", 2).image.shape == data.examples("val", data.splits()["val"][:2]).image.shape == (2, 3, 16, 16)
    data.serve_features(None)  # the tower trains in the next stage
    assert next(iter(data.train_dataloader())).image.shape[1:] == (3, 16, 16)


def test_features_are_computed_once_and_again_for_other_weights_views_and_settings(make, tmp_path):
    tower = Halves()

    def computed(tower, features=Features(views=2), regions=True, **settings) -> bool:  # noqa: B008  frozen
        before, data = tower.calls, make(features, **settings)
        data.serve_features(tower, regions)
        next(iter(data.train_dataloader()))
        return tower.calls > before

    assert computed(tower) and not computed(tower) and not computed(Halves(), batch_size=2)
    assert computed(Halves(weight=1.0)) and computed(tower, Features(views=3)) and computed(tower, crop_scale_min=0.6)
    assert computed(tower, flip=False) and computed(tower, Features(views=2, precision="float32")) and computed(tower, regions=False)
    assert len(features_files(tmp_path)) == 7


def test_a_pooled_vector_alone_is_row_zero(make):
    data, tower = make(Features(views=2, precision="float32")), Halves()
    data.serve_features(tower, regions=False)
    alone = batches(data.val_dataloader())
    data.serve_features(tower, regions=True)
    for name, features in batches(data.val_dataloader()).items():
        assert torch.equal(alone[name], features[:1])


def test_half_precision_rounds_to_eleven_bits(make):
    tower, found = Halves(weight=0.7), {}
    for precision in ("float16", "float32"):
        data = make(Features(precision=precision))
        data.serve_features(tower)
        found[precision] = torch.stack(list(batches(data.val_dataloader()).values()))
    exact = found["float32"]
    assert found["float16"].dtype == torch.float32 and not torch.equal(found["float16"], exact)
    assert ((found["float16"] - exact).abs() <= exact.abs() * 2**-11 + 1e-7).all()


def cut(path):
    path.write_bytes(path.read_bytes()[:-8])


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[-5] ^= 4
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    "damage", [cut, flip_a_bit, lambda path: path.with_suffix(".json").write_text("{"), lambda path: path.write_text("")]
)
def test_a_damaged_file_is_computed_again(damage, make, tmp_path, caplog):
    data, tower = make(Features()), Halves()
    data.serve_features(tower)
    expected, (path,) = batches(data.val_dataloader()), features_files(tmp_path)
    damage(path)
    again = make(Features())
    again.serve_features(tower)
    found = batches(again.val_dataloader())
    assert all(torch.equal(found[name], expected[name]) for name in expected) and "computed again" in caplog.text


def test_a_computation_that_breaks_off_leaves_nothing_that_is_taken_for_features(make, tmp_path):
    data, tower = make(Features(views=4)), Halves()
    tower.train()
    look, tower.calls = tower.look, 0

    def broken(pixels):
        if tower.calls:
            raise KeyboardInterrupt
        return look(pixels)

    tower.look = broken
    data.serve_features(tower)
    with pytest.raises(KeyboardInterrupt):
        data.train_dataloader()
    assert not [path for path in features_files(tmp_path) if ".begun" not in path.name]
    assert not list((tmp_path / "cache").glob("*.partial"))
    assert tower.training and tower.network.training  # modes are as they were
    tower.look = look
    assert next(iter(data.train_dataloader())).image.shape == (4, 5, 5)


def test_asked_to_stop_it_stops_at_the_next_batch_and_goes_on_from_there(make, tmp_path):
    whole, tower = make(Features(views=4), seed=3), Halves()
    whole.serve_features(tower)
    whole.train_dataloader()
    (path,) = features_files(tmp_path)
    expected, batches = path.read_bytes(), tower.calls  # 40 views, 32 at once
    path.unlink()
    again, tower = make(Features(views=4), seed=3), Halves()
    again.serve_features(tower)
    before = tower.calls
    again.stop_asked = lambda: tower.calls > before
    with pytest.raises(KeyboardInterrupt):
        again.train_dataloader()
    assert tower.calls == before + 1 and [one.name.endswith(".begun.npy") for one in features_files(tmp_path)] == [True]
    again.stop_asked = lambda: False
    again.train_dataloader()
    assert features_files(tmp_path) == [path] and path.read_bytes() == expected and tower.calls == batches


@pytest.mark.parametrize("damage", ["bit", "note"])
def test_what_an_interrupted_computation_left_is_used_only_where_it_is_whole(make, tmp_path, damage):
    data, tower = make(Features(views=4)), Halves()
    data.serve_features(tower)
    before = tower.calls
    data.stop_asked = lambda: tower.calls > before
    with pytest.raises(KeyboardInterrupt):
        data.train_dataloader()
    (begun,) = features_files(tmp_path)
    flip_a_bit(begun) if damage == "bit" else begun.with_suffix(".json").unlink()
    data.stop_asked = lambda: False
    data.train_dataloader()
    assert tower.calls == before + 3  # both batches, beside the one of before
    (path,) = features_files(tmp_path)
    assert is_whole(path, (10, 4, 5, 5), np.dtype("float16"))


def test_a_cache_travels_to_other_processes_by_its_path_alone(make, tmp_path):
    data = make(Features())
    data.serve_features(Halves())
    list(data.val_dataloader())
    (path,) = features_files(tmp_path)
    cache = FeatureCache(path)
    expected = cache[0, 0]
    assert len(pickle.dumps(cache)) < 500 and torch.equal(pickle.loads(pickle.dumps(cache))[0, 0], expected)


def test_no_view_is_an_error():
    with pytest.raises(InputError, match=r"features\.views=0: must be at least 1"):
        Features(views=0)
