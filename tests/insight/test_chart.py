"""A chart's SVG, read back: its points are where a ruler would put them."""

from __future__ import annotations

import itertools
import math
import xml.etree.ElementTree as xml

import pytest

from insight.chart import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Line, line_chart, number, thin, ticks


def drawn(*lines: Line, **more) -> xml.Element:
    return xml.fromstring(line_chart("a & <b>", lines, **more))


def test_points_lie_where_the_axes_say_and_marks_where_stages_begin():
    chart = drawn(Line("A <run>", "a", [(0, 0.0), (50, 0.4), (100, 1.0)]), marks=[(50, "second & last")])
    assert chart.get("aria-label") == "a & <b>"
    (line,) = [element for element in chart.iter() if element.tag.endswith("polyline")]
    points = [tuple(map(float, point.split(","))) for point in line.get("points").split()]
    width, height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    expected = [(LEFT, HEIGHT - BOTTOM), (LEFT + width / 2, HEIGHT - BOTTOM - 0.4 * height), (WIDTH - RIGHT, TOP)]
    assert points == [pytest.approx(point, abs=0.06) for point in expected]
    (mark,) = [element for element in chart.iter() if element.get("class") == "mark"]
    assert float(mark.get("x1")) == pytest.approx(LEFT + width / 2, abs=0.06)
    texts = [element.text for element in chart.iter() if element.text]
    assert "second & last" in texts and "A <run>, step 50: 0.4" in texts


def test_values_that_are_not_finite_are_left_out_and_nothing_to_draw_is_no_chart():
    chart = drawn(Line("A", "a", [(0, math.nan), (1, 2.0), (2, math.inf), (3, 3.0)]))
    (line,) = [element for element in chart.iter() if element.tag.endswith("polyline")]
    assert len(line.get("points").split()) == 2
    assert line_chart("nothing", [Line("A", "a", [(0, math.nan)])]) == ""


def test_a_single_point_and_a_level_line_can_be_drawn():
    for points in ([(5, 2.0)], [(0, 0.0), (9, 0.0)]):
        chart = drawn(Line("A", "a", points))
        assert all(
            math.isfinite(float(part)) for e in chart.iter() if e.get("points") for part in e.get("points").replace(",", " ").split()
        )


@pytest.mark.parametrize(
    ("low", "high"), [(0.13, 0.92), (-3.0, 11.0), (0.0, 1e-6), (1234.0, 98765.0), (2.0, 2.0), (0.0, 0.0), (-1.0, -1.0)]
)
def test_ticks_are_even_round_and_enclose_the_values(low, high):
    found = ticks(low, high, 4)
    steps = [b - a for a, b in itertools.pairwise(found)]
    assert found[0] <= low and found[-1] >= high and 2 <= len(found) <= 8
    assert steps == [pytest.approx(steps[0])] * len(steps)
    digits = f"{steps[0]:.3e}".split("e")[0]
    assert float(digits) in (1.0, 2.0, 2.5, 5.0)


def test_a_long_line_is_averaged_and_keeps_its_mean():
    points = [(step, float(step % 7)) for step in range(1000)]
    thinned = thin(points, 100)
    assert len(thinned) == 100 and sum(y for _, y in thinned) / 100 == pytest.approx(sum(y for _, y in points) / 1000)
    assert thin(points[:50], 100) == points[:50]


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0"), (0.25, ".25"), (-0.5, "-.5"), (12000.0, "12k"), (3.14159, "3.142"), (0.00012, "1.2e-04")]
)
def test_numbers_are_short(value, text):
    assert number(value) == text
