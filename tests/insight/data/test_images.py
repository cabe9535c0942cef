"""Pictures of every kind are read right or refused with a reason; crops carry their boxes along."""

from __future__ import annotations

import random
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from insight.data.images import (
    MEAN,
    STD,
    Crop,
    ImageTransform,
    denormalise,
    normalise,
    open_image,
    working_image,
    working_size,
)
from insight.errors import InputError


def halves(width: int = 60, height: int = 40) -> np.ndarray:
    """Left half red, right half blue."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[:, : width // 2, 0] = 250
    pixels[:, width // 2 :, 2] = 250
    return pixels


@pytest.mark.parametrize(
    ("mode", "ending"),
    [("RGB", "jpg"), ("RGB", "png"), ("CMYK", "jpg"), ("CMYK", "tif"), ("P", "png"), ("P", "tif"), ("RGBA", "png"), ("RGBA", "tif")],
)
def test_a_colour_picture_shows_the_same_colours_in_every_mode(tmp_path: Path, mode: str, ending: str) -> None:
    path = tmp_path / f"picture.{ending}"
    Image.fromarray(halves()).convert(mode).save(path)
    seen = np.asarray(open_image(path)).astype(int)
    assert seen.shape == (40, 60, 3)
    assert abs(seen[20, 10] - [250, 0, 0]).max() < 12 and abs(seen[20, 50] - [0, 0, 250]).max() < 12


@pytest.mark.parametrize(("values", "mode"), [(np.uint8, "L"), (np.uint16, "I;16"), (np.int32, "I")])
def test_grey_pictures_of_8_and_16_bits_show_the_same_brightness(tmp_path: Path, values: type, mode: str) -> None:
    top = 255 if values is np.uint8 else 65535
    ramp = np.linspace(0, top, 256).astype(values)[None].repeat(4, axis=0)
    image = Image.fromarray(ramp)
    assert image.mode == mode
    path = tmp_path / ("ramp.tif" if mode == "I" else "ramp.png")
    image.save(path)
    seen = np.asarray(open_image(path))
    assert abs(seen[0, :, 1].astype(int) - np.arange(256)).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_upright_by_its_exif_tag(tmp_path: Path, orientation: int) -> None:
    upright = np.zeros((16, 32, 3), dtype=np.uint8)
    upright[:8, :16] = 255  # a white quarter at the upper left
    back = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "turned.jpg"
    Image.fromarray(np.ascontiguousarray(back[orientation])).save(path, exif=exif, quality=100, subsampling=0)
    seen = np.asarray(open_image(path)).astype(int)
    assert seen.shape == upright.shape and abs(seen - upright).mean() < 3


def test_transparent_parts_are_laid_on_white(tmp_path: Path) -> None:
    pixels = np.zeros((4, 4, 4), dtype=np.uint8)
    pixels[:2, :, 3] = 255
    Image.fromarray(pixels).save(tmp_path / "clear.png")
    seen = np.asarray(open_image(tmp_path / "clear.png"))
    assert seen[0].max() == 0 and seen[3].min() == 255


def test_a_missing_picture_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.jpg: no such picture file: restore it"):
        open_image(tmp_path / "gone.jpg")


def test_a_truncated_picture_is_refused_not_filled_with_grey(tmp_path: Path) -> None:
    path = tmp_path / "cut.jpg"
    noise = np.random.default_rng(0).integers(0, 255, (80, 80, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(InputError, match=r"cut\.jpg: the picture cannot be decoded .*: download it again"):
        open_image(path)


@pytest.mark.parametrize("content", [b"this is no picture\n", b"", b"<html></html>"])
def test_text_named_jpg_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "text.jpg"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"text\.jpg: not a picture"):
        open_image(path)


@pytest.mark.parametrize("side", [9_000, 60_000])
def test_a_decompression_bomb_is_refused_before_it_is_decoded(tmp_path: Path, side: int) -> None:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
    path = tmp_path / "bomb.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b""))
    with pytest.raises(InputError, match=r"bomb\.png: .*decompression bomb"):
        open_image(path)


def test_floating_point_pixels_are_refused_with_the_fix(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4, 4), dtype=np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(InputError, match="save it with 8 or 16 bits"):
        open_image(tmp_path / "float.tif")


def test_denormalise_undoes_normalise_and_normalise_is_the_formula() -> None:
    image = torch.randint(0, 256, (2, 3, 5, 5), dtype=torch.uint8)
    by_hand = (image.numpy() / 255 - np.array(MEAN)[:, None, None]) / np.array(STD)[:, None, None]
    torch.testing.assert_close(normalise(image), torch.from_numpy(by_hand).float())
    torch.testing.assert_close(denormalise(normalise(image)), image / 255)


def test_evaluation_squashes_the_whole_picture_so_that_fractions_stay_true(tmp_path: Path) -> None:
    pixels = np.zeros((90, 200, 3), dtype=np.uint8)
    pixels[45:, 50:100] = 255  # the box (.25, .5, .5, 1)
    Image.fromarray(pixels).save(tmp_path / "box.png")
    seen = denormalise(ImageTransform(32).open(tmp_path / "box.png"))
    assert seen.shape == (3, 32, 32)
    bright = (seen[0] > 0.5).nonzero()
    assert bright.min(dim=0).values.tolist() == [16, 8] and bright.max(dim=0).values.tolist() == [31, 15]


def test_a_fixed_picture_gives_the_numbers_of_a_plain_pillow_resize(tmp_path: Path) -> None:
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 255, (50, 70, 3), dtype=np.uint8))
    noise.save(tmp_path / "noise.png")
    side = working_size(16)
    assert side == 20
    plain = noise.resize((side, side), Image.Resampling.BILINEAR).resize((16, 16), Image.Resampling.BILINEAR)
    seen = denormalise(ImageTransform(16).open(tmp_path / "noise.png")) * 255
    assert (seen - torch.from_numpy(np.array(plain)).permute(2, 0, 1)).abs().max() <= 1.01  # one step of rounding


def test_the_same_lot_gives_the_same_crop_and_leaves_the_global_state_alone() -> None:
    image = torch.randint(0, 256, (3, 40, 40), dtype=torch.uint8)
    transform = ImageTransform(32, crop_scale_min=0.4, color_jitter=0.5, flip=True)
    before = torch.get_rng_state()
    first, crop = transform.augment(image, random.Random(5))
    again, same = transform.augment(image, random.Random(5))
    other, _ = transform.augment(image, random.Random(6))
    assert torch.equal(first, again) and crop == same and not torch.equal(first, other)
    assert torch.equal(before, torch.get_rng_state())


def test_no_crop_no_jitter_no_flip_is_evaluation() -> None:
    image = torch.randint(0, 256, (3, 40, 40), dtype=torch.uint8)
    transform = ImageTransform(32)
    assert torch.equal(normalise(transform.augment(image, random.Random(0))[0]), transform.evaluate(image))


def test_boxes_follow_the_crop_and_the_mirror() -> None:
    """A white rectangle is found, after augmentation, where its box says it is."""
    image = torch.zeros(3, 80, 80, dtype=torch.uint8)
    image[:, 24:56, 16:48] = 255
    box = (16 / 80, 24 / 80, 48 / 80, 56 / 80)
    transform = ImageTransform(64, crop_scale_min=0.3, flip=True)
    mirrored = set()
    for seed in range(40):
        pixels, crop = transform.augment(image, random.Random(seed))
        seen = crop.box(box)
        if seen is None:
            continue
        mirrored.add(crop.mirrored)
        bright = (pixels[0] > 127).nonzero()
        top, left = bright.min(dim=0).values.tolist()
        bottom, right = (bright.max(dim=0).values + 1).tolist()
        assert max(abs(a * 64 - b) for a, b in zip(seen, (left, top, right, bottom), strict=True)) <= 1.5, (seed, seen, crop)
    assert mirrored == {True, False}


def test_a_box_is_dropped_when_less_than_a_quarter_of_it_is_left() -> None:
    crop = Crop(left=40, top=0, width=40, height=80, side=80)  # the right half
    assert crop.box((0.0, 0.0, 0.4, 1.0)) is None
    assert crop.box((0.4, 0.0, 0.52, 1.0)) is None  # a sixth is left
    assert crop.box((0.25, 0.0, 0.75, 1.0)) == (0.0, 0.0, 0.5, 1.0)
    assert crop._replace(mirrored=True).box((0.25, 0.0, 0.75, 1.0)) == (0.5, 0.0, 1.0, 1.0)


def test_crops_keep_to_the_asked_area() -> None:
    image = torch.zeros(3, 80, 80, dtype=torch.uint8)
    transform = ImageTransform(16, crop_scale_min=0.5)
    crops = [transform.augment(image, random.Random(seed))[1] for seed in range(200)]
    areas = [crop.width * crop.height / 6400 for crop in crops]
    assert min(areas) > 0.48 and max(areas) <= 1 and min(areas) < 0.6 and max(areas) > 0.9
    assert all(0 <= crop.left <= 80 - crop.width and 0 <= crop.top <= 80 - crop.height for crop in crops)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"image_size": 0}, "image_size=0"), ({"crop_scale_min": 0.0}, "crop_scale_min"), ({"color_jitter": -1.0}, "color_jitter")],
)
def test_a_value_out_of_range_is_named(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ImageTransform(**{"image_size": 8, **arguments})  # type: ignore[arg-type]


def test_the_working_image_is_whole_and_square() -> None:
    image = working_image(Image.fromarray(halves()), 64)
    assert image.shape == (3, 80, 80) and image.dtype == torch.uint8
    assert image[0, 40, 5] == 250 and image[2, 40, 75] == 250
