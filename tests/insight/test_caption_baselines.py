from __future__ import annotations

import torch

from insight.caption_baselines import FrequentCaption, NearestCaption


def plain(*colours: tuple[int, int, int]) -> torch.Tensor:
    return torch.tensor(colours, dtype=torch.uint8)[:, :, None, None].expand(-1, -1, 8, 8).contiguous()


def test_the_nearest_caption_is_the_first_one_of_the_picture_with_the_same_colours():
    images = plain((250, 0, 0), (0, 250, 0), (0, 0, 250))
    baseline = NearestCaption.fit(images, [["a red one", "warm"], ["a green one"], ["a blue one", "cold"]])
    half = plain((0, 250, 0), (0, 0, 250))
    half[0, :, :3] = plain((250, 0, 0))[0, :, :3]  # more green than red
    assert baseline.write(half) == ["a green one", "a blue one"]


def test_the_most_frequent_caption_is_counted_without_case_and_punctuation():
    captions = [["A dog.", "a cat"], ["a dog", "a bird"], ["The fish", "a cat runs"]]
    assert FrequentCaption.fit(plain((0, 0, 0)), captions).write(plain((0, 0, 0), (9, 9, 9))) == ["a dog", "a dog"]


def test_of_captions_that_all_come_once_the_one_of_the_likeliest_words_wins():
    captions = [["q"], ["a b c"], ["a b c d"]]
    # mean logarithms of the bigrams: q log(1/3) / 2, the second (log(2/3) + log(1/2)) / 4, the third the same / 5: the least negative
    assert FrequentCaption.fit(plain((0, 0, 0)), captions).caption == "a b c d"
