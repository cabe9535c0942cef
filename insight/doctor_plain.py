"""What operators should compute, in elementary steps (sums, products, exponentials) that share no kernel with the operators themselves.

B batch, H heads, T queries, S keys, K width of a head, N rows, C classes or channels, D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


def layer_norm(x: Tensor, shape: Sequence[int], weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """Over the last ``len(shape)`` dimensions: equation 4 of https://arxiv.org/abs/1607.06450, with the biased variance."""
    dims = tuple(range(-len(shape), 0))
    centred = x - x.sum(dim=dims, keepdim=True) / math.prod(shape)
    variance = (centred * centred).sum(dim=dims, keepdim=True) / math.prod(shape)
    normed = centred / (variance + eps) ** 0.5
    normed = normed if weight is None else normed * weight
    return normed if bias is None else normed + bias


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
) -> Tensor:
    """``softmax(q k^T * scale) v``; True in a bool mask = attend. (..., T, K), (..., S, K), (..., S, V) -> (..., T, V)."""
    assert dropout_p == 0.0, "a draw of dropout cannot be compared"
    if is_causal:
        assert attn_mask is None, "torch takes one of the two"
        attn_mask = torch.arange(query.shape[-2])[:, None] >= torch.arange(key.shape[-2])
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    score = torch.einsum("...tk,...sk->...ts", query, key) * factor
    if attn_mask is not None:
        score = torch.where(attn_mask, score, -math.inf) if attn_mask.dtype == torch.bool else score + attn_mask
    return torch.einsum("...ts,...sv->...tv", softmax(score), value)


def softmax(x: Tensor) -> Tensor:
    """Over the last dimension."""
    power = (x - x.amax(dim=-1, keepdim=True)).exp()
    return power / power.sum(dim=-1, keepdim=True)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x W^T + b`` by an einsum."""
    output = torch.einsum("...i,oi->...o", x, weight)
    return output if bias is None else output + bias


def gelu(x: Tensor, approximate: str = "none") -> Tensor:
    """``x * Phi(x)``: https://arxiv.org/abs/1606.08415, equation 1; or its approximation by a hyperbolic tangent, section 2."""
    if approximate == "none":
        return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))
    power = (-2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)).exp()  # 1 + tanh(y) = 2 / (1 + exp(-2 y))
    return x / (1 + power)


def embedding(rows: Tensor, weight: Tensor, padding_idx: int | None = None) -> Tensor:
    """One-hot rows times the table: its gradient adds up repeated rows without any scatter. Call as ``F.embedding``."""
    if padding_idx is not None and padding_idx >= 0:  # a row that does not learn
        weight = torch.where((torch.arange(len(weight), device=rows.device) == padding_idx)[:, None], weight.detach(), weight)
    one_hot = (rows[..., None] == torch.arange(len(weight), device=rows.device)).to(weight.dtype)
    return torch.einsum("...n,nd->...d", one_hot, weight)


def cross_entropy(x_NC: Tensor, target_N: Tensor) -> Tensor:
    """Mean of ``log sum exp - logit of the target``."""
    top_N1 = x_NC.amax(dim=-1, keepdim=True).detach()
    normaliser_N = (x_NC - top_N1).exp().sum(dim=-1).log() + top_N1[..., 0]
    chosen_NC = target_N[:, None] == torch.arange(x_NC.shape[1], device=x_NC.device)
    return (normaliser_N - torch.where(chosen_NC, x_NC, 0.0).sum(dim=-1)).sum() / len(x_NC)


def conv2d(x_BCHW: Tensor, weight_OCYX: Tensor, bias_O: Tensor, stride: int) -> Tensor:
    """Sum over windows, without padding."""
    height, width = weight_OCYX.shape[-2:]
    windows = x_BCHW.unfold(2, height, stride).unfold(3, width, stride)  # (B, C, rows, columns, height, width)
    return torch.einsum("bcijyx,ocyx->boij", windows, weight_OCYX) + bias_O[:, None, None]


def resize(x_BCHW: Tensor, size: int) -> Tensor:
    """Bilinear with antialiasing: along each axis a triangle, as wide as a target pixel (at least a source pixel), cut at the border."""
    for dim in (-2, -1):
        source = x_BCHW.shape[dim]
        scale = source / size
        centre = (torch.arange(size, dtype=torch.float64) + 0.5) * scale
        distance = (torch.arange(source, dtype=torch.float64) + 0.5 - centre[:, None]) / max(scale, 1.0)
        weight = (1 - distance.abs()).clamp(min=0)
        weight = (weight / weight.sum(dim=1, keepdim=True)).to(x_BCHW)
        x_BCHW = torch.einsum("ts,...s->...t", weight, x_BCHW.transpose(dim, -1)).transpose(dim, -1)
    return x_BCHW


def adamw(
    parameters: Sequence[Tensor],
    gradients: Sequence[Sequence[Tensor]],
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> list[Tensor]:
    """The parameters after one step per entry of ``gradients``: algorithm 2 of https://arxiv.org/abs/1711.05101, in float64."""
    values = [parameter.detach().double() for parameter in parameters]
    first, second = [torch.zeros_like(value) for value in values], [torch.zeros_like(value) for value in values]
    for step, given in enumerate(gradients, start=1):
        for i, gradient in enumerate(given):
            first[i] = betas[0] * first[i] + (1 - betas[0]) * gradient.double()
            second[i] = betas[1] * second[i] + (1 - betas[1]) * gradient.double() ** 2
            unbiased = (second[i] / (1 - betas[1] ** step)).sqrt() + eps
            values[i] = values[i] * (1 - lr * weight_decay) - lr * first[i] / (1 - betas[0] ** step) / unbiased
    return values


class PlainOperators(TorchFunctionMode):
    """Inside it a model computes with the formulas of this file instead of PyTorch's fused kernels."""

    replaced: Mapping[Callable[..., Any], Callable[..., Tensor]] = {
        F.layer_norm: layer_norm,
        F.scaled_dot_product_attention: attention,
        F.linear: linear,
        F.gelu: gelu,
        F.cross_entropy: cross_entropy,
    }

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.embedding:
            return embedding(*args[:3])
        return self.replaced.get(func, func)(*args, **_without_defaults(func, kwargs or {}))


def _without_defaults(func: Callable[..., Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """F.cross_entropy passes its deprecated arguments on; only those that say something reach the formula."""
    if func is not F.cross_entropy:
        return kwargs
    defaults = {"weight": None, "size_average": None, "ignore_index": -100, "reduce": None, "reduction": "mean", "label_smoothing": 0.0}
    return {name: value for name, value in kwargs.items() if value != defaults.get(name)}
