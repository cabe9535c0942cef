"""Loss and baselines of classification. B pictures, K classes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropy(class_logits: Tensor, class_targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy with the share of each class as the target, smoothed as in https://arxiv.org/abs/1512.00567, section 7.

    >>> round(float(cross_entropy(torch.zeros(1, 4), torch.tensor([[0.0, 1.0, 0.0, 0.0]]))), 4)  # log 4
    1.3863

    Args:
        class_logits: (B, K)
        class_targets: (B, K), rows sum to 1.
        label_smoothing: So much of every target is spread evenly over all classes.
    """
    return F.cross_entropy(class_logits, class_targets, label_smoothing=label_smoothing)


def majority_accuracy(train: Sequence[int], other: Sequence[int], num_classes: int, k: int = 1) -> float:
    """Accuracy on ``other`` of naming the ``k`` classes that are most frequent in training, whatever the picture.

    >>> majority_accuracy([0, 1, 1, 2], [1, 1, 0, 2, 2], 3)
    0.4
    """
    named = torch.bincount(torch.tensor(train), minlength=num_classes).argsort(descending=True, stable=True)[:k]
    return float(torch.isin(torch.tensor(other), named).float().mean())
