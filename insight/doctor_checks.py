"""The canary's checks: what the models use, on the device and in its precision, against plain formulas on the CPU.

Every check runs the operator the way the models call it (layouts, masks, what needs a gradient) and gives pairs (got, expected) by part.
Issue numbers are those of github.com/pytorch/pytorch.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from insight import doctor_plain as plain
from insight.losses import contrastive, image_text_matching
from insight.models.cross_attention import CrossAttentionMultiModalTransformer
from insight.models.multimodal import MultiModalTransformer

Pairs = dict[str, tuple[Tensor, Tensor]]
TRAINING_STEP = "training step"
SEED = 20260101


class KnownBug(NamedTuple):
    """A silent fault of PyTorch on MPS."""

    issue: int
    fixed_in: str | None  # first release said to hold the fix; None = not known


class Check(NamedTuple):
    name: str
    operator: str
    compare: Callable[[torch.device, torch.dtype], Pairs]
    known_on_mps: KnownBug | None = None
    dtype: torch.dtype | None = None  # always this precision, whatever is asked for
    slack: float = 1.0  # factor of the precision's tolerance


def operator_checks() -> list[Check]:
    """Every operator on its own."""
    return [*_norm_checks(), *_attention_checks(), *_convolution_checks(), *_other_checks(), *_softmax_checks(), *_optimizer_checks()]


def functional(
    inputs: dict[str, Tensor], function: Callable[..., Tensor], expected: Callable[..., Tensor], gradients: tuple[str, ...] = ()
) -> Callable[[torch.device, torch.dtype], Pairs]:
    """Compare a function's output, with and without gradients enabled (devices have a kernel for each), and the gradients named.

    The formula gets what the device gets: inputs rounded to the precision, then computes in float64.
    """

    def compare(device: torch.device, dtype: torch.dtype) -> Pairs:
        rounded = {name: value.to(dtype) if value.is_floating_point() else value for name, value in inputs.items()}
        here = {name: value.double() if value.is_floating_point() else value for name, value in rounded.items()}
        there = {name: value.to(device) for name, value in rounded.items()}
        with torch.no_grad():
            pairs = {"output without gradients": (function(**there), expected(**here))}
        if not gradients:
            return pairs
        leaves_there = [there[name].requires_grad_() for name in gradients]
        leaves_here = [here[name].requires_grad_() for name in gradients]
        got, wanted = function(**there), expected(**here)
        cotangent = _random(*wanted.shape, seed=SEED + 1).to(dtype)
        got_gradients = torch.autograd.grad(got, leaves_there, cotangent.to(device))
        wanted_gradients = torch.autograd.grad(wanted, leaves_here, cotangent.double())
        pairs["output"] = (got, wanted)
        for name, got_gradient, wanted_gradient in zip(gradients, got_gradients, wanted_gradients, strict=True):
            pairs[f"gradient of {name}"] = (got_gradient, wanted_gradient)
        return pairs

    return compare


# --- the operators ---
def _norm_checks() -> list[Check]:
    inputs = {"x": _random(4, 9, 24, seed=1), "weight": 1 + _random(24, seed=2) / 4, "bias": _random(24, seed=3)}

    def function(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.layer_norm(x, (24,), weight, bias)

    def expected(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return plain.layer_norm(x, (24,), weight, bias)

    frozen = functional(inputs, function, expected, ("weight", "bias"))
    return [
        Check("LayerNorm", "layer_norm", functional(inputs, function, expected, ("x", "weight", "bias"))),
        Check("LayerNorm behind a frozen encoder", "layer_norm", frozen, KnownBug(183825, "2.13")),
    ]


def _attention_checks() -> list[Check]:
    batch, heads, length, width = 3, 2, 12, 16
    padding_BS = torch.arange(length) < torch.tensor([[12], [7], [1]])
    causal_TS = torch.ones(length, length, dtype=torch.bool).tril()

    def tensors(queries: int = length, keys: int = length, value_width: int = width) -> dict[str, Tensor]:
        return {
            "query": _random(batch, queries, heads, width, seed=4),
            "key": _random(batch, keys, heads, width, seed=5),
            "value": _random(batch, keys, heads, value_width, seed=6),
        }

    def check(case: str, inputs: dict[str, Tensor], mask: Tensor | None = None, scale: float | None = None, known: KnownBug | None = None) -> Check:
        def function(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:  # (B, T, H, K) -> views as in the models
            return F.scaled_dot_product_attention(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), attn_mask=mask, scale=scale)

        def expected(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
            return plain.attention(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), mask, scale)

        given = inputs if mask is None else {**inputs, "mask": mask}
        compare = functional(given, function, expected, ("query", "key", "value"))
        return Check(f"attention, {case}", "scaled_dot_product_attention", compare, known)

    return [
        check("no mask", tensors()),
        check("text reads image", tensors(queries=7, keys=17)),
        check("key padding (B, 1, 1, S)", tensors(), padding_BS[:, None, None, :]),
        check("partly broadcast mask (B, 1, T, S)", tensors(), padding_BS[:, None, None, :] & causal_TS, known=KnownBug(184180, "2.13")),
        check("causal mask, explicit", tensors(), causal_TS),
        check("values wider than keys", tensors(value_width=24), known=KnownBug(176767, "2.12")),
        check("own scale", tensors(), scale=0.5, known=KnownBug(184122, "2.13")),
        check("another scale, same shapes", tensors(), scale=0.125, known=KnownBug(184122, "2.13")),
        check("one query, 1,100 keys", tensors(queries=1, keys=1100), known=KnownBug(174861, "2.11")),
    ]


def _convolution_checks() -> list[Check]:
    weight, bias = _random(5, 3, 4, 4, seed=8) / 4, _random(5, seed=9)

    def check(case: str, x: Tensor, view: Callable[[Tensor], Tensor], known: KnownBug | None = None) -> Check:
        def function(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            return F.conv2d(view(x), weight, bias, stride=4)

        def expected(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            return plain.conv2d(view(x).contiguous(), weight, bias, stride=4)

        compare = functional({"x": x, "weight": weight, "bias": bias}, function, expected, ("x", "weight", "bias"))
        return Check(f"convolution, {case}", "conv2d", compare, known)

    return [
        check("contiguous input", _random(2, 3, 16, 16, seed=7), lambda x: x),
        check("transposed input", _random(2, 3, 12, 16, seed=7), lambda x: x.transpose(2, 3), KnownBug(195008, "2.14")),
        check("channels of a channels-last input", _random(2, 16, 16, 5, seed=7), lambda x: x.permute(0, 3, 1, 2)[:, 1:4], KnownBug(180984, None)),
    ]


def _other_checks() -> list[Check]:
    x, target = _random(6, 10, seed=10), torch.tensor([3, 0, 9, 9, 1, 5])
    excluded = F.one_hot((target + 1) % 10, 10).bool()
    rows = torch.tensor([[2, 0, 2, 5], [5, 5, 1, 2]])  # repeated: their gradients add up
    matrices = {"nan": torch.full((3, 4, 6), torch.nan), "left": _random(3, 4, 5, seed=12), "right": _random(3, 5, 6, seed=13)}
    table = {"rows": rows, "weight": _random(7, 8, seed=11)}
    affine = {"x": _random(4, 6, 5, seed=14), "weight": _random(9, 6, seed=15), "bias": _random(9, seed=16)}
    picture = {"x": _random(2, 3, 12, 12, seed=17)}

    def cross_entropy(x: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(x, target)

    def masked_cross_entropy(x: Tensor, target: Tensor, excluded: Tensor) -> Tensor:
        return F.cross_entropy(x.masked_fill(excluded, -torch.inf), target)

    def masked_expected(x: Tensor, target: Tensor, excluded: Tensor) -> Tensor:
        return plain.cross_entropy(torch.where(excluded, -torch.inf, x), target)

    def linear_of_view(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.linear(x.transpose(1, 2), weight, bias)

    def linear_expected(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return plain.linear(x.transpose(1, 2), weight, bias)

    return [
        Check("cross-entropy", "cross_entropy", functional({"x": x, "target": target}, cross_entropy, plain.cross_entropy_of, ("x",))),
        Check(
            "cross-entropy, some classes ruled out",
            "cross_entropy",
            functional({"x": x, "target": target, "excluded": excluded}, masked_cross_entropy, masked_expected, ("x",)),
        ),
        Check("embedding, repeated tokens", "embedding", functional(table, lambda rows, weight: F.embedding(rows, weight), plain.embedding, ("weight",))),
        Check("rows by index, repeated", "index", functional(table, lambda rows, weight: weight[rows], plain.embedding, ("weight",))),
        Check("linear, transposed input", "linear", functional(affine, linear_of_view, linear_expected, ("x", "weight", "bias"))),
        Check("GELU", "gelu", functional({"x": x}, lambda x: F.gelu(x), plain.gelu, ("x",))),
        Check("vectors of length 1", "normalize", functional({"x": x}, lambda x: F.normalize(x, dim=-1), lambda x: x / (x * x).sum(-1, True) ** 0.5, ("x",))),
        Check("resize, smaller, antialiased", "interpolate", functional(picture, _resized(5, antialias=True), lambda x: plain.resize(x, 5))),
        Check("resize, larger", "interpolate", functional(picture, _resized(30, antialias=False), lambda x: plain.resize(x, 30))),
        Check(
            "product of batches, beta=0 over NaN",
            "baddbmm",
            functional(
                matrices,
                lambda nan, left, right: torch.baddbmm(nan, left, right, beta=0),
                lambda nan, left, right: torch.einsum("bij,bjk->bik", left, right),
            ),
            KnownBug(187521, "2.14"),
        ),
    ]
