"""Phrases as targets: the words of a marked phrase belong to the patches inside its boxes.

P phrases with boxes, N patches of a picture. A phrase chooses among the patches of its own picture only, so no other picture can be a
false negative.
"""

from __future__ import annotations

import math

from torch import Tensor

from insight.losses.logits import check_temperature


def phrase_regions(region_similarity: Tensor, region_targets: Tensor, region_count: Tensor, temperature: float = 0.1) -> Tensor:
    """Which patches does this phrase speak of? By the two towers alone: patch and phrase are compared in the common embedding.

    The attention loss of GroundeR with boxes (https://arxiv.org/abs/1511.03745): minus the logarithm of the softmax of what is right, here
    all patches inside the phrase's boxes together.

    Args:
        region_similarity: (P, N), cosines.
        region_targets: (P, N) bool, True = inside; at least one a row.
        region_count: (), phrases of the whole batch divided by the number of devices: the mean over devices is the mean over phrases.
        temperature: Divides the cosines.

    Raises:
        InputError: ``temperature`` is not above 0.

    >>> import torch
    >>> inside = torch.tensor([[True, True, False, False]])
    >>> round(phrase_regions(torch.zeros(1, 4), inside, torch.tensor(1)).item(), 4)  # -log(2 / 4)
    0.6931
    """
    check_temperature(temperature)
    return _share_inside(region_similarity.float() / temperature, region_targets, region_count)


def fused_phrase_regions(fused_region_logits: Tensor, fused_region_targets: Tensor, fused_region_count: Tensor) -> Tensor:
    """Which patches do the words of this phrase read? Of the attention to patches in the last fusion layer, minus the logarithm of the
    share that lies inside the boxes: attention that is told where to look, as https://arxiv.org/abs/1605.09553 does it with boxes.

    Args:
        fused_region_logits: (P, N), logarithm of the mean attention over heads and the phrase's words.
        fused_region_targets: (P, N) bool, True = inside; at least one a row.
        fused_region_count: (), phrases of the whole batch divided by the number of devices.
    """
    return _share_inside(fused_region_logits.float(), fused_region_targets, fused_region_count)


def _share_inside(logits_PN: Tensor, inside_PN: Tensor, count: Tensor) -> Tensor:
    inside_P = logits_PN.masked_fill(~inside_PN, -math.inf).logsumexp(dim=1)
    return (logits_PN.logsumexp(dim=1) - inside_P).sum() / count.clamp(min=1)
