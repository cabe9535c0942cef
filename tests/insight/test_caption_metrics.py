from __future__ import annotations

import itertools
import math
import random

import pytest
import torch

from insight.baselines import words_of
from insight.caption_metrics import bleu, caption_scores, cider, cider_d, rouge_l
from insight.errors import InputError

WORDS = words_of("a dog cat runs sits on the grass red big near two and with ball man")


def corpus(pictures: int = 30, seed: int = 0) -> tuple[list[list[str]], list[list[list[str]]]]:
    """Captions of a small vocabulary in which all lengths of n-grams meet; candidates are garbled references."""
    lot = random.Random(seed)
    references = [[lot.choices(WORDS, k=lot.randint(5, 12)) for _ in range(lot.randint(1, 5))] for _ in range(pictures)]
    candidates = []
    for group in references:
        words = list(lot.choice(group))
        for _ in range(2):
            words[lot.randrange(len(words))] = lot.choice(WORDS)
        candidates.append(words + lot.choices(WORDS, k=lot.randint(0, 3)))
    return candidates, references


def as_reference_input(candidates: list[list[str]], references: list[list[list[str]]]) -> tuple[dict, dict]:
    said = {row: [" ".join(words)] for row, words in enumerate(candidates)}
    return {row: [" ".join(words) for words in group] for row, group in enumerate(references)}, said


@pytest.mark.parametrize("seed", range(3))
def test_bleu_is_that_of_the_coco_evaluation(seed):
    reference = pytest.importorskip("pycocoevalcap.bleu.bleu", reason="pycocoevalcap (extra dev) is not installed")
    candidates, references = corpus(seed=seed)
    figures, _ = reference.Bleu(4).compute_score(*as_reference_input(candidates, references), verbose=0)
    for longest, figure in enumerate(figures, start=1):
        assert bleu(candidates, references, longest) == pytest.approx(figure, abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_rouge_l_is_that_of_the_coco_evaluation_for_every_picture(seed):
    reference = pytest.importorskip("pycocoevalcap.rouge.rouge", reason="pycocoevalcap (extra dev) is not installed")
    candidates, references = corpus(seed=seed)
    _, figures = reference.Rouge().compute_score(*as_reference_input(candidates, references))
    torch.testing.assert_close(rouge_l(candidates, references), torch.tensor(figures, dtype=torch.float64))


@pytest.mark.parametrize("seed", range(3))
def test_cider_d_is_what_the_coco_evaluation_calls_cider_for_every_picture(seed):
    reference = pytest.importorskip("pycocoevalcap.cider.cider", reason="pycocoevalcap (extra dev) is not installed")
    candidates, references = corpus(seed=seed)
    _, figures = reference.Cider().compute_score(*as_reference_input(candidates, references))
    torch.testing.assert_close(cider_d(candidates, references), torch.tensor(figures, dtype=torch.float64))


def test_cider_by_hand():
    # two pictures: "red" and "blue" occur in one each (idf log 2), "a" in both (idf 0); no common n-gram is longer than "a red"
    references = [[["a", "red", "dog"]], [["a", "blue", "cat"]]]
    candidates = [["a", "red", "cat"], ["a", "blue", "cat"]]
    # first picture: 1-grams share red, 1 of 2 * 2 weighted words: 1/2; 2-grams share "a red"; "red cat" is nowhere, and weighs log 2
    expected = [(1 / 2 + 1 / 2 + 0 + 0) / 4, (1 + 1 + 1 + 0) / 4]
    torch.testing.assert_close(cider(candidates, references), torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(cider_d(candidates, references), 10 * torch.tensor(expected, dtype=torch.float64))


def test_saying_a_rare_word_again_and_again_helps_cider_d_less_than_cider():
    references = [[["a", "red", "dog"]], [["a", "blue", "cat"]]]
    plain, repeated = [["red"], ["blue"]], [["red"] * 4, ["blue"] * 4]
    torch.testing.assert_close(cider(plain, references)[0], cider(repeated, references)[0])  # a cosine of one word ignores its count
    penalty = math.exp(-((3 - 2) ** 2) / 72) / math.exp(-((0 - 2) ** 2) / 72)
    torch.testing.assert_close(cider_d(repeated, references)[0], cider_d(plain, references)[0] / 4 * penalty)


def test_rouge_l_by_brute_force_over_all_subsequences():
    candidates, references = corpus(pictures=6, seed=5)
    candidates = [words[:7] for words in candidates]

    def common(first: list[str], second: list[str]) -> int:
        def parts(words, size):
            return set(itertools.combinations(words, size))

        return max(size for size in range(len(first) + 1) if size == 0 or parts(first, size) & parts(second, size))

    for words, group, score in zip(candidates, references, rouge_l(candidates, references).tolist(), strict=True):
        precision = max(common(words, one) / len(words) for one in group)
        recall = max(common(words, one) / len(one) for one in group)
        assert score == pytest.approx(2.44 * precision * recall / (recall + 1.44 * precision) if precision else 0.0)


def test_bleu_takes_the_shorter_of_two_equally_near_references_whatever_their_order():
    candidate, shorter, longer = words_of("a b c d e f"), words_of("a b c d e"), words_of("a b c d e f g")
    expected = math.exp(sum(math.log(n / d) for n, d in ((6, 6), (5, 5), (4, 4), (3, 3))) / 4)  # no penalty: 6 words against 5
    assert bleu([candidate], [[longer, shorter]]) == pytest.approx(expected)
    assert bleu([candidate], [[shorter, longer]]) == pytest.approx(expected)


def test_a_perfect_caption_has_every_figure_at_its_top_and_a_foreign_one_at_zero():
    references = [["A red dog runs on grass."], ["Two blue cats sit near a man."]]
    best = caption_scores([group[0] for group in references], references)
    assert best == pytest.approx({"bleu_4": 1.0, "rouge_l": 1.0, "cider": 1.0, "cider_d": 10.0})
    worst = caption_scores(["x y z", ""], references)
    assert set(worst.values()) == {0.0}


def test_case_and_punctuation_do_not_count():
    assert words_of("Two men, a dog.") == words_of("two men a dog")
    references = [["two men a dog run"], ["a cat sits on grass"]]
    assert caption_scores(["Two men, a dog run!", "a CAT sits on grass."], references)["bleu_4"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("candidates", "references", "message"),
    [
        ([], [], "no captions at all"),
        (["a dog"], [["a"], ["b"]], "1 generated captions but references of 2 pictures"),
        (["a dog", "a cat"], [["a"], []], "picture 1 has no reference caption"),
    ],
)
def test_captions_without_references_are_refused(candidates, references, message):
    with pytest.raises(InputError, match=message):
        caption_scores(candidates, references)
