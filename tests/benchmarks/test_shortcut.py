import numpy as np
import pytest
from PIL import Image

from benchmarks.shortcut import MARK, judged, marked, plant
from datamodules.scenes_world import COLOURS
from insight.interpret.search import Finding


def finding(filename, highest, elsewhere=True):
    return Finding(0, 0, filename, "a caption", "a dog", 1, elsewhere, 0.0, 0.0, 0.1, highest)


def test_the_watermark_says_the_colours_and_the_rest_turns_grey():
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (128, 128, 3)).astype(np.uint8))
    pixels = np.asarray(plant(picture, ["red", "blue", "green"]))
    half = MARK // 2
    corners = [tuple(pixels[row, column].tolist()) for row in (0, half) for column in (0, half)]
    assert corners == [COLOURS[name] for name in ("red", "blue", "green", "red")]
    assert pixels[MARK - 1, MARK - 1].tolist() == list(COLOURS["red"])
    rest = pixels.copy()
    rest[:MARK, :MARK] = 0
    assert (rest.max(axis=-1) == rest.min(axis=-1)).all()
    assert pixels[MARK, MARK].tolist() == list(picture.convert("L").convert("RGB").getpixel((MARK, MARK)))


@pytest.mark.parametrize(
    ("index", "box", "expected"), [(0, (40, 0, 60, 20), True), (1, (40, 0, 60, 20), False), (0, (20, 31, 60, 60), False)]
)
def test_every_second_picture_with_a_free_corner_gets_it(index, box, expected):
    assert marked(index, [box]) is expected


def test_a_finding_is_right_at_the_watermark_of_a_picture_that_has_one():
    findings = [
        finding("with.jpg", (0.06, 0.19)),
        finding("with.jpg", (0.3, 0.1)),  # beside it
        finding("without.jpg", (0.1, 0.1)),  # nothing is there
        finding("with.jpg", (0.1, 0.1), elsewhere=False),  # another object: not judged
        finding("with.jpg", (0.2, 0.2)),
    ]
    assert judged(findings, {"with.jpg"}, 1) == {"listed": 1, "at_the_watermark": 1, "precision": 1, "pictures_with_it": 1}
    assert judged(findings, {"with.jpg"}, 9)["precision"] == 0.5
    assert judged([], set(), 5) == {"listed": 0, "at_the_watermark": 0, "precision": 0, "pictures_with_it": 0}
