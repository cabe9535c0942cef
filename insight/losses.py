"""Losses as plain functions. The names of the parameters without a default are the quantities that a loss asks for.

B pictures, C captions, E width of the embedding, M matched pairs, V = 2B views. Embeddings have length 1.
Every loss computes in float32, also under autocast, and is finite on any batch, however short, unless its docstring says that it raises.
"""

from __future__ import annotations

import contextlib
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from insight.errors import InputError

NO_NEGATIVE = -1  # from hard_negatives(): the row has no negative at all
IGNORED = -100  # a target that is no target


def contrastive(image_embedding: Tensor, text_embedding: Tensor, positives: Tensor, scale: Tensor) -> Tensor:
    """Multi-positive InfoNCE, mean of both directions.

    A row's loss is the mean over its positives of ``-log softmax``: L_out, equation 2 of https://arxiv.org/abs/2004.11362, where the
    denominator holds positives and negatives. With one positive each it is the loss of CLIP (https://arxiv.org/abs/2103.00020, figure 3).
    Rows without a positive are left out.

    Args:
        image_embedding: (B, E)
        text_embedding: (C, E)
        positives: (B, C) bool, True = the caption is one of the picture's.
        scale: (), factor of the cosine (1 / temperature).

    >>> x = torch.eye(2)
    >>> round(contrastive(x, x, torch.eye(2, dtype=torch.bool), torch.tensor(1.0)).item(), 4)  # log(1 + exp(-1))
    0.3133
    """
    logits_BC = _logits(image_embedding, text_embedding, positives, scale)
    return (_mean_positive(logits_BC, positives) + _mean_positive(logits_BC.T, positives.T)) / 2


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
    logits_BC = _logits(image_embedding, text_embedding, positives, scale)
    rows = _mean_positive(logits_BC + _log_hardness(logits_BC, positives, beta), positives)
    columns = _mean_positive(logits_BC.T + _log_hardness(logits_BC.T, positives.T, beta), positives.T)
    return (rows + columns) / 2


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
    logits_BC = _logits(image_embedding, text_embedding, positives, scale) + bias.float()
    return -F.logsigmoid(torch.where(positives, logits_BC, -logits_BC)).sum() / len(text_embedding)


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
    _check_temperature(temperature)
    scores_BC, positives_BC = similarity_BC.detach().float().cpu() / temperature, positives_BC.cpu()
    drawn = []
    for scores, positives in ((scores_BC, positives_BC), (scores_BC.T, positives_BC.T)):
        gumbel = -torch.empty(scores.shape).exponential_(generator=generator).log()
        rows = (scores + gumbel).masked_fill(positives, -math.inf).argmax(dim=1)
        drawn.append(rows.masked_fill(positives.all(dim=1), NO_NEGATIVE).to(similarity_BC.device))
    return drawn[0], drawn[1]


def word_classification(word_logits: Tensor, word_counts: Tensor) -> Tensor:
    """Which words do people use of this picture? The image tower alone, with the tokens of the captions as classes.

    Softmax cross-entropy to the counts of the words, weighted by inverse document frequency and divided by their sum: section 3 of
    https://arxiv.org/abs/2411.03313, with counts for ones (several captions agree on what matters) and with the frequencies of the batch:
    ``log(B / pictures with the word)``. So what is said of every picture weighs nothing. Pictures whose every word is such are left out.

    Args:
        word_logits: (B, V)
        word_counts: (B, V), how often each token occurs in the picture's captions.
    """
    frequency_V = (word_counts > 0).sum(dim=0).clamp(min=1)
    weight_BV = word_counts.float() * (len(word_counts) / frequency_V).log()
    sum_B = weight_BV.sum(dim=1)
    loss_B = -(F.log_softmax(word_logits.float(), dim=1) * weight_BV).sum(dim=1) / sum_B.clamp(min=1e-6)
    return loss_B.sum() / (sum_B > 0).sum().clamp(min=1)


def masked_language_modelling(masked_logits: Tensor, masked_targets: Tensor, masked_count: Tensor) -> Tensor:
    """Name the hidden words from the words around them and the picture: https://arxiv.org/abs/2107.07651, equation 4.

    Args:
        masked_logits: (B, P, V)
        masked_targets: (B, P) int64, ``IGNORED`` where there is nothing to name.
        masked_count: (), hidden words of the whole batch divided by the number of devices: the mean over devices is the mean over words.
    """
    loss = F.cross_entropy(masked_logits.float().flatten(0, 1), masked_targets.flatten(), ignore_index=IGNORED, reduction="sum")
    return loss / masked_count.clamp(min=1)


def text_masked_language_modelling(text_masked_logits: Tensor, text_masked_targets: Tensor, text_masked_count: Tensor) -> Tensor:
    """Name the hidden words from the words around them alone: https://arxiv.org/abs/1810.04805, section 3.1.

    Args:
        text_masked_logits: (C, P, V)
        text_masked_targets: (C, P) int64, ``IGNORED`` where there is nothing to name.
        text_masked_count: (), hidden words of the whole batch divided by the number of devices.
    """
    return masked_language_modelling(text_masked_logits, text_masked_targets, text_masked_count)


def causal_language_modelling(next_logits: Tensor, next_targets: Tensor, next_count: Tensor) -> Tensor:
    """Name each token from those before it: the negative of L1, equation 1 of Radford et al. 2018, "Improving Language Understanding by
    Generative Pre-Training", with as many tokens before it as the context holds, as a mean over tokens.

    Args:
        next_logits: (C, T, V)
        next_targets: (C, T) int64, ``IGNORED`` where there is nothing to name.
        next_count: (), named tokens of the whole batch divided by the number of devices: the mean over devices is the mean over tokens.

    >>> round(causal_language_modelling(torch.zeros(1, 2, 8), torch.tensor([[3, IGNORED]]), torch.tensor(1)).item(), 4)  # log(8)
    2.0794
    """
    loss = F.cross_entropy(next_logits.float().flatten(0, 1), next_targets.flatten(), ignore_index=IGNORED, reduction="sum")
    return loss / next_count.clamp(min=1)


def captioning(caption_logits: Tensor, caption_targets: Tensor, caption_count: Tensor) -> Tensor:
    """Write the caption of the picture, each token from those before it: equation 2 of https://arxiv.org/abs/2205.01917 (CoCa).

    The paper's sum over tokens is a mean here, so that long captions and large batches weigh no more than others.

    Args:
        caption_logits: (C, T, V), of what comes after each token.
        caption_targets: (C, T) int64, ``IGNORED`` where a caption has ended.
        caption_count: (), tokens to write in the whole batch divided by the number of devices.
    """
    return causal_language_modelling(caption_logits, caption_targets, caption_count)


def answer_classification(answer_logits: Tensor, answer_targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Choose the answer of a question about a picture: cross-entropy over all answers, as https://arxiv.org/abs/1505.00468.

    Args:
        answer_logits: (C, A), for C questions and A answers.
        answer_targets: (C,) int64
        label_smoothing: Part of the target that is spread over all answers.

    Raises:
        InputError: ``label_smoothing`` is not in 0..1.
    """
    if not 0 <= label_smoothing < 1:
        raise InputError(f"label_smoothing={label_smoothing}: must be at least 0 and below 1")
    return F.cross_entropy(answer_logits.float(), answer_targets, label_smoothing=label_smoothing)


def decorrelation(image_embedding: Tensor, text_embedding: Tensor) -> Tensor:
    """Dimensions of an embedding should say different things: the covariance term of https://arxiv.org/abs/2105.04906, summed over both.

    ``c(Z) = 1/E * sum over i != j of Cov(Z)_ij ** 2`` (equations 3-4). The paper's dimensions have variance 1; those of a vector of
    length 1 have about 1/E, so Z is the embedding times sqrt(E). A batch of one has covariance 0.

    Args:
        image_embedding: (B, E)
        text_embedding: (C, E)
    """
    return _covariance_penalty(image_embedding) + _covariance_penalty(text_embedding)


def feature_consistency(
    image_embedding: Tensor, text_embedding: Tensor, previous_image_embedding: Tensor, previous_text_embedding: Tensor
) -> Tensor:
    """Stay near what the stage before knew: ``1 - cosine`` to its embeddings, mean of pictures and captions; 0 = unchanged, 2 = opposite.

    Args:
        image_embedding: (B, E)
        text_embedding: (C, E)
        previous_image_embedding: (B, E), by the frozen model of the previous stage; no gradient flows into it.
        previous_text_embedding: (C, E), likewise.
    """
    image_B = F.cosine_similarity(image_embedding.float(), previous_image_embedding.detach().float(), dim=-1)
    text_C = F.cosine_similarity(text_embedding.float(), previous_text_embedding.detach().float(), dim=-1)
    return 1 - (image_B.mean() + text_C.mean()) / 2


def image_views(image_embedding: Tensor, view_embedding: Tensor, image_id: Tensor, temperature: float = 0.1) -> Tensor:
    """Two views of a picture find each other among all views: NT-Xent, equation 1 of https://arxiv.org/abs/2002.05709.

    Other copies of the same picture in the batch are neither positives nor negatives. A batch of one picture gives 0.

    Args:
        image_embedding: (B, E)
        view_embedding: (B, E), another view of the same pictures.
        image_id: (B,)
        temperature: Divides the cosine.

    Raises:
        InputError: ``temperature`` is not above 0.
    """
    _check_temperature(temperature)
    views_VE, rows = torch.cat([image_embedding.float(), view_embedding.float()]), len(image_embedding)
    with _full_precision(views_VE):
        logits_VV = views_VE @ views_VE.T / temperature
    id_V, row_V = torch.cat([image_id, image_id]), torch.arange(2 * rows, device=image_id.device)
    partner_V = (row_V + rows) % (2 * rows)
    ignored_VV = (id_V[:, None] == id_V[None, :]) & (row_V[None, :] != partner_V[:, None])
    return F.cross_entropy(logits_VV.masked_fill(ignored_VV, -math.inf), partner_V)


def caption_pairs(text_embedding: Tensor, caption_image_id: Tensor, temperature: float = 0.1) -> Tensor:
    """Captions of one picture find each other among all captions: L_out, equation 2 of https://arxiv.org/abs/2004.11362.

    Captions that have no other caption of their picture in the batch only serve as negatives.

    Args:
        text_embedding: (C, E)
        caption_image_id: (C,)
        temperature: Divides the cosine.

    Raises:
        InputError: no picture of the batch has two captions, or ``temperature`` is not above 0.
    """
    _check_temperature(temperature)
    own_CC = torch.eye(len(text_embedding), dtype=torch.bool, device=text_embedding.device)
    positives_CC = (caption_image_id[:, None] == caption_image_id[None, :]) & ~own_CC
    if not positives_CC.any():
        raise InputError("caption_pairs: no picture of this batch has two captions; set the stage's data.captions_per_image to 2 or more")
    text_CE = text_embedding.float()
    with _full_precision(text_CE):
        logits_CC = text_CE @ text_CE.T / temperature
    return _mean_positive(logits_CC.masked_fill(own_CC, torch.finfo(torch.float32).min), positives_CC)


def _full_precision(x: Tensor) -> contextlib.AbstractContextManager[object]:
    """Autocast off on the tensor's device: inside it, a product of float32 matrices would be taken in half precision."""
    if x.device.type == "meta":  # no autocast there, and asking raises
        return contextlib.nullcontext()
    return torch.autocast(x.device.type, enabled=False)


def _logits(image_BE: Tensor, text_CE: Tensor, positives_BC: Tensor, scale: Tensor) -> Tensor:
    if positives_BC.shape != (len(image_BE), len(text_CE)):
        raise ValueError(f"positives is {tuple(positives_BC.shape)}, but there are {len(image_BE)} pictures and {len(text_CE)} captions")
    with _full_precision(image_BE):
        return image_BE.float() @ text_CE.float().T * scale.float()


def _mean_positive(logits_NM: Tensor, positives_NM: Tensor) -> Tensor:
    """Mean over rows with positives of their mean ``-log softmax``. No boolean indexing: it would wait for the device."""
    positive_NM, count_N = positives_NM.float(), positives_NM.sum(dim=1)
    loss_N = -(F.log_softmax(logits_NM, dim=1) * positive_NM).sum(dim=1) / count_N.clamp(min=1)
    return loss_N.sum() / (count_N > 0).sum().clamp(min=1)


def _log_hardness(logits_NM: Tensor, positives_NM: Tensor, beta: float) -> Tensor:
    """Logarithm of each negative's weight ``n softmax(beta * logit)``; 0 for positives."""
    tilted_NM = (beta * logits_NM).masked_fill(positives_NM, torch.finfo(torch.float32).min)  # not -inf: a row of positives stays finite
    count_N1 = (~positives_NM).sum(dim=1, keepdim=True).clamp(min=1)
    return (F.log_softmax(tilted_NM, dim=1) + count_N1.log()).masked_fill(positives_NM, 0.0)


def _covariance_penalty(embedding_NE: Tensor) -> Tensor:
    rows, width = embedding_NE.shape
    centred_NE = embedding_NE.float() * math.sqrt(width)
    centred_NE = centred_NE - centred_NE.mean(dim=0)
    with _full_precision(centred_NE):
        covariance_EE = centred_NE.T @ centred_NE / max(1, rows - 1)
    return (covariance_EE.square().sum() - covariance_EE.diagonal().square().sum()) / width


def _check_temperature(temperature: float) -> None:
    if not 0 < temperature < math.inf:
        raise InputError(f"temperature={temperature}: must be above 0, e.g. 0.1")
