"""Settings of a run that belong to no class: where it goes, how often it saves, where it is tracked."""

from __future__ import annotations

import dataclasses
from typing import Literal
from urllib.parse import urlsplit

from insight.errors import InputError


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
