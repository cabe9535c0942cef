"""Words as targets: which words go with a picture, which words are hidden, which come next, which answers a question.

B pictures, C captions, P hidden places of a caption, T places of a text, V vocabulary.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from insight.errors import InputError

IGNORED = -100  # a target that is no target


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
