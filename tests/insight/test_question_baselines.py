from __future__ import annotations

from insight.question_baselines import Asked, BlindAnswers, accuracy_by_kind

TRAINING = [
    Asked("colour", "what colour is the star?", "red"),
    Asked("colour", "what colour is the star?", "blue"),
    Asked("colour", "what colour is the star?", "blue"),
    Asked("colour", "what colour is the box?", "red"),
    Asked("colour", "what colour is the ring?", "red"),
    Asked("count", "how many stars?", "2"),
]
TEST = [
    Asked("colour", "what colour is the star?", "blue"),
    Asked("colour", "what colour is the heart?", "red"),
    Asked("count", "how many rings?", "1"),
]


def test_the_prior_of_a_kind_is_its_most_frequent_answer_and_that_of_a_question_its_own():
    blind = BlindAnswers.fit(TRAINING)
    assert blind.by_kind(TEST) == ["red", "red", "2"]
    assert blind.by_question(TEST) == ["blue", "red", "2"]  # of the heart training knows nothing: the kind's


def test_accuracy_is_counted_over_all_and_of_each_kind():
    blind = BlindAnswers.fit(TRAINING)
    assert accuracy_by_kind(blind.by_kind(TEST), TEST) == {"accuracy": 1 / 3, "accuracy_colour": 0.5, "accuracy_count": 0.0}
    assert accuracy_by_kind(blind.by_question(TEST), TEST) == {"accuracy": 2 / 3, "accuracy_colour": 1.0, "accuracy_count": 0.0}


def test_a_kind_that_training_lacks_is_never_answered_right():
    found = accuracy_by_kind(BlindAnswers.fit(TRAINING).by_question([Asked("size", "large?", "yes")]), [Asked("size", "large?", "yes")])
    assert found == {"accuracy": 0.0, "accuracy_size": 0.0}
