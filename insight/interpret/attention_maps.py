"""What the attention weights alone say of where a score comes from: the last layer's, and their rollout. Blind to what is scored.

R rows, H heads, N = 1 + patches image tokens (row 0 = class token), P patches, T text tokens.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from insight.interpret.explain import Subject, Values
from insight.interpret.family import Lacks
from insight.interpret.record import record_attention
from insight.interpret.rollout import rollout


def raw_attention(subject: Subject) -> Values:
    """Mean over heads of the last layer's weights, as the token that is read out sees them: the class token, the mean of the words.

    Where text reads the image (fusion), patches get what the words pay to them in the last such layer, and ``pairs`` is that map itself.
    """
    flow, readout = subject.family.flow, subject.family.readout(subject.inputs)
    with record_attention(subject.family.model) as maps:
        score_R = subject.score(subject.inputs)
    pairs_RTP = None
    if flow.fusion:
        own, crossing = (maps[name].mean(dim=1) for name in flow.fusion[-1])
        pairs_RTP = crossing[..., 1:]
        return Values(score_R, read(readout.text_RT, pairs_RTP), read(readout.text_RT, own), pairs_RTP)
    image_RN = read(readout.image_RN, maps[flow.image[-1]].mean(dim=1)) if flow.image else None
    text_RT = read(readout.text_RT, maps[flow.text[-1]].mean(dim=1)) if flow.text else None
    return Values(score_R, None if image_RN is None else image_RN[:, 1:], text_RT)


def rollout_map(subject: Subject) -> Values:
    """Attention rollout (https://arxiv.org/abs/2005.00928) over all layers, read out as the score is.

    Through a fusion layer the same rule: half of what a word holds stays, half comes from what it reads, first the text, then the image.
    """
    flow, readout = subject.family.flow, subject.family.readout(subject.inputs)
    with record_attention(subject.family.model) as maps:
        score_R = subject.score(subject.inputs)
    image_RNN = rollout([maps[name] for name in flow.image]) if flow.image else None
    text_RTT = rollout([maps[name] for name in flow.text]) if flow.text else None
    if flow.fusion:
        if flow.closed:
            raise Lacks("rollout goes through the attention of both towers, and one of them is an encoder of another library")
        text_RTT = identity_of(text_RTT, subject.inputs.text_RTD)
        image_RNN = identity_of(image_RNN, subject.inputs.image_RND)
        text_RTT, pairs_RTN = fused_rollout(text_RTT, image_RNN, maps, flow.fusion)
        pairs_RTP = pairs_RTN[..., 1:]
        return Values(score_R, read(readout.text_RT, pairs_RTP), read(readout.text_RT, text_RTT), pairs_RTP)
    image_RN, text_RT = read(readout.image_RN, image_RNN), read(readout.text_RT, text_RTT)
    return Values(score_R, None if image_RN is None else image_RN[:, 1:], text_RT)


def identity_of(rolled_RTT: Tensor | None, tokens_RTD: Tensor | None) -> Tensor:
    """A side without a tower of its own (a decoder's text) begins with each token as itself."""
    if rolled_RTT is not None:
        return rolled_RTT
    assert tokens_RTD is not None, "fusion has two sides"
    return torch.eye(tokens_RTD.shape[1], device=tokens_RTD.device).expand(len(tokens_RTD), -1, -1)


def fused_rollout(
    text_RTT: Tensor, image_RNN: Tensor, maps: Mapping[str, Tensor], fusion: tuple[tuple[str, str], ...]
) -> tuple[Tensor, Tensor]:
    """What each fused word draws from each word (R, T, T) and from each image token (R, T, N); the two sum to 1 over a row."""
    pairs_RTN = torch.zeros(*text_RTT.shape[:2], image_RNN.shape[-1], device=text_RTT.device)
    for own, crossing in fusion:
        own_RTT, crossing_RTN = maps[own].mean(dim=1), maps[crossing].mean(dim=1)
        text_RTT, pairs_RTN = (text_RTT + own_RTT @ text_RTT) / 2, (pairs_RTN + own_RTT @ pairs_RTN) / 2
        text_RTT, pairs_RTN = text_RTT / 2, (pairs_RTN + crossing_RTN @ image_RNN) / 2
    return text_RTT, pairs_RTN


def read(readout_RQ: Tensor | None, map_RQS: Tensor | None) -> Tensor | None:
    """(R, Q), (R, Q, S) -> (R, S): the map as what is read out sees it."""
    if readout_RQ is None or map_RQS is None:
        return None
    return (readout_RQ[:, None] @ map_RQS)[:, 0]
