"""Scenes by lot: the same for the same place, and no held-out combination where training could see it."""

import itertools

import pytest

from datamodules.scenes_draw import draw
from datamodules.scenes_world import (
    COLOURS,
    HELD_OUT,
    RELATIONS,
    SEEN,
    SHAPES,
    SIDE,
    Thing,
    clearly,
    is_unseen_index,
    place_in_picture,
    possibly,
    sample_scene,
)


def thing(x: float, y: float, radius: float = 12.0) -> Thing:
    return Thing("circle", "red", "small", "plain", x, y, radius, 0.0, (200, 30, 30))


APART = [[0.0, 0.0], [0.0, 0.0]]


def test_the_same_place_gives_the_same_scene_and_another_seed_or_split_another():
    assert sample_scene(0, "train", 7) == sample_scene(0, "train", 7)
    others = [sample_scene(0, "train", 7), sample_scene(1, "train", 7), sample_scene(0, "val", 7), sample_scene(0, "train", 8)]
    assert len({str(scene) for scene in others}) == 4


def test_this_scene_stays_what_it_was_when_version_1_was_fixed():
    things = [(one.size, one.texture, one.colour, one.shape, one.x, one.y) for one in sample_scene(0, "train", 0).things]
    assert things == [("large", "plain", "black", "circle", 35.07, 55.26), ("large", "plain", "orange", "heart", 63.11, 47.81)]


def test_held_out_pairs_occur_in_two_test_pictures_of_five_and_nowhere_else():
    for split, count in (("train", 400), ("val", 200), ("test", 200)):
        for index in range(count):
            held_out = {(one.colour, one.shape) for one in sample_scene(0, split, index).things} & HELD_OUT
            assert bool(held_out) == is_unseen_index(split, index), (split, index)
    assert sum(is_unseen_index("test", index) for index in range(1000)) == 400


def test_every_held_out_colour_and_shape_is_trained_in_other_combinations():
    assert len(HELD_OUT) == 12
    assert len(SEEN) + len(HELD_OUT) == len(COLOURS) * len(SHAPES)
    trained = {(one.colour, one.shape) for index in range(1500) for one in sample_scene(0, "train", index).things}
    assert trained == set(SEEN)


def test_things_lie_inside_the_picture_and_at_most_one_pair_overlaps_by_less_than_half():
    overlaps = 0
    for index in range(150):
        scene = sample_scene(3, "train", index)
        hidden = draw(scene).hidden
        covered = [(one, other) for one, other in itertools.product(range(len(scene.things)), repeat=2) if hidden[one][other] > 0]
        assert len(covered) <= 1
        assert all(hidden[one][other] < 0.5 for one, other in covered)
        overlaps += len(covered)
        assert all(one.radius < one.x < SIDE - one.radius and one.radius < one.y < SIDE - one.radius for one in scene.things)
    assert 15 < overlaps < 100  # some occlusion


@pytest.mark.parametrize(
    ("relation", "first", "second"),
    [("left", (30, 60), (90, 60)), ("right", (90, 60), (30, 60)), ("above", (60, 20), (60, 90)), ("below", (60, 90), (60, 20))],
)
def test_a_direction_is_said_where_it_is_plain_and_never_the_other_way_round(relation, first, second):
    things = (thing(*first), thing(*second))
    assert clearly(relation, 0, 1, things, APART)
    assert possibly(relation, 0, 1, things, APART)
    assert clearly(RELATIONS[relation].inverse, 1, 0, things, APART)
    assert not possibly(RELATIONS[relation].inverse, 0, 1, things, APART)
    assert not possibly(relation, 1, 0, things, APART)


def test_what_is_clear_is_always_possible_and_its_mirror_image_never():
    for index in range(200):
        scene = sample_scene(1, "test", index)
        hidden = draw(scene).hidden
        for one, other in itertools.permutations(range(len(scene.things)), 2):
            for relation in RELATIONS:
                if clearly(relation, one, other, scene.things, hidden):
                    assert possibly(relation, one, other, scene.things, hidden)
                    assert not possibly(RELATIONS[relation].inverse, one, other, scene.things, hidden)
                    assert not possibly(relation, other, one, scene.things, hidden)


def test_behind_means_that_the_other_hides_a_part():
    things = (thing(50, 50), thing(60, 50))
    hidden = [[0.0, 0.3], [0.0, 0.0]]  # thing 1 hides three tenths of thing 0
    assert clearly("behind", 0, 1, things, hidden)
    assert clearly("front", 1, 0, things, hidden)
    assert not possibly("front", 0, 1, things, hidden)
    assert not clearly("left", 0, 1, things, hidden)


def test_places_are_named_only_where_they_are_plain():
    assert place_in_picture(thing(20, 20)) == "top left"
    assert place_in_picture(thing(64, 64)) == "centre"
    assert place_in_picture(thing(64, 110)) == "bottom"
    assert place_in_picture(thing(50, 20)) is None
