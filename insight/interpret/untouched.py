"""Look into a model and leave it as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from insight.errors import InputError
from insight.rng import rng_state, set_rng_state


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, without gradients; every module's own mode is restored."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """As ``evaluating``; random generators are restored too, and the caller may be in inference mode: here gradients can be asked for.

    Raises:
        InputError: the model's own weights were made in inference mode; no gradient can ever pass them.
    """
    for name, parameter in model.named_parameters():
        if parameter.is_inference():
            raise InputError(f"'{name}' was made inside torch.inference_mode(), gradients cannot pass it: build or load the model outside")
    state = rng_state()
    try:
        with torch.inference_mode(False), evaluating(model):
            yield
    finally:
        set_rng_state(state)
