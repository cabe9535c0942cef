"""Gradient methods for the tokens of a transformer: LeGrad, Grad-ECLIP, Grad-CAM.

R rows, H heads, T queries, S keys, K width of one head, D width, N = 1 + patches image tokens, P patches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from insight.interpret.attention_gradients import at_outputs, at_weights, itself, with_gradient
from insight.interpret.explain import Subject, Values
from insight.interpret.record import attention_layers, record
from insight.interpret.relevance import from_layer
from insight.nn.attention import AttentionCall


# --- LeGrad ---
def legrad(subject: Subject, start_layer: int = 0) -> Values:
    """Gradient of the score that each layer alone would give, to that layer's weights: https://arxiv.org/abs/2404.03214.

    The score of layer l is that of the mean of its tokens; negative gradients are cut, then mean over heads and (real) queries, sum over
    layers. The paper's last step, min-max over the picture, is left out: it is for drawing.

    Args:
        start_layer: First layer that counts; negative counts from the end (the authors' code uses -2).

    Raises:
        Lacks: the family reads its towers by another network, so that a layer alone has no score.
    """
    inputs, flow = subject.inputs, subject.family.flow
    image, text = (from_layer(names, start_layer) for names in (flow.image, flow.text))
    with torch.enable_grad(), record(subject.family.model, dict.fromkeys([*image, *text], itself)) as calls:
        scores = subject.family.layer_scores(inputs)
        counted = [*scores.image[len(scores.image) - len(image) :], *scores.text[len(scores.text) - len(text) :]]
        gradients = at_outputs(subject.counted(torch.stack(counted).sum(dim=0)), calls)
    maps = {name: at_weights(gradients[name], call) for name, call in calls.items()}
    image_RN = sum_of([positive_mean(maps[name], inputs.image_mask_RN) for name in image])
    text_RT = sum_of([positive_mean(maps[name], inputs.text_mask_RT) for name in text])
    return Values(scores.score_R, None if image_RN is None else image_RN[:, 1:], text_RT)


def sum_of(maps: list[Tensor]) -> Tensor | None:
    return torch.stack(maps).sum(dim=0) if maps else None


def positive_mean(gradient_RHTS: Tensor, mask_RT: Tensor | None) -> Tensor:
    """(R, S): mean over heads and real queries of what is positive."""
    positive_RTS = gradient_RHTS.clamp(min=0).mean(dim=1)
    if mask_RT is None:
        return positive_RTS.mean(dim=1)
    return (positive_RTS * mask_RT[..., None]).sum(dim=1) / mask_RT.sum(dim=1, keepdim=True)


# --- Grad-ECLIP ---
def grad_eclip(subject: Subject) -> Values:
    """Gradient at the last attention's output x values x a loosened attention: https://arxiv.org/abs/2502.18816.

    ``ReLU(sum_t lambda_ts sum_d g_td v_sd)`` over queries t that are read out and channels d of all heads. ``lambda`` is the cosine of
    query and key after the layer's output map, stretched to 0..1 over the keys: wider than softmax. The authors' code runs the last layer
    again with a single head; here it is the model's own, with all of its heads.

    Where text reads the image, patches are scored by the last layer that reads them, words by the last self-attention beside it.
    """
    flow, inputs = subject.family.flow, subject.inputs
    last_text, last_image = flow.fusion[-1] if flow.fusion else (last(flow.text), last(flow.image))
    names = [name for name in (last_image, last_text) if name]
    with torch.enable_grad(), record(subject.family.model, dict.fromkeys(names, itself)) as calls:
        score_R = subject.score(with_gradient(inputs))
        gradients = at_outputs(score_R, calls)
    layers = attention_layers(subject.family.model)
    image_RP = text_RT = None
    if last_image:
        image_RP = eclip(gradients[last_image], patches_only(calls[last_image]), layers[last_image].output)
    if last_text:
        text_RT = eclip(gradients[last_text], calls[last_text], layers[last_text].output)
    return Values(score_R, image_RP, text_RT)


@torch.no_grad()
def eclip(gradient_RHTK: Tensor, call: AttentionCall, output: nn.Linear) -> Tensor:
    """(R, S): the formula above, for one layer."""
    query_RTD, key_RSD = (output(heads.transpose(1, 2).flatten(2)).float() for heads in (call.query_BHTK, call.key_BHSK))
    cosine_RTS = F.normalize(query_RTD, dim=-1) @ F.normalize(key_RSD, dim=-1).transpose(-2, -1)
    low, high = cosine_RTS, cosine_RTS
    if call.mask_BS is not None or call.bias_HTS is not None:
        hidden_RTS = torch.zeros_like(cosine_RTS, dtype=torch.bool) if call.mask_BS is None else ~call.mask_BS[:, None]
        if call.bias_HTS is not None:  # all heads agree on which keys come too late
            hidden_RTS = hidden_RTS | call.bias_HTS[0].isneginf()
        low, high = cosine_RTS.masked_fill(hidden_RTS, torch.inf), cosine_RTS.masked_fill(hidden_RTS, -torch.inf)
    low_RT1, high_RT1 = low.amin(dim=-1, keepdim=True), high.amax(dim=-1, keepdim=True)
    spread_RT1 = high_RT1 - low_RT1
    even = spread_RT1 <= 0  # one key, or all alike: none is preferred
    loosened_RTS = torch.where(even, 1.0, (cosine_RTS - low_RT1) / spread_RT1.masked_fill(even, 1.0))
    return (loosened_RTS * at_weights(gradient_RHTK, call).sum(dim=1)).sum(dim=1).relu()


def patches_only(call: AttentionCall) -> AttentionCall:
    """Without the class token among the keys."""
    mask_RP = None if call.mask_BS is None else call.mask_BS[:, 1:]
    bias_HTP = None if call.bias_HTS is None else call.bias_HTS[..., 1:]
    return call._replace(key_BHSK=call.key_BHSK[:, :, 1:], value_BHSK=call.value_BHSK[:, :, 1:], mask_BS=mask_RP, bias_HTS=bias_HTP)


# --- Grad-CAM ---
def grad_cam(subject: Subject) -> Values:
    """``ReLU(sum_d mean_i(g_id) x_id)`` over tokens i: https://arxiv.org/abs/1610.02391, equations 1 and 2, with tokens as the pixels.

    x are the tokens that a tower's last attention reads (after its LayerNorm), without the class token: after it only the class token is
    read out, and patches have no gradient. Where text reads the image, x is what the last such layer reads.
    """
    flow, inputs = subject.family.flow, subject.inputs
    last_text, last_image = flow.fusion[-1] if flow.fusion else (last(flow.text), last(flow.image))
    names = [name for name in (last_image, last_text) if name]
    with torch.enable_grad(), heard_by(subject.family.model, names) as heard:
        score_R = subject.score(with_gradient(inputs))
        tokens = [heard[name] for name in names]
        gradients = dict(zip(names, torch.autograd.grad(score_R.sum(), tokens, materialize_grads=True), strict=True))
    image_RP = text_RT = None
    if last_image:
        image_RP = cam(heard[last_image][:, 1:], gradients[last_image][:, 1:], None)
    if last_text:
        text_RT = cam(heard[last_text], gradients[last_text], inputs.text_mask_RT)
    return Values(score_R, image_RP, text_RT)


@torch.no_grad()
def cam(tokens_RSD: Tensor, gradient_RSD: Tensor, mask_RS: Tensor | None) -> Tensor:
    """(R, S): the formula above; the mean is over tokens that the mask allows."""
    tokens_RSD, gradient_RSD = tokens_RSD.float(), gradient_RSD.float()
    if mask_RS is None:
        channel_R1D = gradient_RSD.mean(dim=1, keepdim=True)
    else:
        channel_R1D = (gradient_RSD * mask_RS[..., None]).sum(dim=1, keepdim=True) / mask_RS.sum(dim=1)[:, None, None]
    return (channel_R1D * tokens_RSD).sum(dim=-1).relu()


@contextmanager
def heard_by(model: nn.Module, names: list[str]) -> Iterator[dict[str, Tensor]]:
    """The context (R, S, D) that each named attention is called with, in the graph."""
    heard: dict[str, Tensor] = {}
    layers = attention_layers(model)
    handles = [layers[name].register_forward_pre_hook(_listener(name, heard)) for name in names]
    try:
        yield heard
    finally:
        for handle in handles:
            handle.remove()


def _listener(name: str, heard: dict[str, Tensor]) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def listen(layer: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        heard[name] = arguments[1]

    return listen


def last(names: tuple[str, ...]) -> str | None:
    return names[-1] if names else None
