"""One call for every method and every kind of model: ``explain(model, batch, target, method) -> Explanation``.

    explain(model, batch, None, Call("insight.interpret.attention_maps.rollout_map"))

A method is plain data, as a stage names its losses: the import path of a function and its settings. The function's first parameter is
``subject``; it returns ``Values``.

R rows, N = 1 + patches image tokens, P patches, g patches per side, T text tokens, D width.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, NamedTuple, get_type_hints

import torch
from torch import Tensor, nn

from insight.errors import InputError
from insight.interpret.families import family_of
from insight.interpret.family import Family, Inputs, Rows, Target
from insight.interpret.untouched import untouched
from insight.stages import Call, check_arguments, load


class Cost(NamedTuple):
    """What an explanation took."""

    forwards: float  # passes of the whole model per row
    backwards: float  # passes back from the score per row, however far they went
    seconds: float  # wall time for all rows together


class Values(NamedTuple):
    """What a method returns. Values of patches and tokens are comparable within a row; None = the method says nothing of that kind."""

    score_R: Tensor  # the score that is explained
    image_RP: Tensor | None = None  # patches row by row, without the class token
    text_RT: Tensor | None = None
    pairs_RTP: Tensor | None = None  # what each text token has to do with each patch
    diagnostics: Mapping[str, Tensor] = MappingProxyType({})  # how far the method's own promises hold, (R,) each


@dataclasses.dataclass(frozen=True)
class Explanation:
    """Why R scores are what they are. Tensors are float32, without gradient, on the model's device.

    Args:
        image: (R, g, g) value of each patch, or None.
        text: (R, T) value of each token, zero on padding, or None.
        pairs: (R, T, g, g) value of each token with each patch, zero on padding, or None.
        score: (R,) what is explained: a dual encoder's logit, the matching log-odds, a classifier's output.
        target: Row r is ``batch.image[target.picture[r]]`` against ``target.index[r]``.
        method: With every setting, defaults included.
        cost: Passes per row, and seconds.
        diagnostics: Per row (R,) figures that the method reports of itself, e.g. the completeness error of integrated gradients.
    """

    image: Tensor | None
    text: Tensor | None
    pairs: Tensor | None
    score: Tensor
    target: Target
    method: Call
    cost: Cost
    diagnostics: dict[str, Tensor]


class Subject:
    """What a method works on: R rows of one family. Scores asked for here are counted.

    Gradients are off; a method that needs some opens ``torch.enable_grad()`` and takes them by ``torch.autograd.grad`` to tensors of its
    own, never to weights.
    """

    def __init__(self, family: Family, rows: Rows, target: Target) -> None:
        self.family, self.rows, self.target = family, rows, target
        self.forward_rows = self.backward_rows = 0

    def __len__(self) -> int:
        return next(len(tensor) for tensor in self.rows if tensor is not None)

    @functools.cached_property
    def inputs(self) -> Inputs:
        """The R rows after the embeddings."""
        return self.family.embed(self.rows)

    def score(self, inputs: Inputs) -> Tensor:
        """(rows of ``inputs``,) float32"""
        return self.counted(self.family.score(inputs))

    def counted(self, score_R: Tensor) -> Tensor:
        """Count a pass forward for each of its rows, and one back for each row of every gradient that is later asked of it."""
        self.count_forward(len(score_R))
        if score_R.requires_grad:
            score_R.register_hook(self._count_backward)
        return score_R

    def count_forward(self, num_rows: int) -> None:
        """For a method that runs a part of the model by itself: a row through a tower counts as a row."""
        self.forward_rows += num_rows

    def _count_backward(self, gradient: Tensor) -> None:
        self.backward_rows += len(gradient)


def explain(model: nn.Module | Family, batch: Any, target: Target | None, method: Call) -> Explanation:
    """Explain some scores. The model is left as it was: mode, gradients, hooks, random generators, also after an exception.

    Args:
        model: A MultiModalTransformer, a CrossAttentionMultiModalTransformer, or any Family, e.g. ``Classifier(vision_transformer, head)``.
        batch: What the family reads, e.g. an ImageTextBatch, on any device.
        target: Which rows; None = each caption with its own picture, each picture's highest output.
        method: A function of ``insight.interpret`` (see METHODS in ``methods.py``) and its settings.

    Raises:
        InputError: unknown model, method or setting; a target out of range; a caption without tokens or longer than the context; a method
            that the family lacks (``Lacks``); values that are not finite.
    """
    function = check_method(method)
    with looking_at(model, batch, target) as subject:
        started = time.perf_counter()
        values = function(subject, **method.arguments)
        for name, tensor in values._asdict().items():
            if isinstance(tensor, Tensor) and not torch.isfinite(tensor).all():  # waits for the device: the time is whole
                raise InputError(not_finite(name, tensor, next(subject.family.model.parameters()).dtype))
        seconds = time.perf_counter() - started
        cost = Cost(subject.forward_rows / len(subject), subject.backward_rows / len(subject), seconds)
        return _explanation(values, subject, settled(method, function), cost)


@contextmanager
def looking_at(model: nn.Module | Family, batch: Any, target: Target | None) -> Iterator[Subject]:
    """For what is no map: the subject that a method gets. The model is in evaluation mode, without gradients, and is then left as it was.
    Arguments and errors as in ``explain``."""
    family = family_of(model)
    with untouched(family.model):
        yield Subject(family, *family.rows(batch, target))


def check_method(method: Call) -> Callable[..., Values]:
    """The method's function, after a look at the settings.

    Raises:
        InputError: no such function, it is no method, a setting that it lacks (the message names the nearest) or of another type.
    """
    function = load(method.function, "method.function")
    if next(iter(inspect.signature(function).parameters), None) != "subject":
        raise InputError(f"method.function: '{method.function}' is no explanation method: its first parameter is not `subject`")
    missing = check_arguments(function, method.arguments, "method.arguments", supplied=["subject"])
    missing.remove("subject")
    if missing:
        raise InputError(f"method.arguments: {method.function} needs {', '.join(missing)}")
    hints = get_type_hints(function)
    for name, value in method.arguments.items():
        kind = hints.get(name)
        fits = type(value) is kind or (kind is float and type(value) is int)
        if kind in (bool, int, float, str) and not fits:
            raise InputError(f"method.arguments.{name}={value!r}: must be {kind.__name__}, not {type(value).__name__}")
    return function


def settled(method: Call, function: Callable[..., Values]) -> Call:
    """The same with the defaults written out."""
    defaults = {name: one.default for name, one in inspect.signature(function).parameters.items() if name != "subject"}
    return Call(method.function, defaults | method.arguments)


def not_finite(name: str, tensor: Tensor, dtype: torch.dtype) -> str:
    row = int((~torch.isfinite(tensor.flatten(1) if tensor.ndim > 1 else tensor[:, None]).all(dim=1)).nonzero()[0])
    hint = "the model's weights or the batch may hold such numbers" if dtype == torch.float32 else f"try model.float(), it is {dtype}"
    return f"row {row}: {name} has values that are not finite; {hint}"


def _explanation(values: Values, subject: Subject, method: Call, cost: Cost) -> Explanation:
    def plain(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.detach().float()

    grid, mask_RT = subject.family.grid, subject.rows.text_mask_RT
    image, text, pairs = plain(values.image_RP), plain(values.text_RT), plain(values.pairs_RTP)
    if image is not None:
        image = image.unflatten(1, (grid, grid))
    if mask_RT is not None:
        text = None if text is None else text * mask_RT
        pairs = None if pairs is None else pairs * mask_RT[..., None]
    if pairs is not None:
        pairs = pairs.unflatten(2, (grid, grid))
    diagnostics = {name: tensor.detach().float() for name, tensor in values.diagnostics.items()}
    return Explanation(image, text, pairs, values.score_R.detach().float(), subject.target, method, cost, diagnostics)
