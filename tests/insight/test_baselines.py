"""Baselines: right by hand on toy data, and at chance on hard negatives of a few hundred scenes."""

import itertools
import math

import pytest
import torch

from datamodules.scenes_files import make_example
from insight.baselines import (
    BlindPrior,
    ColourHistogram,
    Negative,
    bag_of_words,
    chosen_fraction,
    colour_histogram,
    evaluate_baseline,
)

RED = torch.tensor([255, 0, 0], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 4, 4)
BLUE = torch.tensor([0, 0, 255], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 4, 4)


def test_the_histogram_counts_every_pixel_as_a_loop_does():
    images = torch.randint(0, 256, (3, 3, 5, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = torch.zeros(3, 64)
    for row, y, x in itertools.product(range(3), range(5), range(5)):
        red, green, blue = (int(value) // 64 for value in images[row, :, y, x])
        expected[row, red * 16 + green * 4 + blue] += 1 / 25
    torch.testing.assert_close(colour_histogram(images), expected.sqrt())


def test_the_bag_counts_known_words_and_leaves_out_others():
    assert bag_of_words(["A red, red dog.", "zebra"], {"red": 0, "dog": 1}).tolist() == [[2, 1], [0, 0]]


def test_the_histogram_learns_which_word_goes_with_which_colour():
    images = torch.cat([RED, BLUE, RED, BLUE])
    captions = [["a red thing"], ["a blue thing"], ["one red thing"], ["one blue thing"]]
    baseline = ColourHistogram.fit(images, captions)
    scores = baseline.score(torch.cat([RED, BLUE]), ["red", "blue"])
    assert scores.shape == (2, 2)
    assert scores[0, 0] > scores[0, 1] and scores[1, 1] > scores[1, 0]


def test_the_ridge_solution_is_that_of_the_stacked_least_squares_problem():
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (12, 3, 4, 4), dtype=torch.uint8, generator=generator)
    captions = [[" ".join(f"w{int(word)}" for word in torch.randint(0, 5, (4,), generator=generator))] for _ in range(12)]
    baseline = ColourHistogram.fit(images, captions)
    x = colour_histogram(images).double()
    x -= x.mean(dim=0)
    y = torch.stack([bag_of_words(group, baseline.columns)[0] for group in captions]).double()
    y -= y.mean(dim=0)
    penalty = 1e-2 * (x.T @ x).diagonal().mean() + 1e-8
    stacked = torch.cat([x, penalty.sqrt() * torch.eye(64, dtype=torch.float64)])
    expected = torch.linalg.lstsq(stacked, torch.cat([y, torch.zeros(64, y.shape[1], dtype=torch.float64)])).solution
    torch.testing.assert_close(baseline.weight_KV.double(), expected, atol=2e-4, rtol=1e-3)


def test_the_blind_prior_is_the_bigram_probability_by_hand_and_never_looks():
    prior = BlindPrior.fit(RED, [["a cat", "a dog", "a dog"]])
    scores = prior.score(torch.cat([RED, BLUE]), ["a dog", "a cat", "dog a"])
    assert torch.equal(scores[0], scores[1])
    uniform = 0.01 / 5  # a, cat, dog, <end>, and one unknown word
    probabilities = [0.9 * 1 + 0.09 * 3 / 9 + uniform, 0.9 * 2 / 3 + 0.09 * 2 / 9 + uniform, 0.9 * 1 + 0.09 * 3 / 9 + uniform]
    assert scores[0, 0].item() == pytest.approx(sum(map(math.log, probabilities)) / 3, abs=1e-5)
    assert scores[0, 0] > scores[0, 1] > scores[0, 2]


def test_a_tie_is_half_a_hit():
    assert chosen_fraction(torch.tensor([1.0, 0.0, 0.5, 0.5]), torch.tensor([0.0, 1.0, 0.5, 0.5 + 1e-7])) == 0.5
    assert chosen_fraction(torch.tensor([1.0, 0.5]), torch.tensor([0.0, 0.5])) == 0.75


@pytest.fixture(scope="module")
def scenes():
    train = [make_example(0, "train", index) for index in range(250)]
    test = [make_example(0, "test", index) for index in range(250)]
    images = [torch.stack([torch.from_numpy(one.picture.pixels[::2, ::2]).permute(2, 0, 1) for one in part]) for part in (train, test)]
    captions = [[[caption.text for caption in one.captions] for one in part] for part in (train, test)]
    negatives = [Negative(row, one.caption, one.negative, one.seen) for row, example in enumerate(test) for one in example.negatives]
    return images, captions, negatives


@pytest.mark.parametrize("kind", [ColourHistogram, BlindPrior])
def test_both_baselines_fail_the_hard_negatives(scenes, kind):
    (train_images, images), (train_captions, captions), negatives = scenes
    figures = evaluate_baseline(kind.fit(train_images, train_captions), images, captions, negatives)
    assert figures["hard_negative_accuracy_seen"] == pytest.approx(0.5, abs=0.08)
    assert figures["hard_negative_accuracy_unseen"] == pytest.approx(0.5, abs=0.08)


def test_colours_find_more_than_chance_and_the_blind_prior_no_more(scenes):
    (train_images, images), (train_captions, captions), _ = scenes
    chance = 10 / len(images)
    colours = evaluate_baseline(ColourHistogram.fit(train_images, train_captions), images, captions)
    blind = evaluate_baseline(BlindPrior.fit(train_images, train_captions), images, captions)
    assert colours["text_to_image_recall_at_10"] > 2 * chance
    assert blind["image_to_text_recall_at_10"] <= 2 * chance and blind["text_to_image_recall_at_10"] == 0  # all pictures tie: against us
    assert not any(name.startswith("hard_negative") for name in blind)


def test_swaps_of_attributes_score_exactly_the_same_by_colours(scenes):
    (train_images, images), (train_captions, _), negatives = scenes
    baseline = ColourHistogram.fit(train_images, train_captions)
    swaps = [one for one in negatives if sorted(one.caption.lower().split()) == sorted(one.negative.lower().split())]
    assert len(swaps) > 20
    true, false = (baseline.score(images, [getattr(one, name) for one in swaps]) for name in ("caption", "negative"))
    torch.testing.assert_close(true, false, atol=1e-6, rtol=0)
