import math

import pytest
import torch

from insight.classification import cross_entropy, majority_accuracy


def test_cross_entropy_is_the_sum_over_shares_and_smoothing_spreads_some_evenly():
    logits, targets = torch.tensor([[2.0, 0.5, -1.0], [0.0, 1.0, 3.0]]), torch.tensor([[0.7, 0.3, 0.0], [0.0, 0.0, 1.0]])
    total = 0.0
    for row in range(2):
        log_sum = math.log(sum(math.exp(value) for value in logits[row].tolist()))
        for share, value in zip(targets[row].tolist(), logits[row].tolist(), strict=True):
            total -= (0.8 * share + 0.2 / 3) * (value - log_sum)
    assert float(cross_entropy(logits, targets, label_smoothing=0.2)) == pytest.approx(total / 2, abs=1e-6)


def test_the_majority_is_of_the_training_labels():
    assert majority_accuracy([2, 2, 0], [0, 0, 2, 1], 3) == 0.25
    assert majority_accuracy([2, 2, 0], [0, 0, 2, 1], 3, k=2) == 0.75
