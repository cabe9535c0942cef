"""Attribution by gradients at the inputs: pixels of the picture, embeddings of the caption's tokens (ids have no gradient). By captum.

R rows, H and W pixels, P patches, T text tokens, D width. Captum sees float32 inputs whatever the model's precision; text embeddings are
taken with their positions, which is what captum's layer-wise variants see. Noise is drawn here, once for all rows and without touching
the global generators: captum's own NoiseTunnel and GradientShap draw it for the batch, so that a row's map depends on the rows beside it
(and GradientShap makes float64 numbers, which MPS has not).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from captum.attr import InputXGradient, IntegratedGradients, Saliency
from torch import Tensor

from insight.data.text import PAD
from insight.errors import InputError
from insight.interpret.explain import Subject, Values
from insight.interpret.family import Inputs

GREYS = (-2.0, -1.0, 0.0, 1.0, 2.0)  # as the model reads pixels: standard deviations from the mean colour


def integrated_gradients(subject: Subject, steps: int = 32, image_baseline: float = 0.0, rows_at_once: int = 256) -> Values:
    """Gradients along the straight way from a baseline to the input, times the way: https://arxiv.org/abs/1703.01365, equation 1.

    Picture and caption go the way together, so all values of a row sum to the score minus the baseline's (``diagnostics``:
    ``baseline_score``, and ``completeness_error``, the difference that the steps left). The caption's baseline is padding: its embedding at
    every place, with the mask as it is.

    Args:
        steps: Points of Gauss-Legendre quadrature.
        image_baseline: Value of every pixel of the baseline, as the model reads pixels: 0 is the mean colour.
        rows_at_once: Most rows in one pass.
    """
    at_least_one(steps=steps, rows_at_once=rows_at_once)
    parts = parts_of(subject)
    given, baselines = tuple(parts.inputs.values()), baselines_of(subject, parts, image_baseline)
    method = IntegratedGradients(parts.score)
    values = method.attribute(
        leaves(given),
        baselines=baselines,
        additional_forward_args=parts.additional,
        n_steps=steps,
        internal_batch_size=max(rows_at_once, len(subject)),
    )
    score_R, baseline_score_R = parts.score(*given, *parts.additional), parts.score(*baselines, *parts.additional)
    total_R = torch.stack([value.flatten(1).sum(dim=1) for value in values]).sum(dim=0)
    diagnostics = {"baseline_score": baseline_score_R, "completeness_error": total_R - (score_R - baseline_score_R)}
    return summed(subject, parts, score_R, values)._replace(diagnostics=diagnostics)


def input_x_gradient(subject: Subject) -> Values:
    """Input times gradient, summed over a patch or a token's embedding (https://arxiv.org/abs/1605.01713)."""
    parts = parts_of(subject)
    values = InputXGradient(parts.score).attribute(leaves(parts.inputs.values()), additional_forward_args=parts.additional)
    return summed(subject, parts, parts.scores[0], values)


def saliency(subject: Subject) -> Values:
    """Size of the gradient (https://arxiv.org/abs/1312.6034, section 3): the largest over a pixel's channels, mean over a patch's pixels;
    length over a token's embedding. Never negative."""
    parts = parts_of(subject)
    gradients = gradients_at(parts, parts.inputs.values())
    return sized(subject, parts, parts.scores[0], gradients)


def smooth_grad(subject: Subject, samples: int = 16, noise: float = 0.15, seed: int = 0) -> Values:
    """As ``saliency``, of the mean gradient over noisy inputs: https://arxiv.org/abs/1706.03825, section 3.

    Args:
        noise: Standard deviation as a share of the range (largest - least) of the row's pixels, or of its caption's embeddings.
    """
    at_least_one(samples=samples)
    parts, generator = parts_of(subject), torch.Generator().manual_seed(seed)
    given = tuple(parts.inputs.values())
    mean = tuple(torch.zeros_like(value) for value in given)
    for _ in range(samples):
        gradients = gradients_at(parts, [noisy(value, noise, generator) for value in given])
        mean = tuple(total + gradient / samples for total, gradient in zip(mean, gradients, strict=True))
    return sized(subject, parts, parts.score(*given, *parts.additional), mean)


def gradient_shap(subject: Subject, samples: int = 16, noise: float = 0.0, seed: int = 0) -> Values:
    """As ``integrated_gradients``, at random points of ways from random baselines: the expectation of https://arxiv.org/abs/1705.07874 that
    captum calls GradientShap. A picture's baselines are five even greys from about black to about white, a caption's is padding.

    Args:
        samples: Points; the same for every row.
        noise: On the input, as in ``smooth_grad``.
    """
    at_least_one(samples=samples)
    parts, generator = parts_of(subject), torch.Generator().manual_seed(seed)
    given = tuple(parts.inputs.values())
    mean = tuple(torch.zeros_like(value) for value in given)
    for _ in range(samples):
        grey, share = GREYS[int(torch.randint(len(GREYS), (), generator=generator))], float(torch.rand((), generator=generator))
        baselines = baselines_of(subject, parts, grey)
        ends = [noisy(value, noise, generator) for value in given]
        ways = [end - baseline for end, baseline in zip(ends, baselines, strict=True)]
        gradients = gradients_at(parts, [baseline + share * way for baseline, way in zip(baselines, ways, strict=True)])
        mean = tuple(total + way * gradient / samples for total, way, gradient in zip(mean, ways, gradients, strict=True))
    return summed(subject, parts, parts.score(*given, *parts.additional), mean)


# --- what captum is given ---
class Parts(NamedTuple):
    """A subject in captum's terms."""

    inputs: dict[str, Tensor]  # "pixels" (R, 3, H, W), "text" (R, T, D); float32
    additional: tuple[Tensor, ...]  # what goes with each row and is not explained
    score: Callable[..., Tensor]  # (*inputs, *additional) -> (R,)
    scores: list[Tensor]  # what it has returned so far


def parts_of(subject: Subject) -> Parts:
    inputs, pixels = subject.inputs, subject.rows.pixels_R3HW
    explained = {"pixels": pixels, "text": inputs.text_RTD}
    beside = {"text_mask": inputs.text_mask_RT, "index": inputs.index_R}
    found = {name: value.float() for name, value in explained.items() if value is not None}
    additional = {name: value for name, value in beside.items() if value is not None}
    names, scores = [*found, *additional], []

    def score(*tensors: Tensor) -> Tensor:
        given = dict(zip(names, tensors, strict=True))
        image_RND = subject.family.embed_image(given["pixels"].to(pixels.dtype)) if pixels is not None else None
        text_RTD = given["text"].to(inputs.text_RTD.dtype) if inputs.text_RTD is not None else None
        score_R = subject.score(Inputs(image_RND, text_RTD, text_mask_RT=given.get("text_mask"), index_R=given.get("index")))
        scores.append(score_R.detach())
        return score_R

    return Parts(found, tuple(additional.values()), score, scores)


def leaves(values: Iterable[Tensor]) -> tuple[Tensor, ...]:
    """Copies that captum may ask gradients of."""
    return tuple(value.clone().requires_grad_() for value in values)


def gradients_at(parts: Parts, values: Iterable[Tensor]) -> tuple[Tensor, ...]:
    return Saliency(parts.score).attribute(leaves(values), abs=False, additional_forward_args=parts.additional)


def baselines_of(subject: Subject, parts: Parts, grey: float) -> tuple[Tensor, ...]:
    """Even pictures, and captions of nothing but padding."""
    made = {"pixels": lambda value: torch.full_like(value, grey), "text": lambda value: padding(subject).expand_as(value)}
    return tuple(made[name](value) for name, value in parts.inputs.items())


def padding(subject: Subject) -> Tensor:
    """(1, T, D) float32"""
    tokens_RT = subject.rows.tokens_RT
    assert tokens_RT is not None, "asked for only where there is text"
    return subject.family.embed_text(torch.full_like(tokens_RT[:1], PAD)).float()


def noisy(value_RX: Tensor, noise: float, generator: torch.Generator) -> Tensor:
    """The same normal noise on every row, in proportion to the row's range."""
    drawn_1X = torch.randn((1, *value_RX.shape[1:]), generator=generator).to(value_RX.device)
    range_R = value_RX.flatten(1).amax(dim=1) - value_RX.flatten(1).amin(dim=1)
    return value_RX + noise * range_R.reshape(-1, *[1] * (value_RX.ndim - 1)) * drawn_1X


def at_least_one(**settings: int) -> None:
    for name, value in settings.items():
        if value < 1:
            raise InputError(f"method.arguments.{name}={value}: must be at least 1")


# --- from pixels and channels to patches and tokens ---
def summed(subject: Subject, parts: Parts, score_R: Tensor, values: tuple[Tensor, ...]) -> Values:
    """Signed values: what a patch's pixels or a token's channels add up to."""
    found = dict(zip(parts.inputs, values, strict=True))
    image_RP = by_patch(found["pixels"], subject.family.grid).sum(dim=(1, 3, 5)).flatten(1) if "pixels" in found else None
    return Values(score_R, image_RP, found["text"].sum(dim=-1) if "text" in found else None)


def sized(subject: Subject, parts: Parts, score_R: Tensor, gradients: tuple[Tensor, ...]) -> Values:
    """Sizes, as ``saliency`` says."""
    found = dict(zip(parts.inputs, gradients, strict=True))
    image_RP = by_patch(found["pixels"], subject.family.grid).abs().amax(dim=1).mean(dim=(2, 4)).flatten(1) if "pixels" in found else None
    return Values(score_R, image_RP, found["text"].norm(dim=-1) if "text" in found else None)


def by_patch(pixels_R3HW: Tensor, grid: int | None) -> Tensor:
    """(R, 3, H, W) -> (R, 3, g, rows, g, columns)"""
    assert grid is not None, "a family with pixels has a grid"
    return pixels_R3HW.unflatten(3, (grid, -1)).unflatten(2, (grid, -1))
