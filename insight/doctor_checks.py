"""The canary's operator checks: what the models use, on the device and in its precision, against plain formulas on the CPU.

Every check runs the operator the way the models call it (layouts, masks, what needs a gradient) and gives pairs (got, expected) by part.
Issue numbers are those of github.com/pytorch/pytorch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from insight import doctor_plain as plain

Pairs = dict[str, tuple[Tensor, Tensor]]
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
        there = {name: value.to(device).detach() for name, value in rounded.items()}  # detached: `inputs` never learns of a gradient
        with torch.no_grad():
            pairs = {"output without gradients": (function(**there), expected(**here))}
        if not gradients:
            return pairs
        leaves_there = [there[name].requires_grad_() for name in gradients]
        leaves_here = [here[name].requires_grad_() for name in gradients]
        got, wanted = function(**there), expected(**here)
        cotangent = random(*wanted.shape, seed=SEED + 1).to(dtype)
        got_gradients = torch.autograd.grad(got, leaves_there, cotangent.to(device))
        wanted_gradients = torch.autograd.grad(wanted, leaves_here, cotangent.double())
        pairs["output"] = (got, wanted)
        for name, got_gradient, wanted_gradient in zip(gradients, got_gradients, wanted_gradients, strict=True):
            pairs[f"gradient of {name}"] = (got_gradient, wanted_gradient)
        return pairs

    return compare


# --- the operators ---
def _norm_checks() -> list[Check]:
    inputs = {"x": random(4, 9, 24, seed=1), "weight": 1 + random(24, seed=2) / 4, "bias": random(24, seed=3)}

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
            "query": random(batch, queries, heads, width, seed=4),
            "key": random(batch, keys, heads, width, seed=5),
            "value": random(batch, keys, heads, value_width, seed=6),
        }

    def check(
        case: str, inputs: dict[str, Tensor], mask: Tensor | None = None, scale: float | None = None, known: KnownBug | None = None
    ) -> Check:
        def function(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
            views = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)  # as in the models
            return F.scaled_dot_product_attention(*views, attn_mask=mask, scale=scale)

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
    weight, bias = random(5, 3, 4, 4, seed=8) / 4, random(5, seed=9)

    def check(case: str, x: Tensor, view: Callable[[Tensor], Tensor], known: KnownBug | None = None) -> Check:
        def function(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            return F.conv2d(view(x), weight, bias, stride=4)

        def expected(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            return plain.conv2d(view(x).contiguous(), weight, bias, stride=4)

        compare = functional({"x": x, "weight": weight, "bias": bias}, function, expected, ("x", "weight", "bias"))
        return Check(f"convolution, {case}", "conv2d", compare, known)

    return [
        check("contiguous input", random(2, 3, 16, 16, seed=7), lambda x: x),
        check("transposed input", random(2, 3, 12, 16, seed=7), lambda x: x.transpose(2, 3), KnownBug(195008, "2.14")),
        check(
            "channels-last slice",
            random(2, 16, 16, 5, seed=7),
            lambda x: x.permute(0, 3, 1, 2)[:, 1:4],
            KnownBug(180984, None),
        ),
    ]


def _other_checks() -> list[Check]:
    x, target = random(6, 10, seed=10), torch.tensor([3, 0, 9, 9, 1, 5])
    classes = {"x": x, "target": target}
    ruled_out = {**classes, "excluded": F.one_hot((target + 1) % 10, 10).bool()}
    table = {"rows": torch.tensor([[2, 0, 2, 5], [5, 5, 1, 2]]), "weight": random(7, 8, seed=11)}  # repeated rows: gradients add up
    affine = {"x": random(4, 6, 5, seed=14), "weight": random(9, 6, seed=15), "bias": random(9, seed=16)}
    batches = {"nan": torch.full((3, 4, 6), torch.nan), "left": random(3, 4, 5, seed=12), "right": random(3, 5, 6, seed=13)}

    def masked(x: Tensor, target: Tensor, excluded: Tensor) -> Tensor:
        return F.cross_entropy(x.masked_fill(excluded, -torch.inf), target)

    def masked_expected(x: Tensor, target: Tensor, excluded: Tensor) -> Tensor:
        return plain.cross_entropy(torch.where(excluded, -torch.inf, x), target)

    def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.linear(x.transpose(1, 2), weight, bias)

    def linear_expected(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return plain.linear(x.transpose(1, 2), weight, bias)

    def product(nan: Tensor, left: Tensor, right: Tensor) -> Tensor:
        return torch.baddbmm(nan, left, right, beta=0)

    def product_expected(nan: Tensor, left: Tensor, right: Tensor) -> Tensor:
        return torch.einsum("bij,bjk->bik", left, right)

    def cross_entropy(x: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(x, target)

    def cross_entropy_expected(x: Tensor, target: Tensor) -> Tensor:
        return plain.cross_entropy(x, target)

    embedding = functional(table, lambda rows, weight: F.embedding(rows, weight), plain.embedding, ("weight",))
    index = functional(table, lambda rows, weight: weight[rows], plain.embedding, ("weight",))
    normalize = functional({"x": x}, lambda x: F.normalize(x, dim=-1), lambda x: x / (x * x).sum(-1, True) ** 0.5, ("x",))
    return [
        Check("cross-entropy", "cross_entropy", functional(classes, cross_entropy, cross_entropy_expected, ("x",))),
        Check("cross-entropy, classes ruled out", "cross_entropy", functional(ruled_out, masked, masked_expected, ("x",))),
        Check("embedding, repeated tokens", "embedding", embedding),
        Check("rows by index, repeated", "index", index),
        Check("linear, transposed input", "linear", functional(affine, linear, linear_expected, ("x", "weight", "bias"))),
        Check("GELU", "gelu", functional({"x": x}, lambda x: F.gelu(x), lambda x: plain.gelu(x), ("x",))),
        Check("vectors of length 1", "normalize", normalize),
        _resize_check("resize, smaller, antialiased", 5, antialias=True),
        _resize_check("resize, larger", 30, antialias=False),
        Check("product, beta=0 over NaN", "baddbmm", functional(batches, product, product_expected), KnownBug(187521, "2.14")),
    ]


def _resize_check(case: str, size: int, antialias: bool) -> Check:
    def resize(x: Tensor) -> Tensor:
        return F.interpolate(x, size=(size, size), mode="bilinear", antialias=antialias)

    compare = functional({"x": random(2, 3, 12, 12, seed=17)}, resize, lambda x: plain.resize(x, size))
    return Check(case, "interpolate", compare, dtype=torch.float32)  # pictures are float32 whatever the precision


def _softmax_checks() -> list[Check]:
    inputs = {"x": random(3, 5, 40, seed=18) * 8}
    compare = functional(inputs, lambda x: x.softmax(dim=-1), plain.softmax, ("x",))
    return [
        Check(f"softmax in {dtype_name(dtype)}", "softmax", compare, dtype=dtype)
        for dtype in (torch.float32, torch.float16, torch.bfloat16)
    ]


def _optimizer_checks() -> list[Check]:
    shapes = [(5, 7), (11,), ()]
    start = [random(*shape, seed=20 + i) for i, shape in enumerate(shapes)]
    steps = [[random(*shape, seed=30 + 10 * step + i) for i, shape in enumerate(shapes)] for step in range(3)]

    def adamw(device: torch.device, dtype: torch.dtype) -> Pairs:
        parameters = [nn.Parameter(value.to(device, copy=True)) for value in start]
        optimizer = torch.optim.AdamW(parameters, lr=0.1, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.2)
        for gradients in steps:
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient.to(device)
            optimizer.step()
        wanted = plain.adamw(start, steps, lr=0.1, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.2)
        return {f"change of {shape}": changes(*values) for shape, *values in zip(shapes, start, parameters, wanted, strict=True)}

    def clip(device: torch.device, dtype: torch.dtype) -> Pairs:
        parameters = [nn.Parameter(value.to(device, copy=True)) for value in start]
        for parameter, gradient in zip(parameters, steps[0], strict=True):
            parameter.grad = gradient.to(device, copy=True)
        nn.utils.clip_grad_norm_(parameters, max_norm=1.0)
        norm = sum((gradient.double() ** 2).sum() for gradient in steps[0]) ** 0.5
        pairs = zip(shapes, parameters, steps[0], strict=True)
        return {f"gradient of {shape}": (gradient_of(parameter), gradient.double() / norm) for shape, parameter, gradient in pairs}

    return [
        Check("AdamW, three steps", "AdamW", adamw, dtype=torch.float32),  # weights are float32 whatever the precision
        Check("gradient clipping", "clip_grad_norm_", clip, dtype=torch.float32),
    ]


# --- helpers ---
def dtype_name(dtype: torch.dtype) -> str:
    """``bfloat16`` for ``torch.bfloat16``."""
    return str(dtype).removeprefix("torch.")


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def gradient_of(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None, "asked for after backward"
    return parameter.grad


def changes(before: Tensor, got: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """How far the weights moved: a wrong step is small beside the weights themselves."""
    start = before.double()
    return got.detach().cpu().double() - start, wanted.cpu().double() - start
