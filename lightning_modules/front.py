"""From a composed mapping to a run: resume, first line, and the start of several processes without Hydra."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import yaml

from insight.errors import InputError, TrainingFailure, report
from lightning_modules.drive import check_tracking, open_run_dir, run_stages
from lightning_modules.engine_cli import build
from lightning_modules.reproduce import reproduce

HYDRA_ONLY = ("reproduce", "paths")  # read here, or by other keys of the composition; no part of a run's own config


def read_run(folder: str) -> dict[str, Any]:
    """The frozen config of a run, with its own folder as ``run_dir``.

    Raises:
        InputError: no such folder, or no config in it.
    """
    path = Path(folder) / "config.yaml"
    if not path.exists():
        raise InputError(f"resume={folder}: {path} does not exist; give the folder of a run, e.g. resume=outputs/latest")
    return {**yaml.safe_load(path.read_text()), "run_dir": str(Path(folder).resolve())}


def run_composed(config: dict[str, Any], overrides: list[str], full_error: bool = False, trial: bool = False) -> int:
    """Train what the mapping says; a mistake is one message. Returns the exit code.

    ``trial``: the run is one of a sweep's, and no version of a registered model.
    """
    try:
        return _run_composed(config, overrides, full_error, trial)
    except (InputError, TrainingFailure, FileNotFoundError) as error:
        return report(error, full_error)


def _run_composed(config: dict[str, Any], overrides: list[str], full_error: bool, trial: bool) -> int:
    resume = config.pop("resume", None)
    if resume is not None:
        others = [word for word in overrides if not word.startswith("resume=")]
        if others:
            raise InputError(
                f"resume={resume} reads the run's own config.yaml; leave out {' '.join(others)}, or start another run with them"
            )
        config = read_run(resume)
    reference = config.pop("reproduce", None)
    if reference is not None:
        return reproduce(reference, config, overrides)
    if trial:
        config["deployment"] = {**config.get("deployment", {}), "register": False}
    for key in HYDRA_ONLY:
        config.pop(key, None)
    cli = build(config)
    if several_processes(cli.trainer_arguments):
        check_tracking(cli)
        run_dir = open_run_dir(cli)
        command = [
            sys.executable,
            "-m",
            "lightning_modules.cli",
            "multistage",
            "--config",
            str(run_dir / "config.yaml"),
            "--run_dir",
            str(run_dir),
        ]
        sys.stdout.flush()
        os.environ["HYDRA_FULL_ERROR"] = str(int(full_error))
        os.execv(sys.executable, command)  # children are started from this command line, so Hydra must not be in it
    return run_stages(cli)


def several_processes(arguments: dict[str, Any]) -> bool:
    """Whether the Trainer will start processes."""
    return str(arguments.get("devices", 1)) != "1" or int(arguments.get("num_nodes", 1) or 1) > 1
