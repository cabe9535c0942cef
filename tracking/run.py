"""One run of several stages in MLflow: a parent run, and a nested child run per stage. Opened again, it goes on in the same runs."""

from __future__ import annotations

import datetime
import errno
import fcntl
import json
import logging
import os
import platform
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from insight.errors import InputError, Pruned
from tracking import facts
from tracking.earlier import EarlierRuns
from tracking.journal import JournalMLFlowLogger, drain
from tracking.records import PARENT_KEY
from tracking.registration import Registration, deliver, request
from tracking.store import store_errors, without_password

logger = logging.getLogger(__name__)

SOURCE_FOLDER = Path(__file__).resolve().parent.parent


class TrackedRun:
    """The MLflow side of RUN. On ranks other than zero it writes nothing.

    Args:
        run_dir: RUN; journals go to RUN/tracking.
        experiment_name: The MLflow experiment.
        run_name: The parent run's name; by default the folder's.
        tracking_uri: See JournalMLFlowLogger.
        output_dir: Where the default store lies.
        artifact_location: See JournalMLFlowLogger.
        drain_seconds: How long ``finish`` waits at most for the store.
        sweep_dir: Folder of the sweep that the run is a trial of; its MLflow run is then this one's parent, and the tag ``trial`` is the
            trial's number, the name of ``run_dir``.
    """

    def __init__(
        self,
        run_dir: str | Path,
        experiment_name: str,
        run_name: str | None = None,
        tracking_uri: str | None = None,
        output_dir: str | Path = "outputs",
        artifact_location: str | None = None,
        drain_seconds: float = 15.0,
        sweep_dir: str | Path | None = None,
    ) -> None:
        self.run_dir = Path(run_dir).absolute()
        self.experiment_name = experiment_name
        self.tracking_uri = tracking_uri
        self.output_dir = output_dir
        self.artifact_location = artifact_location
        self.drain_seconds = drain_seconds
        parent = None if sweep_dir is None else os.path.relpath(Path(sweep_dir) / "tracking" / PARENT_KEY, self.run_dir / "tracking")
        self.logger = self._make_logger(PARENT_KEY, run_name or self.run_dir.name, parent)
        self._trial = {} if sweep_dir is None else {"trial": self.run_dir.name}
        self._stages: dict[str, JournalMLFlowLogger] = {}
        self._unfinished: set[str] = set()
        self._earlier: EarlierRuns | None = None

    @property
    def run_id(self) -> str | None:
        """The parent's id in MLflow, once the store has it."""
        return self.logger.run_id

    @rank_zero_only
    def start(
        self,
        params: Mapping[str, Any],
        tags: Mapping[str, str] | None = None,
        config_path: str | Path | None = None,
        artifacts: Sequence[str | Path] = (),
    ) -> None:
        """Begin the run or go on with it: status RUNNING, the nested ``params`` flattened, the code's state, config and environment.

        On going on, params stay as they were; another commit is recorded beside the first, under its own tags and file names.
        """
        going_on = self.logger.journal.opening() is not None
        self.logger.open()
        if self.logger.killed_at is not None:
            self._say_killed(self.logger.killed_at)
        git = facts.git_facts(SOURCE_FOLDER)
        first_commit = self.logger.recorded_tags.get("mlflow.source.git.commit")
        suffix = ""
        if first_commit is not None and first_commit != (git.commit or "none"):
            logger.warning("the run was begun with commit %s and goes on with %s", first_commit, git.commit or "none")
            suffix = ".resumed"
        self.logger.set_tags(
            {
                "mlflow.user": facts.user_name(),
                "mlflow.source.name": Path(sys.argv[0]).name or "python",
                "mlflow.source.type": "LOCAL",
                f"mlflow.source.git.commit{suffix}": git.commit or "none",
                f"git.branch{suffix}": git.branch or "none",
                f"git.dirty{suffix}": "unknown" if git.dirty is None else str(git.dirty).lower(),
                **({f"git.note{suffix}": git.note} if git.note else {}),
                **self._trial,
                **(tags or {}),
            }
        )
        self.logger.log_params(flatten(params))
        if config_path is not None:
            self.logger.log_artifact(config_path)
        if not going_on or suffix:
            self._log_text(f"environment{suffix}.json", json.dumps(facts.environment(), indent=2) + "\n")
            if git.diff:
                self._log_text(f"git{suffix}.diff", git.diff)
        for path in artifacts:
            self.logger.log_artifact(path)
        self._ship_stages_before()
        self._earlier = EarlierRuns(self.output_dir, self.logger.tracking_uri, self.run_dir)
        self._earlier.start()

    def stage_logger(self, index: int, name: str) -> JournalMLFlowLogger:
        """The logger of stage ``index`` (from 0), nested under the parent; hand it to that stage's Trainer."""
        key = f"{index + 1:02d}-{name}"
        stage = self._stage(key)
        self.logger.open()  # a child is made under its parent, so the parent's journal must begin first
        stage.open()
        self._unfinished.add(key)
        return stage

    @rank_zero_only
    def finish_stage(self, stage: JournalMLFlowLogger, status: str) -> None:
        """FINISHED, FAILED or KILLED; doesn't wait, the next stage begins while this one is still being sent."""
        stage.set_status(status)
        self._unfinished.discard(stage.version)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Summary figures of the whole run, on the parent (``test/...``)."""
        self.logger.log_metrics(metrics, step)

    @rank_zero_only
    def log_artifact(self, local_path: str | Path, artifact_path: str | None = None) -> None:
        self.logger.log_artifact(local_path, artifact_path)

    @rank_zero_only
    def set_tags(self, tags: Mapping[str, str]) -> None:
        self.logger.set_tags(tags)

    @rank_zero_only
    def register(self, registration: Registration) -> None:
        """Ask for the run to become a version of a registered model; ``deliver_registration`` or ``tracking.sync`` sees to it."""
        request(self.run_dir, registration)

    @rank_zero_only
    def deliver_registration(self) -> str | None:
        """After ``finish``: the address of the version that the run has become. None: none was asked for, or a warning says why."""
        errors: tuple[type[Exception], ...] = (InputError, *store_errors())
        try:
            return deliver(self.run_dir, self.logger.tracking_uri)
        except errors as error:
            reason = without_password(" ".join(str(error).split()))[:300]
            logger.warning("the run is not registered yet (%s); `python -m tracking.sync %s` tries again", reason, self.run_dir)
            return None

    @rank_zero_only
    def finish(self, status: str, error: BaseException | None = None) -> None:
        """Write the final status (of stages still running too), wait ``drain_seconds`` at most, and say what couldn't be sent.

        ``status_of(error)`` gives the status that an exception means. For FAILED the traceback becomes the artifact error.txt.
        A run that ends before ``start`` (a mistake in the config, data that isn't there) leaves nothing in the store.
        """
        if not self.logger.opened:
            return
        if error is not None and status == "FAILED":
            self._log_text("error.txt", without_password("".join(traceback.format_exception(error))))
        if isinstance(error, Pruned):
            self.logger.set_tags({"pruned": str(error)})
        for key in sorted(self._unfinished):
            self._stages[key].set_status(status)
        self._unfinished.clear()
        self.logger.set_status(status)
        loggers = [self.logger, *self._stages.values()]
        started = time.monotonic()
        drain(loggers, self.drain_seconds)
        if self._earlier is not None:
            self._earlier.stop(max(0.0, self.drain_seconds - (time.monotonic() - started)))
        for each in loggers:
            each.journal.close()

    def _ship_stages_before(self) -> None:
        """A stage that ended just before the process was killed may not have arrived, and no later stage would send it."""
        for path in sorted((self.run_dir / "tracking").glob("*/journal.jsonl")):
            key = path.parent.name
            if key != PARENT_KEY and path.stat().st_size and (stage := self._stage(key)).sender.records_left():
                stage.ship()

    def _stage(self, key: str) -> JournalMLFlowLogger:
        if key not in self._stages:
            self._stages[key] = self._make_logger(key, key, PARENT_KEY)
            self._stages[key].store_warned = self.logger.store_warned
        return self._stages[key]

    def _make_logger(self, key: str, name: str, parent_key: str | None) -> JournalMLFlowLogger:
        return JournalMLFlowLogger(
            experiment_name=self.experiment_name,
            run_name=name,
            tracking_uri=self.tracking_uri,
            journal_dir=self.run_dir / "tracking" / key,
            output_dir=self.output_dir,
            artifact_location=self.artifact_location,
            parent_key=parent_key,
            driven=True,
            drain_seconds=self.drain_seconds,
        )

    def _say_killed(self, killed_at: int) -> None:
        times = [known for known in self.logger.recorded_tags.get("killed", "").split(", ") if known]
        times.append(datetime.datetime.fromtimestamp(killed_at / 1000, datetime.UTC).isoformat(timespec="seconds"))
        logger.warning("the process before was killed without a word, last heard of at %s; the run goes on", times[-1])
        self.logger.set_tags({"killed": ", ".join(times)})

    def _log_text(self, name: str, text: str) -> None:
        path = self.logger.journal.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", errors="replace")
        self.logger.log_artifact(path)


def status_of(error: BaseException | None) -> str:
    """The MLflow status that a run's end means. Lightning turns Ctrl-C into a SystemExit; what it came from tells them apart."""
    if error is None:
        return "FINISHED"
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, KeyboardInterrupt | SIGTERMException | Pruned):
            return "KILLED"
        seen = seen.__cause__ or seen.__context__
    return "FAILED"


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """``{"a": {"b": [1, {"c": 2}]}}`` -> ``{"a.b.0": "1", "a.b.1.c": "2"}``; a list of plain values stays one value.

    >>> flatten({"model": {"dim": 8, "layers": [1, 2]}, "seed": None})
    {'model.dim': '8', 'model.layers': '[1, 2]', 'seed': 'None'}
    """
    flat: dict[str, str] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value):
            value = {str(index): item for index, item in enumerate(value)}
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{name}."))
        else:
            flat[name] = str(value)
    return flat


class RunLock:
    """``with RunLock(run_dir):`` refuses a second process on the same run folder: two would write over each other's checkpoints.

    A record lock (lockf): the kernel frees it when this process dies, even while its data workers still live. Only rank zero takes it.
    Entering raises InputError naming the process that has the folder.
    """

    def __init__(self, run_dir: str | Path) -> None:
        self.run_dir = Path(run_dir)
        self.path = self.run_dir / ".lock"
        self._file: TextIO | None = None

    @rank_zero_only
    def acquire(self) -> None:
        self.run_dir.mkdir(parents=True, exist_ok=True)
        file = self.path.open("a+", encoding="utf-8")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                file.seek(0)
                holder = file.read().strip() or "another process"
                file.close()
                raise InputError(f"{self.run_dir} is in use by {holder}; wait for it or stop it, or choose another run_dir") from None
            logger.warning("%s can't be locked (%s); don't start a second process on this run folder", self.path, error)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}")
        file.flush()
        self._file = file

    @rank_zero_only
    def release(self) -> None:
        if self._file is not None:
            self._file.truncate(0)
            self._file.close()
            self._file = None

    def __enter__(self) -> RunLock:
        self.acquire()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.release()
