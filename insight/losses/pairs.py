"""Which caption belongs to which picture: contrastive losses over all pairs of a batch.

B pictures, C captions, N = B + C of both, E width of the embedding. Embeddings have length 1.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from insight.errors import InputError
from insight.losses.logits import LOWEST, check_temperature, cosine, mean_positive, pair_cosine, same_picture


def contrastive(image_embedding: Tensor, text_embedding: Tensor, positives: Tensor, scale: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Multi-positive InfoNCE, mean of both directions.

    A row's loss is the mean over its positives of ``-log softmax``: L_out, equation 2 of https://arxiv.org/abs/2004.11362, where the
    denominator holds positives and negatives. With one positive each it is the loss of CLIP (https://arxiv.org/abs/2103.00020, figure 3).
    Rows without a positive are left out.

    Args:
        image_embedding: (B, E)
        text_embedding: (C, E)
        positives: (B, C) bool, True = the caption is one of the picture's.
        scale: (), factor of the cosine (1 / temperature).
        label_smoothing: Part of the target that lies evenly on all candidates: https://arxiv.org/abs/1512.00567, section 7.

    Raises:
        InputError: ``label_smoothing`` is not from 0 to below 1.

    >>> x = torch.eye(2)
    >>> round(contrastive(x, x, torch.eye(2, dtype=torch.bool), torch.tensor(1.0)).item(), 4)  # log(1 + exp(-1))
    0.3133
    """
    if not 0 <= label_smoothing < 1:
        raise InputError(f"label_smoothing={label_smoothing}: must be from 0 (none) to below 1, e.g. 0.1")
    logits_BC = pair_cosine(image_embedding, text_embedding, positives) * scale.float()
    return _both_directions(logits_BC, positives, label_smoothing)


def hard_negative_contrastive(
    image_embedding: Tensor, text_embedding: Tensor, positives: Tensor, scale: Tensor, beta: float = 0.5
) -> Tensor:
    """``contrastive`` whose denominator weighs negatives by hardness.

    The n negatives of a row get the weight ``n softmax(beta * logit)``: HN-NCE of https://arxiv.org/abs/2301.02280 with alpha = 1, which is
    https://arxiv.org/abs/2010.04592 without its debiasing. The weights average 1 and carry gradients, as in the code of the latter.

    Args:
        image_embedding: (B, E)
        text_embedding: (C, E)
        positives: (B, C) bool, True = the caption is one of the picture's.
        scale: (), factor of the cosine.
        beta: Concentration on hard negatives; 0 is ``contrastive``.

    Raises:
        InputError: ``beta`` is negative or not a number.
    """
    if not 0 <= beta < math.inf:
        raise InputError(f"beta={beta}: must be 0 (plain contrastive) or more, e.g. 0.5")
    logits_BC = pair_cosine(image_embedding, text_embedding, positives) * scale.float()
    rows = mean_positive(logits_BC + _log_hardness(logits_BC, positives, beta), positives)
    columns = mean_positive(logits_BC.T + _log_hardness(logits_BC.T, positives.T, beta), positives.T)
    return (rows + columns) / 2


def decoupled_contrastive(image_embedding: Tensor, text_embedding: Tensor, positives: Tensor, scale: Tensor) -> Tensor:
    """``contrastive`` whose denominator holds the negatives alone, mean of both directions.

    Equation 6 of https://arxiv.org/abs/2110.06848 across the modalities: an easy positive no longer weakens the gradient of the negatives,
    which matters where batches are small. A row's loss is the mean over its positives; rows without a positive or without a negative are
    left out. It may be below 0.

    Args:
        image_embedding: (B, E)
        text_embedding: (C, E)
        positives: (B, C) bool, True = the caption is one of the picture's.
        scale: (), factor of the cosine.
    """
    logits_BC = pair_cosine(image_embedding, text_embedding, positives) * scale.float()
    return (_decoupled(logits_BC, positives) + _decoupled(logits_BC.T, positives.T)) / 2


def dynamic_temperature_contrastive(
    image_embedding: Tensor,
    text_embedding: Tensor,
    positives: Tensor,
    temperature_min: float = 0.05,
    temperature_max: float = 0.1,
) -> Tensor:
    """``contrastive`` with a temperature for each pair, by its cosine s.

    ``min + (max - min) (1 + cos(pi (1 + s))) / 2`` of https://arxiv.org/abs/2308.01140 (and its code): lowest for unrelated pairs
    (s = 0), highest for equal and opposite ones. No gradient flows through it. The model's own scale is not used.

    Args:
        image_embedding: (B, E)
        text_embedding: (C, E)
        positives: (B, C) bool, True = the caption is one of the picture's.
        temperature_min: Where s = 0.
        temperature_max: Where s = 1 or -1.

    Raises:
        InputError: a temperature is not above 0, or they are in the wrong order.
    """
    check_temperature(temperature_min, "temperature_min")
    check_temperature(temperature_max, "temperature_max")
    if temperature_max < temperature_min:
        raise InputError(f"temperature_max={temperature_max}: must be at least temperature_min={temperature_min}")
    cosine_BC = pair_cosine(image_embedding, text_embedding, positives)
    swing_BC = (1 + torch.cos(math.pi * (1 + cosine_BC.detach()))) / 2
    return _both_directions(cosine_BC / (temperature_min + (temperature_max - temperature_min) * swing_BC), positives)


def supervised_contrastive(
    image_embedding: Tensor, text_embedding: Tensor, image_id: Tensor, caption_image_id: Tensor, scale: Tensor
) -> Tensor:
    """Whatever shows or tells of one picture finds each other among all pictures and captions: L_out, equation 2 of
    https://arxiv.org/abs/2004.11362, with the picture as the label.

    With one caption per picture it is NT-Xent (equation 1 of https://arxiv.org/abs/2002.05709) whose two views are picture and caption.
    Beside ``contrastive``, other pictures are negatives of pictures, and other captions of captions. A batch of one picture with one
    caption gives 0.

    Args:
        image_embedding: (B, E)
        text_embedding: (C, E)
        image_id: (B,)
        caption_image_id: (C,)
        scale: (), factor of the cosine.
    """
    all_NE = torch.cat([image_embedding.float(), text_embedding.float()])
    return same_picture(cosine(all_NE, all_NE) * scale.float(), torch.cat([image_id, caption_image_id]))


def sigmoid_pairwise(image_embedding: Tensor, text_embedding: Tensor, positives: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Every pair is a yes-or-no question: https://arxiv.org/abs/2303.15343, section 3.2, with any number of captions per picture.

    The sum over all pairs is divided by the number of captions, each of which has one positive: at C = B it is the paper's 1 / |B|.

    Args:
        image_embedding: (B, E)
        text_embedding: (C, E)
        positives: (B, C) bool, True = the caption is one of the picture's.
        scale: (), factor of the cosine.
        bias: (), added to the scaled cosine.
    """
    logits_BC = pair_cosine(image_embedding, text_embedding, positives) * scale.float() + bias.float()
    return -F.logsigmoid(torch.where(positives, logits_BC, -logits_BC)).sum() / len(text_embedding)


def _both_directions(logits_BC: Tensor, positives_BC: Tensor, label_smoothing: float = 0.0) -> Tensor:
    rows = mean_positive(logits_BC, positives_BC, label_smoothing)
    return (rows + mean_positive(logits_BC.T, positives_BC.T, label_smoothing)) / 2


def _decoupled(logits_NM: Tensor, positives_NM: Tensor) -> Tensor:
    count_N = positives_NM.sum(dim=1)
    valid_N = (count_N > 0) & ~positives_NM.all(dim=1)
    positive_N = (logits_NM * positives_NM).sum(dim=1) / count_N.clamp(min=1)
    negative_N = logits_NM.masked_fill(positives_NM, LOWEST).logsumexp(dim=1)
    return torch.where(valid_N, negative_N - positive_N, 0.0).sum() / valid_N.sum().clamp(min=1)


def _log_hardness(logits_NM: Tensor, positives_NM: Tensor, beta: float) -> Tensor:
    """Logarithm of each negative's weight ``n softmax(beta * logit)``; 0 for positives."""
    tilted_NM = (beta * logits_NM).masked_fill(positives_NM, LOWEST)  # not -inf: a row of positives stays finite
    count_N1 = (~positives_NM).sum(dim=1, keepdim=True).clamp(min=1)
    return (F.log_softmax(tilted_NM, dim=1) + count_N1.log()).masked_fill(positives_NM, 0.0)
