"""Generation beside slow and simple answers: hand-made cases, brute force over all texts, one text at a time."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from insight.errors import InputError
from insight.generation import Sampling, beam_search, choose, generate, keep_likely

END, VOCABULARY = 0, 4


class Table:
    """A reader whose next token depends on the last two: logits by lot, all known to the test."""

    context_length = 12

    def __init__(self, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.logits = 2 * torch.randn(VOCABULARY, VOCABULARY, VOCABULARY, generator=generator)
        self.texts: list[list[int]] = []
        self.columns = 0

    def next(self, text):
        return self.logits[text[-2] if len(text) > 1 else 0, text[-1]]

    def read(self, tokens_BT):
        self.columns += tokens_BT.shape[1]
        read = tokens_BT.tolist()
        self.texts = [old + new for old, new in zip(self.texts, read, strict=True)] if self.texts else read
        return torch.stack([self.next(text) for text in self.texts])

    def keep_rows(self, row_B):
        self.texts = [list(self.texts[row]) for row in row_B.tolist()]


def log_probability(table, prompt, continuation):
    total, text = 0.0, list(prompt)
    for token in continuation:
        total += float(F.log_softmax(table.next(text), dim=0)[token])
        text.append(token)
    return total


def all_continuations(length):
    """Every text of up to ``length`` tokens that ends with END, or is as long as can be."""
    others = [token for token in range(VOCABULARY) if token != END]
    for count in range(length + 1):
        for body in itertools.product(others, repeat=count):
            if count < length:
                yield (*body, END)
            else:
                yield body


def test_top_k_keeps_the_highest_logits_not_the_lowest():
    logits = torch.tensor([0.1, 3.0, -1.0, 2.0])
    assert keep_likely(logits, top_k=2).tolist() == [-math.inf, 3.0, -math.inf, 2.0]
    assert keep_likely(logits, top_k=1).tolist() == [-math.inf, 3.0, -math.inf, -math.inf]
    torch.testing.assert_close(keep_likely(logits, top_k=9), logits)


def test_top_p_keeps_the_fewest_tokens_that_reach_the_probability():
    logits = torch.tensor([0.15, 0.5, 0.05, 0.3]).log()
    kept = {top_p: keep_likely(logits, top_p=top_p).isfinite().tolist() for top_p in (0.2, 0.49, 0.7, 0.9, 0.97, 1.0)}
    assert kept[0.2] == kept[0.49] == [False, True, False, False]  # the first always stays
    assert kept[0.7] == [False, True, False, True]
    assert kept[0.9] == [True, True, False, True]
    assert kept[0.97] == kept[1.0] == [True] * 4


def test_top_p_is_of_what_top_k_leaves():
    logits = torch.tensor([0.15, 0.5, 0.05, 0.3]).log()  # of the two highest, 0.5 is 0.625
    assert keep_likely(logits, top_k=2, top_p=0.6).isfinite().tolist() == [False, True, False, False]
    assert keep_likely(logits, top_k=2, top_p=0.65).isfinite().tolist() == [False, True, False, True]


@pytest.mark.parametrize("sampling", [Sampling(0.5), Sampling(2.0, top_k=3), Sampling(1.0, top_p=0.8)])
def test_tokens_are_drawn_as_often_as_the_settings_say(sampling):
    probability = torch.tensor([0.1, 0.5, 0.15, 0.25])
    sharpened = probability ** (1 / sampling.temperature)
    if sampling.top_k:
        sharpened[0] = 0.0
    if sampling.top_p < 1:
        sharpened[[0]] = 0.0  # 0.5 + 0.25 is below 0.8, 0.15 more reaches it
    expected, lot = sharpened / sharpened.sum(), torch.Generator().manual_seed(0)
    counts = torch.bincount(torch.tensor([choose(probability.log(), sampling, lot) for _ in range(2000)]), minlength=4)
    torch.testing.assert_close(counts / 2000, expected, atol=0.04, rtol=0)


def test_greedy_takes_the_most_probable_token_at_every_place():
    for seed in range(5):
        table, text, steps = Table(seed), [1], []
        while len(steps) < 6 and END not in steps:
            steps.append(int(table.next(text).argmax()))
            text.append(steps[-1])
        found = generate(Table(seed), [[1]], 6, END)
        assert found.tokens == [[token for token in steps if token != END]] and found.ended == [END in steps]
        assert found.log_probability == pytest.approx([log_probability(table, [1], steps)], abs=1e-5)


@pytest.mark.parametrize("sampling", [Sampling(0.0), Sampling(1.0)])
def test_a_batch_of_prompts_of_different_lengths_comes_out_as_each_alone(sampling):
    prompts = [[1], [2, 3, 1, 1, 2], [3, 3, 2]]
    together = generate(Table(), prompts, 5, END, sampling, seed=4)
    if sampling.temperature == 0:
        alone = [generate(Table(), [prompt], 5, END) for prompt in prompts]
    else:  # lot r belongs to row r
        alone = [generate(Table(), [prompts[row]] * (row + 1), 5, END, sampling, seed=4) for row in range(3)]
    assert together.tokens == [one.tokens[-1] for one in alone]
    assert together.log_probability == pytest.approx([one.log_probability[-1] for one in alone])


@pytest.mark.parametrize("length_penalty", [-0.5, 0.0, 0.7, 1.0, 2.0])
@pytest.mark.parametrize("seed", range(4))
def test_a_beam_that_loses_nothing_finds_the_best_of_all_texts(seed, length_penalty):
    table, length = Table(seed), 4
    found = beam_search(Table(seed), [[1]], length, END, beams=VOCABULARY**length, length_penalty=length_penalty)
    scored = {text: log_probability(table, [1], text) / len(text) ** length_penalty for text in all_continuations(length)}
    best = max(scored, key=scored.__getitem__)
    assert found.tokens == [[token for token in best if token != END]] and found.ended == [best[-1] == END]
    assert found.log_probability == pytest.approx([log_probability(table, [1], best)], abs=1e-5)


@pytest.mark.parametrize("seed", range(6))
def test_one_beam_is_greedy(seed):
    prompts = [[1], [2, 3, 1]]
    one, greedy = beam_search(Table(seed), prompts, 6, END, beams=1), generate(Table(seed), prompts, 6, END)
    assert one.tokens == greedy.tokens and one.ended == greedy.ended
    assert one.log_probability == pytest.approx(greedy.log_probability, abs=1e-5)


def slow_beam_search(table, prompt, length, beams):
    """The same search without bookkeeping: lists of whole texts, to the very end."""
    live, finished = [()], []
    while live:
        scored = sorted(
            ((log_probability(table, prompt, (*text, token)), (*text, token)) for text in live for token in range(VOCABULARY)), reverse=True
        )
        kept = [text for _, text in scored[: beams - len(finished)]]
        over = [text for text in kept if text[-1] == END or len(text) == length]
        finished, live = [*finished, *over], [text for text in kept if text not in over]
    return max(finished, key=lambda text: log_probability(table, prompt, text) / len(text))


@pytest.mark.parametrize("beams", [2, 3, 5])
def test_narrow_beams_find_what_a_slow_search_finds(beams):
    for seed in range(5):
        prompts = [[1], [2, 3, 1]]
        found = beam_search(Table(seed), prompts, 5, END, beams)
        expected = [slow_beam_search(Table(seed), prompt, 5, beams) for prompt in prompts]
        assert found.tokens == [[token for token in text if token != END] for text in expected]


def test_generation_stops_reading_when_every_text_has_ended():
    table = Table()
    table.logits[..., END] = 50.0
    assert generate(table, [[1], [2, 3]], 8, END).ended == [True, True]
    assert table.columns == 2  # the first text has ended when the second prompt is read


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: generate(Table(), [[1] * 5], 8, END), "5 tokens and max_new_tokens=8 .* context_length=12: max_new_tokens=7 is the most"),
        (lambda: generate(Table(), [[1] * 12], 1, END), "context_length=12: shorten the prompt to 11 tokens"),
        (lambda: beam_search(Table(), [[1] * 5], 8, END, 2), "context_length=12"),
        (lambda: generate(Table(), [[1], []], 8, END), "a prompt is empty"),
        (lambda: generate(Table(), [[1]], 0, END), "max_new_tokens=0"),
        (lambda: beam_search(Table(), [[1]], 2, END, beams=0), "beams=0: must be at least 1"),
        (lambda: Sampling(temperature=-1.0), "temperature=-1.0"),
        (lambda: Sampling(top_k=0), "top_k=0"),
        (lambda: Sampling(top_p=0.0), "top_p=0.0"),
    ],
)
def test_what_cannot_be_generated_is_named_with_its_remedy(call, message):
    with pytest.raises(InputError, match=message):
        call()
