"""From a composed mapping to a run: resume, first line, and the start of several processes without Hydra."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from insight.errors import InputError, TrainingFailure, report
from lightning_modules.drive import check_tracking, open_run_dir, run_stages
from lightning_modules.engine_cli import build
from lightning_modules.keys import HYDRA_ONLY
from lightning_modules.reproduce import reproduce
from lightning_modules.sweep import run_sweep


def read_run(folder: str) -> dict[str, Any]:
    """The frozen config of a run, with its own folder as ``run_dir``.

    Raises:
        InputError: no such folder, or no config in it.
    """
    path = Path(folder) / "config.yaml"
    if not path.exists():
        raise InputError(f"resume={folder}: {path} does not exist; give the folder of a run, e.g. resume=outputs/latest")
    return {**yaml.safe_load(path.read_text()), "run_dir": str(Path(folder).resolve())}


def run_composed(config: dict[str, Any], overrides: list[str], full_error: bool = False, trial_dir: str | None = None) -> int:
    """Train what the mapping says; a mistake is one message. Returns the exit code.

    ``trial_dir``: the run is one of Hydra's multirun, in this folder, and no version of a registered model.
    """
    try:
        return _run_composed(config, overrides, full_error, trial_dir)
    except (InputError, TrainingFailure, FileNotFoundError) as error:
        return report(error, full_error)


def _run_composed(config: dict[str, Any], overrides: list[str], full_error: bool, trial_dir: str | None) -> int:
    if trial_dir is not None:
        _refuse_for_trials(config)
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
    if "sweep" in config:
        return run_sweep(config, overrides)
    if trial_dir is not None:
        config = {**config, "run_dir": trial_dir, "deployment": {**config.get("deployment", {}), "register": False}}
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
        if trial_dir is not None:  # other trials follow in this process
            return subprocess.run(command).returncode
        os.execv(sys.executable, command)  # children are started from this command line, so Hydra must not be in it
    return run_stages(cli)


def _refuse_for_trials(config: dict[str, Any]) -> None:
    """Keys that all trials of a multirun would share."""
    for key, instead in {
        "run_dir": "trials have folders of their own in hydra.sweep.dir, which can be set",
        "resume": "go on with one run at a time, without --multirun",
        "reproduce": "repeat one run at a time, without --multirun",
        "sweep": "it chooses the values itself; leave --multirun out",
    }.items():
        if config.get(key) is not None:
            raise InputError(f"{key} beside --multirun: {instead}")


def several_processes(arguments: dict[str, Any]) -> bool:
    """Whether the Trainer will start processes."""
    return str(arguments.get("devices", 1)) != "1" or int(arguments.get("num_nodes", 1) or 1) > 1
