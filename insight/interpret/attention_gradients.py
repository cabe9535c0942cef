"""How a score depends on attention weights, beside the fused kernel. R rows, H heads, T queries, S keys, K width of one head.

The fused kernel never shows its weights A, so nothing can be derived by them. But the heads' output is ``O = A V``, and where A is taken as
free, ``d score / d A = (d score / d O) V^T``: the gradient at the kernel's output is all that is needed, and the model runs as it always
does.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import torch
from torch import Tensor

from insight.interpret.explain import Subject
from insight.interpret.family import Inputs, Lacks
from insight.interpret.record import record, weights_of
from insight.nn.attention import AttentionCall


class WeightsAndGradient(NamedTuple):
    """Of one layer, float32."""

    weights_RHTS: Tensor
    gradient_RHTS: Tensor  # of the sum of the scores; each row's score depends on its own row alone


def attention_gradients(subject: Subject, layers: Collection[str]) -> tuple[Tensor, dict[str, WeightsAndGradient]]:
    """Scores (R,), and weights with gradients by module path: one pass forward, one back.

    Raises:
        Lacks: there is no layer.
    """
    if not layers:
        raise Lacks("the model has no attention of this project: its encoders are of another library, or have no blocks")
    with torch.enable_grad(), record(subject.family.model, dict.fromkeys(layers, itself)) as calls:
        score_R = subject.score(with_gradient(subject.inputs))
        gradients = at_outputs(score_R, calls)
    return score_R.detach(), {name: WeightsAndGradient(weights_of(call), at_weights(gradients[name], call)) for name, call in calls.items()}


def itself(call: AttentionCall) -> AttentionCall:
    return call


def with_gradient(inputs: Inputs) -> Inputs:
    """The embeddings as new leaves: a graph grows from them even where all weights are frozen, and it reaches no weight."""
    image_RND = None if inputs.image_RND is None else inputs.image_RND.detach().requires_grad_()
    text_RTD = None if inputs.text_RTD is None else inputs.text_RTD.detach().requires_grad_()
    return inputs._replace(image_RND=image_RND, text_RTD=text_RTD)


def at_outputs(score_R: Tensor, calls: dict[str, AttentionCall]) -> dict[str, Tensor]:
    """d score / d O, (R, H, T, K) by module path; zero where the score does not depend on a layer."""
    outputs = [call.attended_BHTK for call in calls.values()]
    return dict(zip(calls, torch.autograd.grad(score_R.sum(), outputs, materialize_grads=True), strict=True))


@torch.no_grad()
def at_weights(gradient_RHTK: Tensor, call: AttentionCall) -> Tensor:
    """d score / d A, (R, H, T, S); zero where the order of the tokens lets a query read no key: there A is not free, it is zero."""
    gradient_RHTS = gradient_RHTK.float() @ call.value_BHSK.detach().float().transpose(-2, -1)
    return gradient_RHTS if call.bias_HTS is None else gradient_RHTS.masked_fill(call.bias_HTS.isneginf(), 0.0)
