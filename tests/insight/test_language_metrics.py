"""Perplexity and its kin beside loops over tokens."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from insight.data.language import TextCodec, windows
from insight.language_baselines import Bigram, Unigram, evaluate_counted, uniform_figures
from insight.language_metrics import LanguageFigures
from insight.losses import IGNORED, causal_language_modelling

TEXTS = ["a dog runs", "a cat runs", "two dogs"]


def test_the_loss_is_the_mean_over_tokens_that_are_named():
    logits = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([[1, 4, IGNORED], [0, IGNORED, IGNORED]])
    by_hand = [-math.log(F.softmax(logits[row, column], dim=0)[targets[row, column]]) for row, column in ((0, 0), (0, 1), (1, 0))]
    assert float(causal_language_modelling(logits, targets, torch.tensor(3))) == pytest.approx(sum(by_hand) / 3, abs=1e-6)
    empty = causal_language_modelling(logits, torch.full_like(targets, IGNORED), torch.tensor(0))
    assert float(empty) == 0.0


def test_figures_are_one_sum_divided_by_tokens_words_and_bytes():
    generator = torch.Generator().manual_seed(1)
    batches = [torch.randn(2, 4, 6, generator=generator), torch.randn(3, 2, 6, generator=generator)]
    targets = [torch.tensor([[1, 2, IGNORED, IGNORED], [5, 5, 0, 3]]), torch.tensor([[4, IGNORED], [1, 1], [0, 2]])]
    words, sizes = [4, 3], [9, 14]
    metric = LanguageFigures()
    for one in zip(batches, targets, words, sizes, strict=True):
        metric.update(one[0], one[1], torch.tensor(one[2]), torch.tensor(one[3]))
    loss = sum(
        float(F.cross_entropy(x.flatten(0, 1), y.flatten(), ignore_index=IGNORED, reduction="sum"))
        for x, y in zip(batches, targets, strict=True)
    )
    found = metric.compute()
    assert found["perplexity"] == pytest.approx(math.exp(loss / 11), rel=1e-5)
    assert found["perplexity_per_word"] == pytest.approx(math.exp(loss / 7), rel=1e-4)
    assert found["bits_per_byte"] == pytest.approx(loss / math.log(2) / 23, rel=1e-5)
    metric.reset()
    metric.update(batches[0], targets[0], torch.tensor(4), torch.tensor(9))
    assert metric.compute() != found


def test_counted_models_give_probabilities_that_sum_to_one_and_favour_what_was_seen():
    train = [[1, 5, 6, 2], [1, 5, 7, 2], [1, 5, 6, 2]]
    for model in (Unigram.fit(train, 9), Bigram.fit(train, 9)):
        for before in range(9):
            assert sum(math.exp(-model.loss(before, token)) for token in range(9)) == pytest.approx(1.0)
    bigram = Bigram.fit(train, 9)
    unigram_6 = (2 + 1) / (9 + 9)  # 9 named tokens, 9 entries
    assert math.exp(-bigram.loss(5, 6)) == pytest.approx((2 + 2 * unigram_6) / (3 + 2))  # 5 was followed 3 times, by 2 kinds
    assert bigram.loss(5, 6) < bigram.loss(5, 7) < bigram.loss(5, 8)


def test_baselines_are_evaluated_on_the_same_tokens_words_and_bytes_as_the_model():
    codec = TextCodec.train(TEXTS, 280)
    cut = [window for ids in codec.ids(TEXTS) for window in windows(ids, codec, 6)]
    found, chance = evaluate_counted(Unigram.fit(cut, codec.size), cut, codec), uniform_figures(cut, codec)
    losses = [Unigram.fit(cut, codec.size).loss(0, token) for window in cut for token in window[1:]]
    words = sum(len(text.split()) + 1 for text in TEXTS)
    assert found["perplexity"] == pytest.approx(math.exp(sum(losses) / len(losses)))
    assert found["perplexity_per_word"] == pytest.approx(math.exp(sum(losses) / words))
    assert found["bits_per_byte"] == pytest.approx(sum(losses) / math.log(2) / sum(len(text) + 1 for text in TEXTS))
    assert chance["perplexity"] == pytest.approx(codec.size) and found["perplexity"] < chance["perplexity"]
