"""Orders of an epoch beside sorted lists, and as batches that a resumed run sees again."""

from __future__ import annotations

import itertools
import math
import re

import pytest
import torch

from datamodules.curriculum import ByLength, BySimilarity, describe
from datamodules.loading import EpochBatches
from insight.errors import InputError

# picture n: captions of n + 1 words, in an order that is not theirs
CAPTIONS = [[" ".join(["word"] * ((7 * n) % 20 + 1))] * 2 for n in range(20)]
TOPICS = [[f"{topic}, {topic}, {topic} here", f"the {topic} number {n}"] for n in range(8) for topic in ("dog", "boat", "cook")]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("epoch", "pool"), [(0, 6), (1, 11), (2, 16), (3, 20), (9, 20)])
def test_by_length_draws_from_the_shortest_and_from_more_in_each_epoch(epoch, pool):
    order = ByLength(CAPTIONS, batch_size=5, epochs=3, start=0.3)(epoch, generator())
    easiest = sorted(range(20), key=lambda n: len(CAPTIONS[n][0].split()))[:pool]
    batches = [order[first : first + 5] for first in range(0, 20, 5)]
    assert len(order) >= 20 and set(order) <= set(easiest)
    assert all(len(set(batch)) == 5 for batch in batches)
    if pool == 20:
        assert sorted(order) == list(range(20))


def test_by_similarity_puts_pictures_of_one_topic_together_and_serves_every_picture_once():
    order = BySimilarity(TOPICS, batch_size=8, group=8)(0, generator())
    assert sorted(order) == list(range(24))
    for first in range(0, 24, 8):
        assert len({picture % 3 for picture in order[first : first + 8]}) == 1


def test_groups_grow_with_the_epochs():
    curriculum = BySimilarity(TOPICS, batch_size=8, group=8, epochs=4)

    def together(epoch):
        order = curriculum(epoch, generator())
        return sum(a % 3 == b % 3 for a, b in itertools.pairwise(order))

    assert together(0) < 14 < together(4)  # at random a third of 23


def test_descriptions_are_near_where_rare_words_are_shared():
    description = describe(TOPICS)
    torch.testing.assert_close(description.norm(dim=1), torch.ones(24))
    said = [[re.findall(r"\w+", text) for text in texts] for texts in TOPICS]
    pictures_with = {word: sum(any(word in one for one in texts) for texts in said) for texts in said for one in texts for word in one}

    def exact(i, j):
        vectors = []
        for n in (i, j):
            words = [word for one in said[n] for word in one]
            vectors.append({word: words.count(word) * math.log(24 / pictures_with[word]) for word in words})
        a, b = vectors
        length = math.sqrt(sum(value**2 for value in a.values()) * sum(value**2 for value in b.values()))
        return sum(a[word] * b.get(word, 0) for word in a) / length

    error = [abs(float(description[0] @ description[j]) - exact(0, j)) for j in range(1, 24)]
    assert max(error) < 4 / math.sqrt(64)  # a random projection to 64 dimensions


@pytest.mark.parametrize("kind", [ByLength(CAPTIONS, 4, epochs=3), BySimilarity(CAPTIONS, 4, group=2)])
def test_batches_of_a_curriculum_are_a_function_of_seed_and_epoch_for_any_start_and_rank(kind):
    def batches(epoch=1, start=0, seed=7, rank=0, world=1):
        served = EpochBatches(20, 4, seed, rank, world, kind)
        served.epoch, served.start = epoch, start
        return list(served)

    whole = batches()
    assert len(whole) == 5 and batches(start=2) == whole[2:] and batches() == whole
    assert batches(epoch=2) != whole and batches(seed=8) != whole
    assert [a + b for a, b in zip(batches(rank=0, world=2), batches(rank=1, world=2), strict=True)] == whole


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ByLength(CAPTIONS, 4, epochs=0), "epochs=0"),
        (lambda: ByLength(CAPTIONS, 4, epochs=1, start=0), "start=0"),
        (lambda: BySimilarity(CAPTIONS, 4, group=5), "group=5: must be from 1 to the batch size, 4"),
        (lambda: BySimilarity(CAPTIONS, 4, group=2, epochs=-1), "epochs=-1"),
    ],
)
def test_a_setting_out_of_range_is_named(make, message):
    with pytest.raises(InputError, match=message):
        make()
