"""The `sweep` part of a config (`configs/sweep/*.yaml`), read and checked; its values as words of the command line."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser

from insight.errors import InputError
from insight.metric_names import check_metric_name, metric_names
from insight.stages import nearest
from lightning_modules.engine_cli import shorten
from lightning_modules.keys import check_fields
from lightning_modules.settings import Dimension, Sweep, Value


def read_sweep(plain: Any) -> Sweep:
    """The ``sweep`` of a composed config, every value checked.

    Raises:
        InputError: names the key and what would be right.
    """
    if not isinstance(plain, dict):
        raise InputError(f"sweep={plain}: is added with a plus: +sweep=NAME")
    check_fields(plain, Sweep, "sweep")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Sweep, "sweep")
    try:
        sweep: Sweep = parser.instantiate(parser.parse_object({"sweep": plain})).sweep
    except (ArgumentError, ValueError) as error:
        raise InputError(shorten(str(error))) from error
    if not re.fullmatch(r"[\w.-]+", sweep.name) or not sweep.name.strip("."):
        raise InputError(f"sweep.name='{sweep.name}': names a folder: letters, digits, _ . -")
    if sweep.num_trials < 1:
        raise InputError(f"sweep.num_trials={sweep.num_trials}: must be at least 1")
    _check_metric(sweep)
    if not sweep.space:
        raise InputError(
            "sweep.space: is empty; name what varies, e.g. +sweep.space.rate={key: stages.end_to_end.learning_rate, low: 1e-4, high: 1e-2}"
        )
    for name, dimension in sweep.space.items():
        check_dimension(f"sweep.space.{name}", dimension)
    keys = [dimension.key.lstrip("+") for dimension in sweep.space.values()]
    for name, key in zip(sweep.space, keys, strict=True):
        if keys.count(key) > 1:
            raise InputError(f"sweep.space.{name}.key={key}: is searched twice; leave one out")
    return sweep


def check_dimension(where: str, dimension: Dimension) -> None:
    """
    Raises:
        InputError: names the key below ``where`` and what would be right.
    """
    low, high, step = dimension.low, dimension.high, dimension.step
    if not re.fullmatch(r"\+{0,2}[\w./@-]+", dimension.key):
        raise InputError(f"{where}.key='{dimension.key}': must be a key as on the command line, e.g. stages.end_to_end.learning_rate")
    if dimension.choices is not None:
        if low is not None or high is not None or dimension.log or step is not None:
            raise InputError(f"{where}: has choices, so low, high, log and step have no meaning; leave them out")
        if len(dimension.choices) < 2 or any(value in dimension.choices[:i] for i, value in enumerate(dimension.choices)):
            raise InputError(f"{where}.choices={dimension.choices}: must be at least two different values")
        return
    if low is None or high is None:
        raise InputError(f"{where}: needs low and high, or choices")
    for name, value in {"low": low, "high": high, "step": step}.items():
        if value is not None and not math.isfinite(value):
            raise InputError(f"{where}.{name}={value}: must be a finite number")
    if low >= high:
        raise InputError(f"{where}: low={low} must be below high={high}")
    if dimension.log and low <= 0:
        raise InputError(f"{where}.low={low}: must be above 0 where log is true")
    if step is not None and (step <= 0 or dimension.log):
        raise InputError(f"{where}.step={step}: {'has no meaning where log is true' if dimension.log else 'must be above 0'}")
    if isinstance(low, int) and isinstance(high, int) and isinstance(step, float):
        raise InputError(f"{where}.step={step}: must be whole where low and high are; or write low as {float(low)}")


def _check_metric(sweep: Sweep) -> None:
    names = metric_names(["val"])
    if not sweep.metric.startswith("val/"):
        hint = nearest(sweep.metric, [name for name in names if name.startswith("val/")])
        raise InputError(f"sweep.metric='{sweep.metric}': must be one of the validation (the test split is for the winner){hint}")
    try:
        better = check_metric_name(sweep.metric).better
    except InputError as error:
        raise InputError(f"sweep.metric: {error}") from error
    if better and better != sweep.mode:
        raise InputError(f"sweep.mode={sweep.mode}: the best {sweep.metric} is its {better}; set sweep.mode={better}")


def ends(dimension: Dimension) -> Sequence[Value]:
    """Values that stand for the others when a space is tried out: every choice, or the two ends."""
    return dimension.choices if dimension.choices is not None else [dimension.low, dimension.high]


def word(key: str, value: Value) -> str:
    """``key=value`` as Hydra reads it.

    >>> word("a.b", 0.1), word("model", "multimodal"), word("c", None), word("d", "two words"), word("e", True)
    ('a.b=0.1', 'model=multimodal', 'c=null', "d='two words'", 'e=true')
    """
    if value is None or isinstance(value, bool):
        text = {None: "null", True: "true", False: "false"}[value]
    elif isinstance(value, str) and not re.fullmatch(r"[A-Za-z_][\w./-]*", value):
        text = "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    else:
        text = repr(value) if not isinstance(value, str) else value
    return f"{key}={text}"
