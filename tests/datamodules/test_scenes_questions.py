from __future__ import annotations

import re
from collections import Counter, defaultdict

from datamodules.scenes_captions import ADJECTIVES, NOUNS
from datamodules.scenes_questions import ANSWERS, KINDS, TEMPLATES, make_questions
from datamodules.scenes_world import COLOURS, HELD_OUT, RELATIONS, sample_scene

SHAPE_OF = {word: shape for shape, names in NOUNS.items() for pair in names for word in pair}
WORD_OF = {**{word: ("colour", word) for word in COLOURS}}
WORD_OF |= {word: ("size" if value in ("large", "small") else "texture", value) for value, words in ADJECTIVES.items() for word in words}
RELATION_OF = {phrase: name for name in ("left", "right", "above", "below") for phrase in RELATIONS[name].phrases}


def asked(split: str, number: int):
    for index in range(number):
        scene = sample_scene(0, split, index)
        for question in make_questions(0, split, index, scene):
            yield scene, question


def meant(phrase: str, things) -> list[int]:
    """Read a phrase word by word, without the code that wrote it: the things that it fits."""
    phrase = re.sub(r"^(the|an?|how many) ", "", phrase)
    noun = next(noun for noun in sorted(SHAPE_OF, key=len, reverse=True) if phrase.endswith(noun))
    said = [WORD_OF[word] for word in phrase.removesuffix(noun).split()]
    said += [("shape", SHAPE_OF[noun])] if SHAPE_OF[noun] else []
    return [row for row, thing in enumerate(things) if all(getattr(thing, name) == value for name, value in said)]


def slots(question) -> dict[str, str]:
    for template in TEMPLATES[question.kind]:
        said = "|".join(sorted(map(re.escape, RELATION_OF), key=len, reverse=True))
        pattern = re.escape(template).replace(r"\{said\}", f"(?P<said>{said})")
        found = re.fullmatch(re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>.+?)", pattern), question.text)
        if found:
            return found.groupdict()
    raise AssertionError(question.text)


def test_every_answer_is_the_one_that_reading_the_question_word_by_word_gives():
    kinds = Counter()
    for scene, question in asked("test", 150):
        things, said = scene.things, slots(question)
        found = {name: meant(phrase, things) for name, phrase in said.items() if name != "said"}
        if question.kind == "count":
            expected = str(len(found["how_many"]))
        elif question.kind == "exists":
            expected = "yes" if found["one"] else "no"
        elif question.kind == "relation":
            ((one,), (other,)) = found["the"], found["other"]
            right, down = things[other].x - things[one].x, things[other].y - things[one].y
            ahead = {"left": right, "right": -right, "above": down, "below": -down}[RELATION_OF[said["said"]]]
            assert abs(ahead) >= 18  # plain to see, either way
            expected = "yes" if ahead > 0 else "no"
        else:
            (row,) = found["the"]  # one thing only is meant
            expected = getattr(things[row], question.kind)
        assert question.answer == expected, question
        assert question.answer in ANSWERS
        kinds[question.kind] += 1
    assert set(kinds) == set(KINDS) and min(kinds.values()) > 75


def test_questions_are_those_of_the_seed_and_place_alone():
    def texts(seed: int, split: str) -> list:
        return [make_questions(seed, split, index, sample_scene(0, split, index)) for index in range(5)]

    assert texts(0, "train") == texts(0, "train")
    assert texts(0, "train") != texts(1, "train")


def test_who_does_not_look_gets_little_right():
    answers: dict[str, Counter] = defaultdict(Counter)
    for _, question in asked("train", 300):
        answers[question.kind][question.answer] += 1
    most = {kind: max(counts.values()) / counts.total() for kind, counts in answers.items()}
    # even answers would give 1/8, 1/8, 1/2, 1/4, 1/3 or so, 1/2, 1/2
    highest = {"colour": 0.25, "shape": 0.25, "size": 0.62, "texture": 0.45, "count": 0.45, "exists": 0.6, "relation": 0.6}
    assert all(most[kind] <= highest[kind] for kind in KINDS), most


def test_training_never_asks_for_pairs_that_it_lacks():
    for scene, question in asked("train", 80):
        assert scene.seen
        if question.kind in ("exists", "count"):
            colours = [word for word in question.text.split() if word in COLOURS]
            shapes = [SHAPE_OF[word] for word in re.findall(r"\w+", question.text) if SHAPE_OF.get(word)]
            assert not {(colour, shape) for colour in colours for shape in shapes} & HELD_OUT


def test_most_pictures_allow_every_kind():
    found = Counter(question.kind for _, question in asked("val", 100))
    assert all(found[kind] >= 60 for kind in KINDS), found
