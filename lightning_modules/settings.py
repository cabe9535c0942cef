"""Settings of a run that belong to no class: where it goes, how often it saves, where it is tracked."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class RunSettings:
    """Args:
    name: Word in the name of the run's folder and of the MLflow run.
    output_dir: Folder of all runs; in it ``latest`` points to the newest.
    save_every_n_steps: Optimiser steps between two resume points within an epoch.
    test: Test the last stage's best weights at the end.
    """

    name: str = "run"
    output_dir: str = "outputs"
    save_every_n_steps: int = 50
    test: bool = True


@dataclasses.dataclass(frozen=True)
class Tracking:
    """Args:
    experiment: MLflow experiment.
    tracking_uri: MLflow store; null: ``MLFLOW_TRACKING_URI`` where set, else ``sqlite:///OUTPUT_DIR/mlflow.db``.
    enabled: False keeps nothing in MLflow.
    """

    experiment: str = "flickr"
    tracking_uri: str | None = None
    enabled: bool = True


@dataclasses.dataclass(frozen=True)
class Deployment:
    """Args:
    name: Registered model that the finished run becomes a version of.
    bundle: Write RUN/bundle at the end: weights, tokenizer, preprocessing and model card, usable without this framework.
    register: Make the bundle a version of ``name`` in MLflow; needs ``bundle`` and, as all that is kept in MLflow, ``tracking.enabled``.
    """

    name: str = "flickr"
    bundle: bool = True
    register: bool = True
