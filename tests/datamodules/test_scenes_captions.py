"""Captions are true, phrases mean exactly what fits them, hard negatives are false and can't be told by their words."""

import itertools
import random
import re
from collections import Counter

import pytest

from datamodules.scenes_captions import ADJECTIVES, NOUNS, PLACES, Description, Wording, describe, make_captions
from datamodules.scenes_draw import Picture, draw
from datamodules.scenes_negatives import make_negatives
from datamodules.scenes_world import COLOURS, HELD_OUT, NEAR_PHRASES, RELATIONS, Scene, picture_random, sample_scene

SCENES = [(split, index) for split in ("train", "test") for index in range(120)]
SAID = {phrase: name for name, relation in RELATIONS.items() for phrase in relation.phrases}
NUMBERS = {"a": 1, "an": 1, "two": 2, "a pair of": 2, "three": 3, "four": 4}


def drawn(split: str, index: int) -> tuple[Scene, Picture]:
    scene = sample_scene(0, split, index)
    return scene, draw(scene)


def read(phrase: str) -> tuple[int, dict[str, str]]:
    """An independent reader of phrases: how many, and which attributes are said."""
    found: dict[str, str] = {}
    rest = phrase.lower()
    count = next(number for words, number in sorted(NUMBERS.items(), key=lambda item: -len(item[0])) if re.match(rf"{words} ", rest))
    for value, words in ADJECTIVES.items():
        if any(re.search(rf"\b{word}\b", rest) for word in words):
            found["size" if value in ("large", "small") else "texture"] = value
    for colour in COLOURS:
        if re.search(rf"\b{colour}\b", rest):
            found["colour"] = colour
    for shape, nouns in NOUNS.items():
        if shape is not None and any(rest.endswith(f" {noun}") for forms in nouns for noun in forms):
            found["shape"] = shape
    return count, found


def is_so(relation: str, one: int, other: int, scene: Scene) -> bool:
    """The bare truth of a relation: centres, and who lies in front."""
    a, b = scene.things[one], scene.things[other]
    right, down = b.x - a.x, b.y - a.y
    beside = {"left": right > 0, "right": right < 0, "above": down > 0, "below": down < 0}
    return {**beside, "front": one > other, "behind": one < other}[relation]


def fitting(attributes: dict[str, str], scene: Scene) -> set[int]:
    return {row for row, thing in enumerate(scene.things) if all(getattr(thing, name) == value for name, value in attributes.items())}


def test_every_phrase_denotes_exactly_the_things_that_fit_it():
    checked = 0
    for split, index in SCENES:
        scene, picture = drawn(split, index)
        for caption in make_captions(picture_random(0, split, index, "captions"), scene, picture):
            for phrase in caption.phrases:
                if phrase.kind == "other":
                    count, attributes = read(caption.text[phrase.start : phrase.end])
                    assert fitting(attributes, scene) == phrase.members, (caption.text, scene.things)
                    assert count == len(phrase.members), caption.text
                    checked += 1
    assert checked > 1500


def test_every_relation_that_is_said_holds_between_centres():
    checked: Counter[str] = Counter()
    for split, index in SCENES:
        scene, picture = drawn(split, index)
        for caption in make_captions(picture_random(0, split, index, "captions"), scene, picture):
            found = re.search(r"(?i)\b(" + "|".join(sorted(SAID, key=len, reverse=True)) + r")\b", caption.text)
            things = [phrase for phrase in caption.phrases if phrase.kind == "other"]
            if found is None or len(things) != 2:
                continue
            name = SAID[found[0].lower()]
            first, second = things if things[0].start < found.start() else (things[1], things[0])
            if found.start() < things[0].start:  # "Left of a blue square there is a red circle": things come in the other order
                first, second = things[1], things[0]
            for one, other in itertools.product(first.members, second.members):
                assert is_so(name, one, other, scene), (caption.text, scene.things)
            checked[name] += 1
    assert set(checked) == set(RELATIONS) and min(checked.values()) > 3, checked


def test_five_different_captions_a_picture_in_many_words_that_fit_the_text_tower():
    words: Counter[str] = Counter()
    for split, index in SCENES:
        captions = [caption.text for caption in make_captions(picture_random(0, split, index, "captions"), *drawn(split, index))]
        assert len(captions) == 5 and len(set(captions)) >= 4
        assert all(re.fullmatch(r"[A-Z][a-zA-Z ,]+\.", text) and len(text.split()) <= 27 and "  " not in text for text in captions), (
            captions
        )
        assert not any(re.search(r"(?i)\ba [aeio]|\ban [^aeio]", text) for text in captions), captions
        words.update(word for text in captions for word in re.findall(r"\w+", text.lower()))
    synonyms = {
        "circle",
        "disc",
        "ball",
        "big",
        "huge",
        "tiny",
        "little",
        "beside",
        "left",
        "above",
        "over",
        "behind",
        "two",
        "someone",
        "grainy",
    }
    assert synonyms <= set(words)


def test_some_captions_are_partial_some_relational_and_some_tell_a_place():
    captions = [
        text for split, index in SCENES for text in make_captions(picture_random(0, split, index, "captions"), *drawn(split, index))
    ]
    num_things = Counter(sum(phrase.kind == "other" for phrase in caption.phrases) for caption in captions)
    assert num_things[1] > 0.15 * len(captions) and num_things[2] > 0.3 * len(captions) and num_things[3] > 0.03 * len(captions)
    assert sum(any(place in caption.text for places in PLACES.values() for place in places) for caption in captions) > 50
    assert sum(any(f" {near} " in caption.text for near in NEAR_PHRASES) for caption in captions) > 10
    assert sum(any(phrase.kind == "scene" for phrase in caption.phrases) for caption in captions) > 150


def test_twins_are_never_told_apart():
    twin = sample_scene(0, "train", 0).things[0]
    for attempt in range(20):
        assert describe(random.Random(attempt), (twin, twin), frozenset([0]), 0.5) is None
        assert describe(random.Random(attempt), (twin, twin), frozenset([0, 1]), 0.5) is not None


@pytest.mark.parametrize(
    ("wording", "text"),
    [
        (Wording("", "", "", "orange", "circle"), "an orange circle"),
        (Wording("", "large", "striped", "red", "plus sign"), "a large striped red plus sign"),
        (Wording("two", "", "", "", "boxes"), "two boxes"),
        (Wording("", "", "", "", "object"), "an object"),
    ],
)
def test_a_wording_reads_as_english(wording, text):
    assert wording.text() == text


def test_a_description_is_silent_about_what_it_does_not_say():
    things = sample_scene(0, "train", 0).things
    assert Description().matches(things) == set(range(len(things)))
    assert Description(colour=things[0].colour).matches(things) == {row for row, one in enumerate(things) if one.colour == things[0].colour}


@pytest.fixture(scope="module")
def negatives():
    return [
        (sample_scene(0, "test", index), negative)
        for index in range(300)
        for negative in make_negatives(picture_random(0, "test", index, "negatives"), *drawn("test", index))
    ]


def claim(sentence: str) -> tuple[dict[str, str], str, dict[str, str]]:
    said = "|".join(sorted(SAID, key=len, reverse=True))
    found = re.fullmatch(rf"(?:There is )?(?P<first>.*?)(?: is)? (?P<said>{said}) (?P<second>.*)\.", sentence)
    assert found is not None, sentence
    return read(found["first"])[1], SAID[found["said"]], read(found["second"])[1]


def is_said_truly(sentence: str, scene: Scene) -> bool:
    first, relation, second = claim(sentence)
    for one, other in itertools.permutations(range(len(scene.things)), 2):
        if one in fitting(first, scene) and other in fitting(second, scene) and is_so(relation, one, other, scene):
            return True
    return False


def test_the_caption_is_true_and_the_hard_negative_false_of_the_picture(negatives):
    assert len(negatives) > 300
    for scene, negative in negatives:
        assert is_said_truly(negative.caption, scene), (negative, scene.things)
        assert not is_said_truly(negative.negative, scene), (negative, scene.things)


def test_a_swap_keeps_the_bag_of_words_unless_it_swaps_the_relation(negatives):
    kinds = Counter(negative.kind for _, negative in negatives)
    assert set(kinds) == {"colours", "sizes", "objects", "relation"}
    for _, negative in negatives:
        bare = [Counter(re.findall(r"\w+", text.lower())) for text in (negative.caption, negative.negative)]
        assert (bare[0] == bare[1]) == (negative.kind != "relation"), negative
        assert negative.caption != negative.negative


def test_caption_and_negative_hold_equally_many_combinations_that_training_lacks(negatives):
    seen = Counter(negative.seen for _, negative in negatives)
    assert seen[True] > 100 and seen[False] > 100
    for _, negative in negatives:
        counts = [
            sum((said.get("colour"), said.get("shape")) in HELD_OUT for said in (claim(text)[0], claim(text)[2]))
            for text in (negative.caption, negative.negative)
        ]
        assert counts[0] == counts[1]
        assert negative.seen == (counts[0] == 0)
