"""How near generated captions come to those that people wrote: BLEU-4, ROUGE-L, CIDEr and CIDEr-D, by the definitions of captioning.

N pictures. A caption is a list of words; every picture has one candidate and at least one reference. All scores are the higher the better.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics.functional.text import bleu_score

from insight.baselines import words_of
from insight.errors import InputError

Words = Sequence[str]
LONGEST = 4  # words of an n-gram
SIGMA = 6.0  # of CIDEr-D's penalty on the difference of lengths
BETA = 1.2  # how much dearer recall is than precision in ROUGE-L, as in the COCO caption evaluation


def caption_scores(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """The figures of a split by name. Words are lower-cased and punctuation is dropped (:func:`insight.baselines.words_of`).

    The published tokeniser (Penn Treebank, in Java) differs in what it makes of "it's" and of hyphens only.

    Raises:
        InputError: no candidate, not one group of references per candidate, or a picture without references.

    >>> scores = caption_scores(["A dog runs on grass."] * 2, [["a dog runs on grass"], ["two cats"]])
    >>> round(scores["bleu_4"], 3), scores["rouge_l"]
    (0.5, 0.5)
    """
    said = [words_of(text) for text in candidates]
    written = [[words_of(text) for text in group] for group in references]
    return {
        "bleu_4": bleu(said, written),
        "rouge_l": float(rouge_l(said, written).mean()),
        "cider": float(cider(said, written).mean()),
        "cider_d": float(cider_d(said, written).mean()),
    }


def bleu(candidates: Sequence[Words], references: Sequence[Sequence[Words]], longest: int = LONGEST) -> float:
    """Corpus BLEU: clipped n-gram precision over all captions, geometric mean up to ``longest``, times the brevity penalty.

    K. Papineni et al., "BLEU: a Method for Automatic Evaluation of Machine Translation" (ACL 2002), section 2.3. A candidate's length is
    compared with that of the nearest reference, the shorter of two equally near. Without a common n-gram of some length it is 0.
    """
    _check(candidates, references)
    # torchmetrics takes the first of two equally near references: shortest first makes that the shorter one
    written = [[" ".join(words) for words in sorted(group, key=len)] for group in references]
    return float(bleu_score([" ".join(words) for words in candidates], written, n_gram=longest))


def rouge_l(candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> Tensor:
    """Longest common subsequence as an F-score: (N,), 0 to 1.

    C.-Y. Lin, "ROUGE: A Package for Automatic Evaluation of Summaries" (2004), equations 2-4, with the best precision and the best recall
    over the references and beta = 1.2: the captioning definition, which is not torchmetrics' (one reference at a time, beta = 1).
    """
    _check(candidates, references)
    return torch.tensor([_rouge_l(words, group) for words, group in zip(candidates, references, strict=True)], dtype=torch.float64)


def cider(candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> Tensor:
    """Mean cosine of TF-IDF vectors of n-grams: (N,), 0 to 1. https://arxiv.org/abs/1411.5726, equations 1-3, words not stemmed.

    Document frequencies are those of the references, one document per picture: a corpus of one picture scores 0.
    """
    return _consensus(candidates, references, damped=False)


def cider_d(candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> Tensor:
    """CIDEr that repeated words and lengths cannot game: (N,), 0 to 10. https://arxiv.org/abs/1504.00325, on CIDEr.

    This is what the COCO caption evaluation calls CIDEr. A caption's length is that of its code: bigrams, not words.
    """
    return 10 * _consensus(candidates, references, damped=True)


def _consensus(candidates: Sequence[Words], references: Sequence[Sequence[Words]], damped: bool) -> Tensor:
    _check(candidates, references)
    found_in = Counter(gram for group in references for gram in {gram for words in group for gram in _grams(words)})
    log_pictures = math.log(len(references))

    def weigh(words: Words) -> list[dict[tuple[str, ...], float]]:
        """TF-IDF by length of the n-gram; the frequency's denominator cancels in a cosine."""
        vectors: list[dict[tuple[str, ...], float]] = [{} for _ in range(LONGEST)]
        for gram, count in _grams(words).items():
            vectors[len(gram) - 1][gram] = count * (log_pictures - math.log(max(1, found_in[gram])))
        return vectors

    scores = []
    for words, group in zip(candidates, references, strict=True):
        own, total = weigh(words), 0.0
        for reference in group:
            alike = sum(_cosine(mine, theirs, clipped=damped) for mine, theirs in zip(own, weigh(reference), strict=True)) / LONGEST
            apart = max(0, len(words) - 1) - max(0, len(reference) - 1)
            total += alike * (math.exp(-(apart**2) / (2 * SIGMA**2)) if damped else 1.0)
        scores.append(total / len(group))
    return torch.tensor(scores, dtype=torch.float64)


def _cosine(mine: dict[tuple[str, ...], float], theirs: dict[tuple[str, ...], float], clipped: bool) -> float:
    """``clipped``: what the candidate says more often than the reference counts as often as the reference says it."""
    lengths = math.sqrt(sum(value**2 for value in mine.values())) * math.sqrt(sum(value**2 for value in theirs.values()))
    common = mine.keys() & theirs.keys()
    product = math.fsum((min(mine[gram], theirs[gram]) if clipped else mine[gram]) * theirs[gram] for gram in common)
    return product / lengths if lengths else 0.0


def _grams(words: Words) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[at : at + size]) for size in range(1, LONGEST + 1) for at in range(len(words) - size + 1))


def _rouge_l(words: Words, group: Sequence[Words]) -> float:
    common = [_longest_common_subsequence(words, reference) for reference in group]
    precision = max(common) / max(1, len(words))
    recall = max(length / max(1, len(reference)) for length, reference in zip(common, group, strict=True))
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision) if precision and recall else 0.0


def _longest_common_subsequence(first: Words, second: Words) -> int:
    before = [0] * (len(second) + 1)
    for word in first:
        row = [0]
        for at, other in enumerate(second):
            row.append(before[at] + 1 if word == other else max(before[at + 1], row[at]))
        before = row
    return before[-1]


def _check(candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> None:
    if not candidates:
        raise InputError("caption scores of no captions at all: generate at least one")
    if len(candidates) != len(references):
        raise InputError(f"{len(candidates)} generated captions but references of {len(references)} pictures: give one caption per picture")
    for row, group in enumerate(references):
        if not group:
            raise InputError(f"picture {row} has no reference caption: leave it out, or give at least one")
