import itertools

import numpy as np
import pytest

from insight.errors import InputError
from insight.interpret.localisation import area_inside, centre_map, centres_inside, energy_inside, largest_segment_map, phrase_scores

WHOLE = (0.0, 0.0, 1.0, 1.0)


def peak(*cells, grid=4):
    """1 on the cells (row, column), 0 elsewhere."""
    found = np.zeros((grid, grid))
    for row, column in cells:
        found[row, column] = 1
    return found


def pointing(map_gg, boxes, others=()):
    return phrase_scores(map_gg[None], [boxes], [others])


def test_the_highest_cell_counts_by_its_centre():
    box = (0.6, 0.3, 1.0, 0.6)  # x from .6, y from .3: the centres of row 1, columns 2 (x .625) and 3
    assert pointing(peak((1, 2)), [box]).pointing[0] == 1
    assert pointing(peak((1, 3)), [box]).pointing[0] == 1
    assert pointing(peak((2, 2)), [box]).pointing[0] == 0  # its upper part is in the box, its centre (y .625) is not
    assert pointing(peak((2, 1)), [box]).pointing[0] == 0  # columns are x, rows are y


def test_equally_high_cells_count_by_their_part():
    corner = (0.0, 0.0, 0.5, 0.5)
    assert pointing(peak((0, 0), (3, 3)), [corner]).pointing[0] == 0.5
    assert pointing(np.full((4, 4), 7.0), [corner]).pointing[0] == 0.25  # a flat map is worth what a dart is
    assert pointing(peak((0, 0), (3, 3)) + peak((0, 0)), [corner]).pointing[0] == 1


def test_several_boxes_are_one_place_and_edges_are_inside():
    assert pointing(peak((3, 3)), [(0, 0, 0.1, 0.1), (0.875, 0.875, 1, 1)]).pointing[0] == 1
    tiny = (0.3, 0.3, 0.36, 0.36)  # no centre in it: it cannot be pointed at
    assert not centres_inside([tiny], 4).any() and pointing(peak((1, 1)), [tiny]).pointing[0] == 0


def test_the_area_of_cells_in_boxes_is_that_of_fine_sampling():
    generator = np.random.default_rng(0)
    for _ in range(10):
        edges = np.sort(generator.random((3, 2, 2)), axis=1)
        boxes = [tuple(edges[one].flatten()) for one in range(3)]
        fine = (np.arange(5 * 200) + 0.5) / (5 * 200)
        inside = np.zeros((1000, 1000))
        for x1, y1, x2, y2 in boxes:
            inside[np.ix_((fine > y1) & (fine < y2), (fine > x1) & (fine < x2))] = 1
        np.testing.assert_allclose(area_inside(boxes, 5), inside.reshape(5, 200, 5, 200).mean(axis=(1, 3)), atol=0.011)


def test_the_area_is_exact_where_it_can_be_said_by_hand():
    box = (0.125, 0.25, 0.5, 0.5)  # half of cell (1, 0), all of (1, 1)
    expected = np.zeros((4, 4))
    expected[1, 0], expected[1, 1] = 0.5, 1
    np.testing.assert_allclose(area_inside([box], 4), expected, atol=1e-12)
    np.testing.assert_allclose(area_inside([box, box], 4), expected, atol=1e-12)  # overlap counts once
    np.testing.assert_allclose(area_inside([(-1, -1, 2, 2)], 4), 1, atol=1e-12)


def test_energy_is_the_part_of_the_positive_values():
    heat = np.array([[3.0, 1.0], [-5.0, 4.0]])
    assert energy_inside(heat, [(0, 0, 0.5, 1)]) == pytest.approx(3 / 8)
    assert energy_inside(heat, [(0, 0, 0.25, 1)]) == pytest.approx(1.5 / 8)
    assert energy_inside(-np.abs(heat), [WHOLE]) == 0
    assert energy_inside(np.ones((3, 3)), [(0.1, 0.2, 0.4, 0.9)]) == pytest.approx(0.3 * 0.7)


def test_pointing_at_another_object_is_counted_apart():
    left, right = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)
    found = phrase_scores(
        np.stack([peak((0, 0)), peak((0, 3)), peak((0, 0), (0, 3)), peak((0, 0))]),
        [[left], [left], [left], [left]],
        [[right], [right], [right], [left, right]],  # the last: another thing at the same place is no mistake
    )
    assert found.pointing.tolist() == [1, 0, 0.5, 1]
    assert found.other.tolist() == [0, 1, 0.5, 0]
    assert found.specificity.tolist() == [1, -1, 0, 1]


def test_means_leave_out_phrases_without_another_object():
    box = (0.0, 0.0, 0.5, 0.5)
    found = phrase_scores(np.stack([peak((0, 0)), peak((3, 3))]), [[box], [box]], [[], [(0.5, 0.5, 1, 1)]])
    assert np.isnan(found.other[0])
    assert found.means() == {"pointing_game_v1": 0.5, "energy_in_box_v1": 0.5, "other_object_rate_v1": 1, "specificity_v1": -1}
    alone = phrase_scores(peak((0, 0))[None], [[box]], [[]]).means()
    assert np.isnan(alone["specificity_v1"]) and alone["pointing_game_v1"] == 1


@pytest.mark.parametrize("grid", [3, 4])
def test_the_baselines_are_highest_where_they_say(grid):
    middle = centre_map(grid)
    best = np.argwhere(middle == middle.max())
    assert best.tolist() == [list(cell) for cell in itertools.product(range((grid - 1) // 2, grid // 2 + 1), repeat=2)]
    assert middle[0, 0] == middle.min()
    segment = np.zeros(grid * grid, dtype=int)
    segment[:2] = 1
    assert largest_segment_map(segment, grid).tolist() == np.where(segment == 0, grid**2 - 2, 2).reshape(grid, grid).tolist()


@pytest.mark.parametrize(
    ("maps", "boxes", "others", "message"),
    [
        (np.zeros((2, 4, 4)), [[WHOLE]], [[]], "2 maps, boxes of 1 phrases, others of 1"),
        (np.zeros((0, 4, 4)), [], [], "at least one phrase"),
        (np.zeros((1, 4, 5)), [[WHOLE]], [[]], r"got \(1, 4, 5\)"),
        (np.full((1, 4, 4), np.nan), [[WHOLE]], [[]], "the map of phrase 0 holds NaN"),
        (np.zeros((1, 4, 4)), [[]], [[]], "phrase 0 has no box"),
        (np.zeros((1, 4, 4)), [[(0.5, 0, 0.5, 1)]], [[]], r"phrase 0: \(0\.5, 0, 0\.5, 1\) is no box"),
        (np.zeros((1, 4, 4)), [[WHOLE]], [[(0, 1, 1, 0)]], "is no box"),
    ],
)
def test_what_cannot_be_judged_is_an_error_that_says_why(maps, boxes, others, message):
    with pytest.raises(InputError, match=message):
        phrase_scores(maps, boxes, others)
