"""Settings that belong to no class: of a run (where it goes, how often it saves, where it is tracked), and of a sweep over runs."""

from __future__ import annotations

import dataclasses
from typing import Literal
from urllib.parse import urlsplit

from insight.errors import InputError
from insight.stages import Call

ADDED = ("experiment", "sweep")  # groups of configs/ that are no part of the defaults: +group=option
Value = int | float | bool | str | None


@dataclasses.dataclass(frozen=True)
class RunSettings:
    """A run as a whole.

    Args:
        name: Word in the name of the run's folder and of the MLflow run.
        output_dir: Folder of all runs; in it ``latest`` points to the newest.
        save_every_n_steps: Optimiser steps between two resume points within an epoch.
        test: Test the last stage's best weights at the end.
        env: The environment that the config was composed for; the MLflow tag ``env``.
        log_level: Least severe message of our own code that is shown.
    """

    name: str = "run"
    output_dir: str = "outputs"
    save_every_n_steps: int = 50
    test: bool = True
    env: str = "dev"
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "WARNING"


@dataclasses.dataclass(frozen=True)
class Tracking:
    """Where a run is tracked.

    Args:
        experiment: MLflow experiment.
        tracking_uri: MLflow store; null: ``MLFLOW_TRACKING_URI`` where set, else ``sqlite:///OUTPUT_DIR/mlflow.db``.
        tracking_uri_env: Name of the variable that holds the store's address, which must then be set. Null: ``tracking_uri`` counts.
        registry_uri: MLflow model registry; null: the tracking store's own.
        token_env: Name of the variable that holds the store's token, never the token; it must then be set. Null: no token.
        enabled: False keeps nothing in MLflow.
    """

    experiment: str = "flickr"
    tracking_uri: str | None = None
    tracking_uri_env: str | None = None
    registry_uri: str | None = None
    token_env: str | None = None
    enabled: bool = True

    def __post_init__(self) -> None:
        if self.tracking_uri is not None and "@" in urlsplit(self.tracking_uri).netloc:
            raise InputError(
                "tracking.tracking_uri holds a password, which config.yaml would keep: put the address into a variable and name that, "
                "e.g. tracking.tracking_uri_env=MLFLOW_TRACKING_URI"
            )
        if self.tracking_uri is not None and self.tracking_uri_env is not None:
            raise InputError("tracking.tracking_uri and tracking.tracking_uri_env are both given: set one of them to null")


@dataclasses.dataclass(frozen=True)
class Deployment:
    """What a finished run leaves for others.

    Args:
        name: Registered model that the run becomes a version of.
        bundle: Write RUN/bundle at the end: weights, tokenizer, preprocessing and model card, usable without this framework.
        register: Make the bundle a version of ``name`` in MLflow; needs ``bundle`` and, as all that MLflow keeps, ``tracking.enabled``.
    """

    name: str = "flickr"
    bundle: bool = True
    register: bool = True


@dataclasses.dataclass(frozen=True)
class Dimension:
    """One key that a sweep varies: between ``low`` and ``high``, or among ``choices``.

    Args:
        key: The key (or group) as on the command line, e.g. ``stages.end_to_end.learning_rate``; ``+key`` adds one.
        low: Smallest value. Whole numbers for both ends search whole numbers.
        high: Largest value.
        log: Search the logarithm: as many trials between 1e-4 and 1e-3 as between 1e-3 and 1e-2.
        step: Distance of two neighbouring values.
        choices: The values, instead of ``low`` and ``high``; options of a group are named.
    """

    key: str
    low: int | float | None = None
    high: int | float | None = None
    log: bool = False
    step: int | float | None = None
    choices: list[Value] | None = None


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A search for the best values of some keys.

    Args:
        name: Its folder under ``run.output_dir/sweeps``; the same command with the same name goes on.
        metric: What to improve, e.g. ``val/mean_recall``: of the last stage's best weights, and of every validation on the way there.
        mode: Whether ``max`` or ``min`` of it is best.
        num_trials: How many trials in all, pruned ones included; raise it to go on with a finished sweep.
        seed: Of the sampler. Trial N depends on it and on the trials before alone, so an interrupted sweep ends like any other.
        sampler: How values are chosen: a class of ``optuna.samplers``, its arguments without the seed.
        pruner: Which trials end early: a class of ``optuna.pruners``. The step of a validation is 1000 times its stage (0, 1, ...) plus its
            number in the stage (0, 1, ...).
        space: The keys that vary, by a name of your own.
    """

    name: str
    metric: str = "val/mean_recall"
    mode: Literal["max", "min"] = "max"
    num_trials: int = 20
    seed: int = 0
    sampler: Call = dataclasses.field(default_factory=lambda: Call("optuna.samplers.TPESampler"))
    pruner: Call = dataclasses.field(default_factory=lambda: Call("optuna.pruners.MedianPruner"))
    space: dict[str, Dimension] = dataclasses.field(default_factory=dict)
