"""Drawn scenes: the same pixels every time, the right colours in the right place, tight boxes of what is seen."""

import numpy as np
import pytest

from datamodules.scenes_draw import INSIDE, draw, second_tone
from datamodules.scenes_world import COLOURS, SHAPES, SIDE, TEXTURES, Background, Scene, Thing, sample_scene

WHITE = Background("plain", "white", (250, 250, 250), 0.0)


def one_thing(shape: str = "square", colour: str = "blue", x: float = 64.0, texture: str = "plain", angle: float = 0.0) -> Thing:
    return Thing(shape, colour, "large", texture, x, 40.0, 20.0, angle, COLOURS[colour])


def test_the_same_scene_gives_the_same_pixels():
    scene = sample_scene(0, "train", 3)
    first, second = draw(scene), draw(scene)
    assert (first.pixels == second.pixels).all()
    assert first.boxes == second.boxes
    assert first.pixels.shape == (SIDE, SIDE, 3) and first.pixels.dtype == np.uint8


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("texture", TEXTURES)
def test_the_box_holds_every_pixel_that_the_thing_changes_and_no_empty_row(shape, texture):
    thing = one_thing(shape, texture=texture, angle=8.0)
    empty, picture = draw(Scene((), WHITE, 0.0, 0)).pixels, draw(Scene((thing,), WHITE, 0.0, 0))
    changed = np.abs(picture.pixels.astype(int) - empty.astype(int)).max(axis=2) > 130  # more than half covered
    rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
    found = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    assert np.abs(np.array(picture.boxes[0]) - np.array(found)).max() <= 1


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_fills_its_square_and_does_not_leave_it(shape):
    grid = np.linspace(-1.3, 1.3, 131, dtype=np.float32)
    inside = INSIDE[shape](grid[None, :].repeat(131, 0), grid[:, None].repeat(131, 1))
    reach = max(np.abs(grid[inside.any(axis=0)]).max(), np.abs(grid[inside.any(axis=1)]).max())
    assert 0.8 <= reach <= 1.08
    assert 0.2 < inside.mean() * 2.6**2 / 4 < 1.0  # of the square's area


def test_a_square_has_its_box_where_geometry_says():
    assert draw(Scene((one_thing("square"),), WHITE, 0.0, 0)).boxes == ((48, 24, 80, 56),)  # 0.82 * 20 = 16.4 around (64, 40)


def test_the_pixels_have_the_colour_that_is_said():
    for colour, rgb in COLOURS.items():
        middle = draw(Scene((one_thing("square", colour),), WHITE, 0.0, 0)).pixels[40, 64].astype(int)
        assert np.abs(middle - np.array(rgb)).max() < 25
        nearest = min(COLOURS, key=lambda name: np.abs(middle - np.array(COLOURS[name])).sum())
        assert nearest == colour


@pytest.mark.parametrize("texture", ["striped", "dotted", "checkered"])
def test_a_texture_mixes_the_colour_with_its_second_tone(texture):
    pixels = draw(Scene((one_thing("square", texture=texture),), WHITE, 0.0, 0)).pixels[30:50, 54:74].reshape(-1, 3).astype(float)
    own, second = np.array(COLOURS["blue"], float), second_tone(COLOURS["blue"])
    is_second = np.abs(pixels - second).sum(axis=1) < np.abs(pixels - own).sum(axis=1)
    assert 0.2 < is_second.mean() < 0.65


def test_what_is_hidden_is_measured_and_left_out_of_the_box():
    behind, front = one_thing("square", "blue", x=50.0), one_thing("square", "red", x=70.0)
    picture = draw(Scene((behind, front), WHITE, 0.0, 0))
    assert picture.boxes == ((34, 24, 54, 56), (54, 24, 86, 56))
    assert picture.hidden == [[0.0, pytest.approx(12 / 32)], [0.0, 0.0]]  # 12 of 32 columns
    alone = draw(Scene((behind,), WHITE, 0.0, 0))
    assert alone.hidden == [[0.0]]
