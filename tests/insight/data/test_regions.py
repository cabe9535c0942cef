"""Phrases of a batch as tensors, against loops over boxes and patches."""

from __future__ import annotations

import random

import pytest
import torch

from insight.data.batch import ImageTextBatch, Phrase
from insight.data.regions import phrase_regions_of, positions_of
from insight.data.text import Word


def batch(*phrases: Phrase) -> ImageTextBatch:
    tokens = torch.ones(2, 6, dtype=torch.int64)
    ids = torch.arange(1)
    return ImageTextBatch(
        torch.zeros(1, 3, 8, 8), None, tokens, tokens > 0, torch.zeros(2).long(), ids, torch.arange(2), ("a", "b"), ("1.jpg",), phrases
    )


def test_patches_are_inside_where_their_centres_are_in_any_box_of_the_phrase():
    lot = random.Random(0)
    phrases = []
    for number in range(40):
        boxes = []
        for _ in range(1 + number % 3):
            x, y = lot.random() * 0.6, lot.random() * 0.6
            boxes.append((x, y, x + 0.2 + lot.random() * 0.2, y + 0.2 + lot.random() * 0.2))
        phrases.append(Phrase(number % 2, "x", 0, 1, str(number), tuple(boxes), (1 + number % 4,)))
    found = phrase_regions_of(batch(*phrases), grid=5)
    assert found.inside.shape == (40, 25)
    for row, phrase in enumerate(phrases):
        assert int(found.caption[row]) == phrase.caption and found.words[row].nonzero().flatten().tolist() == list(phrase.positions)
        for patch in range(25):
            x, y = (patch % 5 + 0.5) / 5, (patch // 5 + 0.5) / 5
            assert bool(found.inside[row, patch]) == any(x1 <= x <= x2 and y1 <= y <= y2 for x1, y1, x2, y2 in phrase.boxes)


@pytest.mark.parametrize(("box", "patch"), [((0.3, 0.05, 0.4, 0.2), 1), ((0.96, 0.9, 1.0, 1.0), 15), ((0.0, 0.99, 0.01, 1.0), 12)])
def test_a_box_between_the_centres_belongs_to_the_patch_that_holds_its_own_centre(box, patch):
    found = phrase_regions_of(batch(Phrase(0, "x", 0, 1, "1", (box,), (2, 3))), grid=4)
    assert found.inside[0].nonzero().flatten().tolist() == [patch]


def test_phrases_without_box_or_without_tokens_are_left_out():
    box = (0.0, 0.0, 0.5, 0.5)
    phrases = Phrase(0, "x", 0, 1, "1", (), (1,)), Phrase(0, "x", 0, 1, "2", (box,), ()), Phrase(1, "x", 0, 1, "3", (box,), (4, 5))
    found = phrase_regions_of(batch(*phrases), grid=2)
    assert found.caption.tolist() == [1] and found.words.tolist() == [[False] * 4 + [True] * 2]
    nothing = phrase_regions_of(batch(), grid=2)
    assert (nothing.caption.shape, nothing.words.shape, nothing.inside.shape) == ((0,), (0, 6), (0, 4))


def test_a_phrase_has_the_columns_of_the_words_that_it_touches():
    words = [Word("A", 0, 1, (1,)), Word("red", 2, 5, (2, 3)), Word("dog", 6, 9, (4,)), Word("runs", 10, 14, (5,))]
    assert positions_of(Phrase(0, "red dog", 2, 9, "1", ()), words) == (2, 3, 4)
    assert positions_of(Phrase(0, "ed d", 3, 7, "1", ()), words) == (2, 3, 4)
    assert positions_of(Phrase(0, "later", 20, 25, "1", ()), words) == ()
