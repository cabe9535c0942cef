"""Relevance by attention and its gradient: Chefer, Gur, Wolf 2021, https://arxiv.org/abs/2103.15679 ("the paper" below).

R rows, H heads, T text tokens, N = 1 + patches image tokens, Q queries, S keys, P patches. ``A_bar`` of a layer is (R, Q, S).
"""

from __future__ import annotations

import torch
from torch import Tensor

from insight.errors import InputError
from insight.interpret.attention_gradients import WeightsAndGradient, attention_gradients
from insight.interpret.attention_maps import read
from insight.interpret.explain import Subject, Values


def chefer_relevance(subject: Subject, start_layer: int = 0) -> Values:
    """Relevance of every token for what is read out, gathered layer by layer.

    Towers follow the rule of self-attention. Where text reads the image, the rules of an encoder-decoder: ``pairs`` is what each word got
    from each patch, ``image`` and ``text`` what the mean of the words got.

    Args:
        start_layer: First layer of each tower that counts; negative counts from the end. The published maps of CLIP use -1, the last
            alone; on small models all layers point better. Fusion layers all count.
    """
    flow, readout = subject.family.flow, subject.family.readout(subject.inputs)
    image_layers, text_layers = (from_layer(layers, start_layer) for layers in (flow.image, flow.text))
    fusion = [name for pair in flow.fusion for name in pair]
    score_R, layers = attention_gradients(subject, [*image_layers, *text_layers, *fusion])
    bars = {name: mean_positive(layer) for name, layer in layers.items()}
    image_RNN = chain(identity(subject.inputs.image_RND), [bars[name] for name in image_layers])
    text_RTT = chain(identity(subject.inputs.text_RTD), [bars[name] for name in text_layers])
    if flow.fusion:
        assert text_RTT is not None and image_RNN is not None, "fusion has two sides"
        text_RTT, pairs_RTN = encoder_decoder(text_RTT, image_RNN, [(bars[own], bars[crossing]) for own, crossing in flow.fusion])
        pairs_RTP = pairs_RTN[..., 1:]
        return Values(score_R, read(readout.text_RT, pairs_RTP), read(readout.text_RT, text_RTT), pairs_RTP)
    image_RN = read(readout.image_RN, image_RNN)
    return Values(score_R, None if image_RN is None else image_RN[:, 1:], read(readout.text_RT, text_RTT))


# --- the paper's rules ---
def mean_positive(layer: WeightsAndGradient) -> Tensor:
    """``A_bar``: mean over heads of what is positive in weight x gradient (equation 5)."""
    return (layer.weights_RHTS * layer.gradient_RHTS).clamp(min=0).mean(dim=1)


def self_attention(relevance_RQX: Tensor, bar_RQQ: Tensor) -> Tensor:
    """``R + A_bar R`` (equations 6 and 7): R is what the queries got from any tokens X, their own kind or another."""
    return relevance_RQX + bar_RQQ @ relevance_RQX


def cross_attention(own_RQQ: Tensor, context_RSS: Tensor, pairs_RQS: Tensor, bar_RQS: Tensor) -> Tensor:
    """``R_qs + R_qq^T A_bar R_ss`` (equation 10), with R_qq and R_ss normalised (equations 8 and 9)."""
    return pairs_RQS + normalised(own_RQQ).transpose(-2, -1) @ bar_RQS @ normalised(context_RSS)


def normalised(relevance_RQQ: Tensor) -> Tensor:
    """Each row of ``R - I`` divided by its sum, plus I (equations 8 and 9); a row that gained nothing stays that of I."""
    identity_QQ = torch.eye(relevance_RQQ.shape[-1], device=relevance_RQQ.device)
    gained_RQQ = relevance_RQQ - identity_QQ
    total_RQ1 = gained_RQQ.sum(dim=-1, keepdim=True)
    return torch.where(total_RQ1 > 0, gained_RQQ / total_RQ1.where(total_RQ1 > 0, 1.0), 0.0) + identity_QQ


def encoder_decoder(text_RTT: Tensor, image_RNN: Tensor, layers: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """What words got from words (R, T, T) and from image tokens (R, T, N), layer by layer: own attention, then reading the image.

    The image never reads the text, so of the paper's rules those for R_ti remain (section 3.2, "encoder-decoder"; the sum of equation 11
    is over what the context got from the queries: nothing).

    Args:
        layers: (A_bar of the words' self-attention (R, T, T), A_bar of the words reading the image (R, T, N)) per fusion layer.
    """
    pairs_RTN = text_RTT.new_zeros(*text_RTT.shape[:2], image_RNN.shape[-1])
    for own_RTT, crossing_RTN in layers:
        text_RTT, pairs_RTN = self_attention(text_RTT, own_RTT), self_attention(pairs_RTN, own_RTT)
        pairs_RTN = cross_attention(text_RTT, image_RNN, pairs_RTN, crossing_RTN)
    return text_RTT, pairs_RTN


def chain(start_RNN: Tensor | None, bars: list[Tensor]) -> Tensor | None:
    """The rule of self-attention through one tower."""
    for bar_RNN in bars:
        assert start_RNN is not None, "a tower with layers has tokens"
        start_RNN = self_attention(start_RNN, bar_RNN)
    return start_RNN


def identity(tokens_RND: Tensor | None) -> Tensor | None:
    """(R, N, N): at first every token is relevant to itself alone."""
    if tokens_RND is None:
        return None
    return torch.eye(tokens_RND.shape[1], device=tokens_RND.device).expand(len(tokens_RND), -1, -1)


def from_layer(layers: tuple[str, ...], start: int) -> tuple[str, ...]:
    """
    Raises:
        InputError: there is no such layer.
    """
    if layers and not -len(layers) <= start < len(layers):
        raise InputError(f"start_layer={start}: the tower has {len(layers)} layers, give {-len(layers)} to {len(layers) - 1}")
    return layers[start:]
