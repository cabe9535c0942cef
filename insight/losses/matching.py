"""Does this caption belong to this picture: the loss of the matching head, and the wrong partners that it is asked about.

B pictures, C captions, M matched pairs.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from insight.losses.logits import check_temperature

NO_NEGATIVE = -1  # from hard_negatives(): the row has no negative at all


def image_text_matching(match_logits: Tensor, match_targets: Tensor) -> Tensor:
    """Does the pair belong together: cross-entropy, the ITM loss of https://arxiv.org/abs/2107.07651, section 3.2.

    Args:
        match_logits: (M, 2)
        match_targets: (M,) int64, 1 = matches.
    """
    return F.cross_entropy(match_logits.float(), match_targets)


def hard_negatives(
    similarity_BC: Tensor, positives_BC: Tensor, generator: torch.Generator, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """For every picture a caption of another picture, for every caption another picture, drawn with probability softmax(similarity).

    The in-batch hard negatives of https://arxiv.org/abs/2107.07651, section 3.2. Drawn on the CPU by Gumbel-max from ``generator`` alone:
    the same on every process that holds the same scores and seed, and after a resume. A positive is never drawn.

    Args:
        similarity_BC: Scores, scaled as the contrastive loss scales them (or cosines with ``temperature`` 1 / scale).
        positives_BC: True = the caption is one of the picture's.
        generator: On the CPU.
        temperature: Divides the scores; towards 0 the hardest is always drawn.

    Returns:
        Caption rows (B,) and picture rows (C,), int64. A row without any negative (a batch of one picture) holds ``NO_NEGATIVE``, -1:
        the caller leaves those rows out.

    Raises:
        InputError: ``temperature`` is not above 0.
    """
    check_temperature(temperature)
    scores_BC, positives_BC = similarity_BC.detach().float().cpu() / temperature, positives_BC.cpu()
    drawn = []
    for scores, positives in ((scores_BC, positives_BC), (scores_BC.T, positives_BC.T)):
        gumbel = -torch.empty(scores.shape).exponential_(generator=generator).log()
        rows = (scores + gumbel).masked_fill(positives, -math.inf).argmax(dim=1)
        drawn.append(rows.masked_fill(positives.all(dim=1), NO_NEGATIVE).to(similarity_BC.device))
    return drawn[0], drawn[1]
