"""The Optuna side of a sweep: the study on disk, the next trial's values, and what became of each trial.

Trial N's values are a function of (seed, N, the trials before), so a sweep that was interrupted ends like one that was not.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from insight.errors import InputError
from insight.stages import Call, check_arguments, derive_seed, load
from lightning_modules.settings import Dimension, Sweep, Value

if TYPE_CHECKING:
    import optuna

logger = logging.getLogger(__name__)

MISSING = "a sweep needs Optuna 4 or newer, the extra `sweeps`: pip install 'optuna>=4'"
STUDY = "study.jsonl"


class TrialRow(NamedTuple):
    """One trial as the tables and figures show it."""

    number: int
    state: str  # complete, pruned, failed or running
    values: dict[str, Value]  # by name of the dimension
    value: float | None  # of the objective; a pruned trial's is the last that it reported
    reason: str
    curve: dict[int, float]  # step -> value of each validation


class SweepStudy:
    """The study in ``folder/study.jsonl``; whoever opens it holds the folder's lock, and has called ``check_classes``."""

    def __init__(self, sweep: Sweep, folder: Path) -> None:
        import optuna
        from optuna.storages.journal import JournalFileBackend

        self.sweep = sweep
        self._make_sampler, make_pruner = check_classes(sweep)
        folder.mkdir(parents=True, exist_ok=True)
        cut_torn_line(folder / STUDY)
        lock: Any = HeldAlready()
        backend = JournalFileBackend(str(folder / STUDY), lock_obj=lock)
        self.study = optuna.create_study(
            storage=optuna.storages.JournalStorage(backend),
            study_name=sweep.name,
            direction="maximize" if sweep.mode == "max" else "minimize",
            sampler=self._make_sampler(seed=sweep.seed),
            pruner=make_pruner(),
            load_if_exists=True,
        )

    @property
    def done(self) -> bool:
        """Whether all have been tried, and none was interrupted."""
        trials = self.study.get_trials(deepcopy=False)
        return len(trials) >= self.sweep.num_trials and all(trial.state.is_finished() for trial in trials)

    def next_trial(self) -> tuple[optuna.Trial, dict[str, Value]]:
        """The trial that was interrupted, or a new one, and its values by name."""
        import optuna

        trials = self.study.get_trials(deepcopy=False)
        running = [trial for trial in trials if not trial.state.is_finished()]
        self.study.sampler = self._make_sampler(seed=derive_seed(self.sweep.seed, running[0].number if running else len(trials)))
        trial = optuna.Trial(self.study, running[0]._trial_id) if running else self.study.ask()
        return trial, {name: suggest(trial, name, dimension) for name, dimension in self.sweep.space.items()}

    def reporter(self, trial: optuna.Trial) -> Callable[[int, float], bool]:
        """``(step, value) -> go on?`` for ReportObjective. A closure: callbacks are copied for each stage, a trial must not be."""
        known = set(self.study.get_trials(deepcopy=False)[trial.number].intermediate_values)

        def report(step: int, value: float) -> bool:
            if step not in known:
                trial.report(value, step)
            return not trial.should_prune()

        return report

    def tell(self, trial: optuna.Trial, state: str, value: float | None = None, reason: str = "") -> None:
        """Close a trial as ``complete`` (with its value), ``pruned`` or ``failed``."""
        import optuna

        if reason:
            trial.set_user_attr("reason", reason)
        states = {"pruned": optuna.trial.TrialState.PRUNED, "failed": optuna.trial.TrialState.FAIL}
        if state == "complete" and value is not None and math.isfinite(value):
            self.study.tell(trial, value)
        else:
            self.study.tell(trial, state=states.get(state, optuna.trial.TrialState.FAIL))

    def rows(self) -> list[TrialRow]:
        """Every trial, in order."""
        names = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}
        return [
            TrialRow(
                trial.number,
                names.get(trial.state.name, "running"),
                dict(trial.params),
                trial.value,
                trial.user_attrs.get("reason", ""),
                dict(trial.intermediate_values),
            )
            for trial in self.study.get_trials(deepcopy=False)
        ]


def best_row(rows: list[TrialRow], mode: str) -> TrialRow | None:
    """The best of the complete trials; the earlier of two that are equal."""
    complete = [row for row in rows if row.state == "complete" and row.value is not None]
    sign = 1 if mode == "min" else -1
    return min(complete, key=lambda row: (sign * (row.value or 0.0), row.number), default=None)


def check_classes(sweep: Sweep) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """What makes the sampler (of a seed) and the pruner.

    Raises:
        InputError: Optuna is not installed, or one of them cannot be made.
    """
    try:
        import optuna
    except ImportError as error:
        raise InputError(MISSING) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    make_sampler = bind(sweep.sampler, optuna.samplers.BaseSampler, "sweep.sampler", supplied=("seed",))
    make_pruner = bind(sweep.pruner, optuna.pruners.BasePruner, "sweep.pruner")
    make_sampler(seed=sweep.seed)
    make_pruner()
    return make_sampler, make_pruner


def bind(call: Call, base: type, key: str, supplied: tuple[str, ...] = ()) -> Callable[..., Any]:
    """A function that makes the object; arguments in ``supplied`` are given to it then.

    Raises:
        InputError: no such class, one of another kind, or arguments that it does not take.
    """
    kind = load(call.function, f"{key}.function")
    if not (isinstance(kind, type) and issubclass(kind, base)):
        raise InputError(f"{key}.function={call.function}: must be a {base.__name__} of Optuna")
    missing = check_arguments(kind, [*call.arguments, *supplied], f"{key}.arguments")
    if missing:
        raise InputError(f"{key}.arguments: {kind.__name__} needs {', '.join(missing)}")

    def make(**given: Any) -> Any:
        try:
            return kind(**call.arguments, **given)
        except (TypeError, ValueError) as error:
            raise InputError(f"{key}: {kind.__name__} cannot be made of {call.arguments}: {error}") from error

    return make


def suggest(trial: optuna.Trial, name: str, dimension: Dimension) -> Value:
    """The trial's value of one dimension; the same again when it is asked a second time."""
    if dimension.choices is not None:
        return trial.suggest_categorical(name, dimension.choices)
    low, high, step = dimension.low, dimension.high, dimension.step
    assert low is not None and high is not None, "checked when the sweep was read"
    if isinstance(low, int) and isinstance(high, int):
        return trial.suggest_int(name, low, high, step=int(step or 1), log=dimension.log)
    return trial.suggest_float(name, low, high, step=step, log=dimension.log)


class HeldAlready:
    """Optuna's lock on its file. Its own would outlive a process that was killed; the sweep's RunLock is the lock here."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        return None


def cut_torn_line(path: Path) -> None:
    """A full disk or a power cut may leave half a line, which Optuna refuses to read past; what it said is not known anyway."""
    content = path.read_bytes() if path.exists() else b""
    keep = content.rfind(b"\n") + 1
    if keep < len(content):
        logger.warning("%s ended in a half-written line, which is cut off", path)
        os.truncate(path, keep)
