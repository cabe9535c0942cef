"""Optimiser and schedule of a stage, from plain data: rates by pattern, no decay where it harms, floors relative to each rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from torch import nn
from torch.optim import Optimizer

from insight.errors import InputError
from insight.stages import Stage, check_arguments, load, matching


def warmup_cosine(step: int, total_steps: int, warmup: float = 0.05, floor: float = 0.01) -> float:
    """Linear warm-up, then a cosine: https://arxiv.org/abs/1608.03983, equation 5, without restarts.

    Args:
        step: Optimiser steps taken so far.
        total_steps: Optimiser steps of the whole stage.
        warmup: Fraction of ``total_steps`` spent in warm-up.
        floor: Last value, as a fraction of the peak.

    >>> [round(warmup_cosine(s, 10, warmup=0.2, floor=0.1), 3) for s in (0, 1, 2, 6, 10)]
    [0.5, 1.0, 1.0, 0.55, 0.1]
    """
    warmup_steps = math.ceil(warmup * total_steps)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def constant(step: int, total_steps: int, warmup: float = 0.0) -> float:
    """Linear warm-up, then constant.

    >>> [constant(s, 10, warmup=0.2) for s in (0, 1, 2, 9)]
    [0.5, 1.0, 1.0, 1.0]
    """
    warmup_steps = math.ceil(warmup * total_steps)
    return min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0


def parameter_groups(named_parameters: Iterable[tuple[str, nn.Parameter]], stage: Stage, key: str) -> list[dict]:
    """Groups by (rate, decayed or not) of what trains; vectors, scalars and embeddings are not decayed.

    Each group carries a ``name``: the pattern of its rate, with ``/no_decay`` where weight decay is off.

    Raises:
        InputError: a pattern matches nothing that trains.
    """
    trained = {name: parameter for name, parameter in named_parameters if parameter.requires_grad}
    owner = dict.fromkeys(trained, "default")
    for pattern in reversed(stage.learning_rates):  # the first pattern wins, so it is written last
        owner.update(dict.fromkeys(matching([pattern], trained, f"{key}.learning_rates"), pattern))
    groups: dict[tuple[str, bool], dict] = {}
    for name, parameter in trained.items():
        decayed = parameter.ndim >= 2 and "embedding" not in name and "position" not in name
        pattern = owner[name]
        group = groups.setdefault(
            (pattern, decayed),
            {
                "params": [],
                "lr": stage.learning_rates.get(pattern, stage.learning_rate),
                "name": pattern if decayed else f"{pattern}/no_decay",
                **({} if decayed else {"weight_decay": 0.0}),
            },
        )
        group["params"].append(parameter)
    return list(groups.values())


def build_optimizer(named_parameters: Iterable[tuple[str, nn.Parameter]], stage: Stage, key: str) -> Optimizer:
    """The stage's optimiser over what trains.

    Raises:
        InputError: the class or an argument does not exist, or nothing trains.
    """
    kind = load(stage.optimizer.function, f"{key}.optimizer.function")
    check_arguments(kind, stage.optimizer.arguments, f"{key}.optimizer.arguments", supplied=("params", "lr"))
    groups = parameter_groups(named_parameters, stage, key)
    if not groups:
        raise InputError(f"{key}.train: nothing is left to train")
    return kind(groups, lr=stage.learning_rate, **stage.optimizer.arguments)


def build_schedule(stage: Stage, total_steps: int, key: str) -> Callable[[int], float]:
    """Factor on every rate by optimiser step.

    Raises:
        InputError: the function or an argument does not exist.
    """
    function = load(stage.schedule.function, f"{key}.schedule.function")
    check_arguments(function, stage.schedule.arguments, f"{key}.schedule.arguments", supplied=("step", "total_steps"))
    return lambda step: function(step, total_steps, **stage.schedule.arguments)
