import json

import numpy as np
import pytest

from insight.errors import InputError
from insight.interpret import maps
from insight.interpret.maps import BoxedPhrase, Example, MapFacts, WordSpan, load_maps, save_maps

EXAMPLE = Example(
    "a.jpg",
    "ein Hünd",
    (WordSpan("ein", 0, 3, (1,)), WordSpan("Hünd", 4, 8, (2, 3))),
    (BoxedPhrase("Hünd", 4, 8, "7", ((0.1, 0.2, 0.5, 1.0),)),),
)
FACTS = MapFacts(stage="joint", epoch=3, step=120, grid=2, shown=("image.blocks.1.attention",), examples=(EXAMPLE, EXAMPLE))


def arrays():
    generator = np.random.default_rng(0)
    return {
        "picture": generator.integers(0, 255, (2, 8, 8, 3), dtype=np.uint8),
        "rollout": generator.random((2, 5), dtype=np.float32),
        "class/image.blocks.1.attention": generator.random((2, 2, 5), dtype=np.float32),
    }


def test_what_is_written_is_read_back(tmp_path):
    written = arrays()
    save_maps(tmp_path / "maps" / "x.safetensors", written, FACTS)
    read, facts = load_maps(tmp_path / "maps" / "x.safetensors")
    assert facts == FACTS
    assert set(read) == set(written)
    assert np.array_equal(read["picture"], written["picture"])
    for name in ("rollout", "class/image.blocks.1.attention"):
        assert read[name].dtype == np.float16
        np.testing.assert_allclose(read[name], written[name], rtol=1e-3)


def test_the_file_stays_within_its_size_and_says_what_is_missing(tmp_path):
    written = {**arrays(), "heads/fusion.1.cross_attention": np.zeros((2, 4, 100, 100), np.float32), "rest": np.zeros((2, 10), np.float32)}
    path, _ = save_maps(tmp_path / "x.safetensors", written, FACTS, max_bytes_per_example=400)
    read, facts = load_maps(path)
    assert facts.left_out == ("heads/fusion.1.cross_attention",)
    assert set(read) == set(written) - set(facts.left_out)
    assert sum(array.nbytes for array in read.values()) <= 2 * 400


def test_a_write_that_fails_leaves_the_old_pair_whole_and_no_litter(tmp_path, monkeypatch):
    path, _ = save_maps(tmp_path / "x.safetensors", arrays(), FACTS)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def full_disk(tensors, file):
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(maps, "save_file", full_disk)
    with pytest.raises(OSError, match="No space"):
        save_maps(path, {"picture": arrays()["picture"] * 0}, FACTS)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_missing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.safetensors"):
        load_maps(tmp_path / "nothing.safetensors")
    path, sidecar = save_maps(tmp_path / "x.safetensors", arrays(), FACTS)
    sidecar.unlink()
    with pytest.raises(FileNotFoundError, match=r"x\.json"):
        load_maps(path)


def test_other_files_and_other_versions_are_refused(tmp_path):
    path, sidecar = save_maps(tmp_path / "x.safetensors", arrays(), FACTS)
    good = sidecar.read_text()
    for bad in ("{", "[]", json.dumps({**json.loads(good), "version": 3}), json.dumps({"version": 2, "examples": []})):
        sidecar.write_text(bad)
        with pytest.raises(InputError, match="write"):
            load_maps(path)
    sidecar.write_text(good)
    path.write_bytes(b"no tensors")
    with pytest.raises(InputError, match=r"x\.safetensors"):
        load_maps(path)
