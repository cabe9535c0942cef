"""Scaled cosines in full precision, and the mean of ``-log softmax`` over positives: what the contrastive losses are made of.

N queries, M candidates, E width of the embedding. Embeddings have length 1.
"""

from __future__ import annotations

import contextlib
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from insight.errors import InputError

LOWEST = torch.finfo(torch.float32).min  # of a logit that is no candidate; -inf would make a row of such ones NaN


def full_precision(x: Tensor) -> contextlib.AbstractContextManager[object]:
    """Autocast off on the tensor's device: inside it, a product of float32 matrices would be taken in half precision."""
    if x.device.type == "meta":  # no autocast there, and asking raises
        return contextlib.nullcontext()
    return torch.autocast(x.device.type, enabled=False)


def cosine(query_NE: Tensor, candidate_ME: Tensor) -> Tensor:
    """(N, M) float32, also under autocast."""
    with full_precision(query_NE):
        return query_NE.float() @ candidate_ME.float().T


def pair_cosine(image_BE: Tensor, text_CE: Tensor, positives_BC: Tensor) -> Tensor:
    """Cosines (B, C), after a look at the shapes.

    Raises:
        ValueError: ``positives_BC`` is not of B pictures and C captions.
    """
    if positives_BC.shape != (len(image_BE), len(text_CE)):
        raise ValueError(f"positives is {tuple(positives_BC.shape)}, but there are {len(image_BE)} pictures and {len(text_CE)} captions")
    return cosine(image_BE, text_CE)


def mean_positive(logits_NM: Tensor, positives_NM: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Mean over rows with positives of their mean ``-log softmax``. No boolean indexing: it would wait for the device.

    ``label_smoothing`` of the target lies evenly on all candidates: https://arxiv.org/abs/1512.00567, section 7.
    """
    positive_NM, count_N = positives_NM.float(), positives_NM.sum(dim=1)
    log_softmax_NM = F.log_softmax(logits_NM, dim=1)
    loss_N = -(log_softmax_NM * positive_NM).sum(dim=1) / count_N.clamp(min=1)
    if label_smoothing:
        loss_N = (1 - label_smoothing) * loss_N - label_smoothing * log_softmax_NM.mean(dim=1) * (count_N > 0)
    return loss_N.sum() / (count_N > 0).sum().clamp(min=1)


def same_picture(logits_NN: Tensor, id_N: Tensor) -> Tensor:
    """Rows of one picture find each other among all rows: L_out, equation 2 of https://arxiv.org/abs/2004.11362.

    Rows that have no other row of their picture only serve as negatives.

    Args:
        logits_NN: Scaled cosines of all rows with all rows; no row is a candidate of its own.
        id_N: Picture of each row.
    """
    own_NN = torch.eye(len(id_N), dtype=torch.bool, device=id_N.device)
    positives_NN = (id_N[:, None] == id_N[None, :]) & ~own_NN
    return mean_positive(logits_NN.masked_fill(own_NN, LOWEST), positives_NN)


def check_temperature(temperature: float, name: str = "temperature") -> None:
    """
    Raises:
        InputError: not above 0.
    """
    if not 0 < temperature < math.inf:
        raise InputError(f"{name}={temperature}: must be above 0, e.g. 0.1")
