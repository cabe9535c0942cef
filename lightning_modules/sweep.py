"""`python train.py +experiment=... +sweep=NAME`: trials one after the other, the hopeless ones ended early, under one MLflow run.

The study, and each trial in a folder of its own, lie in OUTPUT_DIR/sweeps/NAME. However it was stopped, the same command goes on: with the
trial that was under way where that stood, and to the very trials that it would have had.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import torch
import yaml
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from callbacks.objective import ReportObjective
from callbacks.stage_scheduler import write_json
from insight.errors import InputError, Pruned, TrainingFailure
from lightning_modules.drive import EXIT_INTERRUPTED, check_tracking, differences, hush, run_stages, say
from lightning_modules.engine_cli import EngineCLI, build
from lightning_modules.keys import HYDRA_ONLY, check_keys
from lightning_modules.overrides import CONFIGS, compose_plain, explain
from lightning_modules.settings import Sweep, Value
from lightning_modules.space import ends, read_sweep, word
from lightning_modules.study import SweepStudy, TrialRow, best_row, check_classes
from lightning_modules.trials import draw_trials, is_sweep_word, train_command, trial_facts, trial_table, trial_words
from tracking.run import RunLock, TrackedRun, status_of

FAILURES_IN_A_ROW = 3
DEFINITION, FACTS, PICTURE = "sweep.yaml", "trials.json", "trials.png"


def run_sweep(composed: dict[str, Any], overrides: list[str]) -> int:
    """Try what is left to try; a table, a picture and the command of the best at the end. Returns the exit code.

    Args:
        composed: The resolved composition, with its ``sweep``.
        overrides: The words of the command line from which it was composed; each trial adds its own.

    Raises:
        InputError: a mistake in the sweep, found before any trial starts; or all trials were pruned.
        TrainingFailure: several trials in a row failed.
    """
    sweep = read_sweep(composed["sweep"])
    check_classes(sweep)
    if composed["run_dir"] is not None:
        raise InputError(f"run_dir={composed['run_dir']}: a sweep's folder is run.output_dir/sweeps/NAME; leave it out, set sweep.name")
    check_space(sweep, overrides)
    first = build(trial_config(sweep, overrides, {name: ends(dimension)[0] for name, dimension in sweep.space.items()}))
    if str(first.trainer_arguments.get("devices", 1)) != "1":
        raise InputError(f"trainer.devices={first.trainer_arguments['devices']}: a trial of a sweep trains on one device")
    hush(first.settings.log_level)
    address = check_tracking(first)
    folder = Path(first.settings.output_dir) / "sweeps" / sweep.name
    with RunLock(folder):
        freeze(folder, sweep, first)
        study = SweepStudy(sweep, folder)
        if study.done:
            say(f"{folder} is finished; sweep.num_trials={2 * sweep.num_trials} goes on with it")
            return conclude(sweep, overrides, folder, study.rows(), None)
        tracked = None
        if address is not None:
            tracked = TrackedRun(folder, first.tracking.experiment, sweep.name, address, first.settings.output_dir)
            params = {"sweep": {key: value for key, value in dataclasses.asdict(sweep).items() if key != "num_trials"}}
            tracked.start(params, {"sweep": sweep.name, "env": first.settings.env}, folder / DEFINITION)
        try:
            code = run_trials(sweep, overrides, folder, study, tracked)
            if code == 0:
                code = conclude(sweep, overrides, folder, study.rows(), tracked)
        except BaseException as error:
            if tracked:
                tracked.finish("FINISHED" if isinstance(error, InputError) else status_of(error), error)
            if not isinstance(error, KeyboardInterrupt):
                raise
            code = EXIT_INTERRUPTED
        else:
            if tracked:
                tracked.finish("KILLED" if code == EXIT_INTERRUPTED else "FINISHED")
    if code == EXIT_INTERRUPTED:
        say(f"\nthe sweep is stopped; the same command goes on with it ({folder})")
    return code


def run_trials(sweep: Sweep, overrides: list[str], folder: Path, study: SweepStudy, tracked: TrackedRun | None) -> int:
    """One trial after the other, until all are tried or one is stopped. Returns the exit code."""
    failures = 0
    while not study.done:
        trial, values = study.next_trial()
        say(f"\n=== trial {trial.number + 1} of {sweep.num_trials}: {' '.join(trial_words(sweep, values))}")
        reason = ""
        try:
            config = trial_config(sweep, overrides, values)
            cli = build({**config, "run_dir": str(folder / str(trial.number))})
            cli.callbacks["sweep"] = ReportObjective(sweep.metric, cli.plan.names, study.reporter(trial))
            code = run_stages(cli, sweep_dir=folder)
            if code:
                return code  # stopped by a signal: the trial is still running as far as the study knows, and goes on next time
            study.tell(trial, "complete", objective(sweep, folder / str(trial.number)))
        except Pruned as error:
            reason = str(error)
            study.tell(trial, "pruned", reason=reason)
            say(f"  pruned: {reason}")
        except (InputError, TrainingFailure, torch.OutOfMemoryError) as error:
            reason = str(error)
            study.tell(trial, "failed", reason=reason)
            say(f"  failed: {reason}")
        rows = study.rows()
        failures = failures + 1 if rows[trial.number].state == "failed" else 0
        if tracked:
            log_trial(sweep, tracked, rows, trial.number)
        if failures >= FAILURES_IN_A_ROW:
            raise TrainingFailure(f"sweep {sweep.name}: {failures} trials in a row failed; the last: {reason or 'its value is not finite'}")
    return 0


def conclude(sweep: Sweep, overrides: list[str], folder: Path, rows: list[TrialRow], tracked: TrackedRun | None) -> int:
    """Say and keep what was found.

    Raises:
        InputError: no trial was finished.
    """
    write_json(folder / FACTS, trial_facts(sweep, rows))
    draw_trials(sweep, rows, folder / PICTURE)
    if tracked:
        tracked.log_artifact(folder / FACTS)
        tracked.log_artifact(folder / PICTURE)
    say(f"\n{trial_table(sweep, rows)}\npicture:   {folder / PICTURE}")
    best = best_row(rows, sweep.mode)
    if best is None:
        raise InputError(
            f"sweep {sweep.name}: none of {len(rows)} trials was finished ({sum(row.state == 'pruned' for row in rows)} pruned): let "
            "sweep.pruner wait longer, e.g. sweep.pruner.arguments.n_startup_trials=5, with another sweep.name"
        )
    say(f"best:      trial {best.number}, {sweep.metric} {best.value:.4f}\ntrain it:  {train_command(overrides, sweep, best)}")
    return 0


def log_trial(sweep: Sweep, tracked: TrackedRun, rows: list[TrialRow], number: int) -> None:
    """On the sweep's own run: the trial's value, the best so far and its keys."""
    best, value = best_row(rows, sweep.mode), rows[number].value
    figures = {} if value is None else {"sweep/value": value}
    if best is not None and best.value is not None:
        figures["sweep/best"] = best.value
        keys = {f"best.{sweep.space[name].key.lstrip('+')}": str(chosen) for name, chosen in best.values.items()}
        tracked.set_tags({"best.trial": str(best.number), **keys})
    if figures:
        tracked.log_metrics(figures, number)


def objective(sweep: Sweep, run_dir: Path) -> float:
    """The metric of the last stage's best weights, those that a run hands on."""
    metrics = json.loads((run_dir / "summary.json").read_text())["stages"][-1]["metrics"]
    return float(metrics[sweep.metric])


# --- before the first trial ---
def trial_config(sweep: Sweep, overrides: list[str], values: dict[str, Value]) -> dict[str, Any]:
    """The config of a run with these values, composed anew, so that what else depends on a key follows it."""
    config = compose_plain(CONFIGS, [*overrides, *trial_words(sweep, values)])
    for key in ("sweep", "resume", *HYDRA_ONLY):
        config.pop(key, None)
    config["deployment"] = {**config["deployment"], "register": False}
    return config


def check_space(sweep: Sweep, overrides: list[str]) -> None:
    """Every key of the space is one that something reads, and is not given beside it.

    Raises:
        InputError: names the key, and the nearest that exists.
    """
    given = {one.lstrip("+~").partition("=")[0]: one for one in overrides if not is_sweep_word(one)}
    for name, dimension in sweep.space.items():
        key = dimension.key.lstrip("+")
        if key in given:
            raise InputError(f"sweep.space.{name}.key={key}: is searched, so leave out {given[key]}")
        for value in ends(dimension):
            words = [*overrides, word(dimension.key, value)]
            try:
                config = compose_plain(CONFIGS, words)
                check_keys({key: config[key] for key in config if key not in ("sweep", "resume", *HYDRA_ONLY)})
            except InputError as error:
                raise InputError(f"sweep.space.{name}.key: {error}") from error
            except (HydraException, OmegaConfBaseException) as error:
                said = " ".join(str(explain(error, CONFIGS, words)).split())
                raise InputError(f"sweep.space.{name}.key: {said}") from error


def freeze(folder: Path, sweep: Sweep, first: EngineCLI) -> None:
    """Keep what the sweep is in its folder.

    Raises:
        InputError: the folder belongs to another sweep; shows the difference.
    """
    definition = {"sweep": dataclasses.asdict(sweep), "config": first.frozen}
    path = folder / DEFINITION
    if path.exists():
        old = yaml.safe_load(path.read_text())
        before = {**old, "sweep": {**old["sweep"], "num_trials": sweep.num_trials}}  # more trials are no other sweep
        changed = differences(before, yaml.safe_load(yaml.safe_dump(definition, sort_keys=False)))
        if changed:
            listed = "\n  ".join(changed[:20])
            raise InputError(f"{folder} holds another sweep (its value -> the one asked for):\n  {listed}\nset another sweep.name")
    temporary = path.with_name(f"{DEFINITION}.tmp")
    temporary.write_text(yaml.safe_dump(definition, sort_keys=False))
    os.replace(temporary, path)
