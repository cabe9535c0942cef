"""The cache holds what decoding gives, is made once, and never half."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from datamodules import image_cache
from datamodules.flickr30k_files import Picture, read_flickr30k
from datamodules.image_cache import build_cache
from insight.data.images import open_image, working_image
from insight.errors import InputError


@pytest.fixture
def pictures(write_flickr: Callable[..., Path]) -> tuple[Picture, ...]:
    return read_flickr30k(write_flickr("token")).pictures


def test_the_cache_holds_the_working_images_in_order(pictures: tuple[Picture, ...], tmp_path: Path) -> None:
    cache, broken = build_cache(pictures, 16, tmp_path / "cache")
    assert not broken
    for row, picture in enumerate(pictures):
        assert torch.equal(cache[row], working_image(open_image(picture.path), 16))


def test_the_cache_is_made_once_and_anew_when_size_or_files_change(
    pictures: tuple[Picture, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    def count(path: Path):
        opened.append(path.name)
        return open_image(path)

    monkeypatch.setattr(image_cache, "open_image", count)
    for expected, size, chosen in (
        (16, 16, pictures),
        (0, 16, pictures),
        (16, 32, pictures),
        (3, 16, pictures[:3]),
        (16, 16, (pictures[0]._replace(modified=1), *pictures[1:])),
    ):
        opened.clear()
        build_cache(chosen, size, tmp_path / "cache")
        assert len(opened) == expected


def test_a_build_that_stops_halfway_leaves_nothing_behind(
    pictures: tuple[Picture, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(path: Path):
        if path.name == "1009.jpg":
            raise KeyboardInterrupt
        return open_image(path)

    with monkeypatch.context() as patch:
        patch.setattr(image_cache, "open_image", stop)
        with pytest.raises(KeyboardInterrupt):
            build_cache(pictures, 16, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
    cache, _ = build_cache(pictures, 16, tmp_path / "cache")
    assert torch.equal(cache[15], working_image(open_image(pictures[15].path), 16))


def test_what_a_killed_process_left_is_not_read_and_later_removed(pictures: tuple[Picture, ...], tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    cache, _ = build_cache(pictures, 16, folder)
    young, old = (folder / f"{cache.path.name}.{pid}.partial" for pid in (1, 2))
    for path in (young, old):
        path.write_bytes(b"half a file")
    os.utime(old, (0, 0))
    cache.path.unlink()
    cache, _ = build_cache(pictures, 16, folder)
    assert cache[0].shape == (3, 20, 20)
    assert young.exists() and not old.exists()  # another process may be writing the young one


def test_broken_pictures_are_listed_with_the_fix_or_left_out(pictures: tuple[Picture, ...], tmp_path: Path) -> None:
    pictures[2].path.write_bytes(b"text")
    pictures[5].path.unlink()
    for _ in range(2):
        with pytest.raises(
            InputError, match=r"(?s)2 of 16 pictures cannot be read: .*1002\.jpg: not a picture.*1005\.jpg: no such.*skip_broken=true"
        ):
            build_cache(pictures, 16, tmp_path / "cache")
    for _ in range(2):
        cache, broken = build_cache(pictures, 16, tmp_path / "cache", skip_broken=True)
        assert broken == {"1002.jpg", "1005.jpg"}
        assert torch.equal(cache[6], working_image(open_image(pictures[6].path), 16))


def test_a_pickled_cache_carries_its_path_not_its_pictures(pictures: tuple[Picture, ...], tmp_path: Path) -> None:
    cache, _ = build_cache(pictures, 16, tmp_path / "cache")
    image = cache[3]
    content = pickle.dumps(cache)
    assert len(content) < 1000 and torch.equal(pickle.loads(content)[3], image)
