"""Answers without a look at the picture, reported beside every accuracy on questions: what the questions alone give away."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Asked(NamedTuple):
    kind: str
    question: str
    answer: str


class BlindAnswers(NamedTuple):
    """The most frequent answers of the training split; of equally frequent ones, the first that came."""

    of_kind: dict[str, str]
    of_question: dict[str, str]

    @classmethod
    def fit(cls, training: Iterable[Asked]) -> BlindAnswers:
        training = list(training)
        of_kind = _most_frequent((one.kind, one.answer) for one in training)
        return cls(of_kind, _most_frequent((one.question, one.answer) for one in training))

    def by_kind(self, asked: Sequence[Asked]) -> list[str]:
        """Hears only what kind of question it is."""
        return [self.of_kind.get(one.kind, "") for one in asked]

    def by_question(self, asked: Sequence[Asked]) -> list[str]:
        """Hears the very question; one that training lacks is answered by its kind."""
        return [self.of_question.get(one.question, self.of_kind.get(one.kind, "")) for one in asked]


def accuracy_by_kind(answers: Sequence[str], asked: Sequence[Asked]) -> dict[str, float]:
    """``accuracy`` over all questions, and ``accuracy_<kind>`` of each kind.

    >>> accuracy_by_kind(["red", "2"], [Asked("colour", "?", "red"), Asked("count", "?", "3")])
    {'accuracy': 0.5, 'accuracy_colour': 1.0, 'accuracy_count': 0.0}
    """
    right: dict[str, list[bool]] = defaultdict(list)
    for answer, one in zip(answers, asked, strict=True):
        right["accuracy"].append(answer == one.answer)
        right[f"accuracy_{one.kind}"].append(answer == one.answer)
    return {name: sum(found) / len(found) for name, found in right.items()}


def _most_frequent(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for key, answer in pairs:
        counts[key][answer] += 1
    return {key: answers.most_common(1)[0][0] for key, answers in counts.items()}
