"""Lightning's MLFlowLogger with a journal in front: training writes a local line, a thread sends it; training never waits for a server.

Params, tags, metrics, artifacts and status go through ``<journal_dir>/journal.jsonl`` in the order in which they happen.
"""

from __future__ import annotations

import logging
import math
import re
import sys
import threading
import time
import uuid
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.fabric.utilities.logger import _convert_params, _flatten_dict
from lightning.pytorch.loggers import MLFlowLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from insight.errors import InputError
from insight.metric_names import repeats
from tracking.records import Contents, Journal
from tracking.shipper import Sender, Shipper, StoreState
from tracking.store import LazyClient, resolve_tracking_uri, without_password

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

STATUSES = ("RUNNING", "FINISHED", "FAILED", "KILLED")
LONGEST_VALUE = 6000  # of a parameter; a tag's is 8000
LONGEST_NAME = 250


class JournalMLFlowLogger(MLFlowLogger):
    """One MLflow run, written journal-first.

    Args:
        experiment_name: The MLflow experiment; made when it isn't there.
        run_name: The run's name in MLflow.
        tracking_uri: The store; else the variable MLFLOW_TRACKING_URI, else SQLite in ``output_dir``.
        tags: Tags of the run, set when it is made.
        journal_dir: Folder of the journal, RUN/tracking/<key>. An existing journal is gone on with, in the same MLflow run.
        output_dir: Where the default store lies.
        artifact_location: Where a new experiment keeps its files; by default beside a SQLite store, or where the server says.
        parent_key: Journal folder of the parent run, relative to the folder that holds this one.
        driven: A TrackedRun writes the params and the final status, so Lightning's ``log_hyperparams`` and ``finalize`` do nothing.
        drain_seconds: How long the end of a run waits at most for the store.

    Raises InputError for an impossible ``tracking_uri``; makes no file and no connection before the first write on rank zero.
    """

    def __init__(
        self,
        experiment_name: str = "multimodal-insight-engine",
        run_name: str | None = None,
        tracking_uri: str | None = None,
        tags: dict[str, str] | None = None,
        journal_dir: str | Path = "outputs/tracking/run",
        output_dir: str | Path = "outputs",
        artifact_location: str | None = None,
        parent_key: str | None = None,
        driven: bool = False,
        drain_seconds: float = 15.0,
    ) -> None:
        # MLFlowLogger.__init__ is left out: it opens the store, on every rank (tables made twice, a dead server kills the start).
        super(MLFlowLogger, self).__init__()
        if drain_seconds < 0:
            raise InputError(f"drain_seconds={drain_seconds} must be 0 or more")
        self._experiment_name = experiment_name
        self._experiment_id: str | None = None
        self._run_name = run_name
        self._tracking_uri = resolve_tracking_uri(tracking_uri, output_dir)
        self._artifact_location = artifact_location
        self._log_model = False
        self.tags = dict(tags or {})
        self.parent_key = parent_key
        self.driven = driven
        self.drain_seconds = drain_seconds
        self.journal = Journal(journal_dir)
        self._client = LazyClient(self._tracking_uri)
        self.opened = False
        self.killed_at: int | None = None  # milliseconds; when an earlier process was last heard of that was killed without a word
        self._earlier = Contents({}, {}, {}, None)
        self._names: dict[str, str] = {}
        self._said_differs: set[str] = set()
        self._shipper: Shipper | None = None
        self.store_warned = threading.Event()  # shared by the loggers of one TrackedRun: an absent store is said once

    # What Lightning asks; none of it touches the store.

    @property
    @rank_zero_experiment
    def experiment(self) -> MlflowClient | LazyClient:
        """A client for what the journal doesn't do, connected at its first use. It waits for the server; the ``log_*`` methods don't."""
        return self._client

    @property
    def tracking_uri(self) -> str:
        return self._tracking_uri

    @property
    def run_id(self) -> str | None:
        """The id in MLflow, once the run has been made there; None until then."""
        return StoreState(self.journal, self._tracking_uri).run_id

    @property
    def name(self) -> str:
        return self._experiment_name

    @property
    def version(self) -> str:
        return self.journal.folder.name

    @property
    def save_dir(self) -> str:
        return str(self.journal.folder)

    # Writing.

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """One point per name. A point that an earlier process wrote (before it was killed) is not written a second time."""
        self.open()
        step = int(step or 0)
        values = {}
        for raw_name, raw_value in metrics.items():
            name = self._names.get(raw_name) or self._clean_name(raw_name)
            value = float(raw_value)
            if not self._already_there(name, step, value):
                values[name] = value
        if values:
            self.journal.append("metrics", {"step": step, "values": values})

    @rank_zero_only
    def log_params(self, params: Mapping[str, Any]) -> None:
        """Flat names and values; once each. MLflow takes 6000 characters a value: a longer one is cut, which is said and marked."""
        self.open()
        new = {}
        for raw_name, raw_value in params.items():
            name = self._clean_name(raw_name, logging.DEBUG)  # a key of the config, e.g. a pattern with *; config.yaml has it as it is
            value = without_password(str(raw_value))
            if len(value) > LONGEST_VALUE:
                logger.warning("parameter %s has %d characters; MLflow takes %d, so it is cut there", name, len(value), LONGEST_VALUE)
                mark = f"... (cut: {len(value)} characters in all)"
                value = value[: LONGEST_VALUE - len(mark)] + mark
            known = self._earlier.params.get(name)
            if known is None:
                new[name] = value
                self._earlier.params[name] = value
            elif known != value:
                logger.warning("parameter %s is %r now; the run was begun with %r, which is kept", name, value[:100], known[:100])
        if new:
            self.journal.append("params", {"values": new})

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace) -> None:  # type: ignore[override]
        """Lightning calls this with the module's own arguments; a TrackedRun has the whole config on the parent run already."""
        if not self.driven:
            self.log_params(_flatten_dict(_convert_params(params)))

    @rank_zero_only
    def set_tags(self, tags: Mapping[str, str]) -> None:
        self.open()
        new = {name: str(value) for name, value in tags.items() if self._earlier.tags.get(name) != str(value)}
        if new:
            self._earlier.tags.update(new)
            self.journal.append("tags", {"values": new})

    @rank_zero_only
    def log_artifact(self, local_path: str | Path, artifact_path: str | None = None) -> None:
        """Send a file (or folder) to ``artifact_path`` of the run, from the shipper's thread.

        The file stays where it is and is read when it is sent: one that is deleted before that is left out with a warning.
        """
        path = Path(local_path).absolute()
        if not path.exists():
            raise FileNotFoundError(f"no artifact to log at {path}")
        self.open()
        if path.is_relative_to(self.journal.run_dir):
            path = path.relative_to(self.journal.run_dir)
        self.journal.append("artifact", {"path": str(path), "to": artifact_path})

    @rank_zero_only
    def set_status(self, status: str) -> None:
        """Write the run's status (RUNNING, FINISHED, FAILED, KILLED) without waiting for it to arrive."""
        if status not in STATUSES:
            raise ValueError(f"status {status!r} is none of {', '.join(STATUSES)}")
        self.open()
        self.journal.append("status", {"status": status})

    @rank_zero_only
    def rewind(self, step: int) -> None:
        """Training goes on from ``step``: steps after it come a second time; those that the journal holds stay as they are there.

        A resumed run repeats them with equal values, so every (metric, step) keeps exactly one point. Where a value differs after
        all (a device that isn't deterministic), the first stays and a warning names the metric.
        """
        self.open()
        self._earlier = self.journal.contents()
        self._said_differs.clear()
        last = self._earlier.last_step
        if last is not None and last > step:
            logger.info("%s: goes on from step %d; points up to step %d are there already and stay", self.version, step, last)

    # Opening and closing.

    @rank_zero_only
    def open(self) -> None:
        """Begin the run, or go on with it; done by itself at the first write."""
        if not self.opened:
            begun = self.journal.opening()
            if not self.journal.ended():
                self.killed_at = self.journal.mark_killed()
            self._earlier = self.journal.contents()
            fields = {
                "key": begun["key"] if begun else uuid.uuid4().hex,
                "experiment": begun["experiment"] if begun else self._experiment_name,
                "name": begun["name"] if begun else self._run_name,
                "tags": begun["tags"] if begun else self.tags,
                "parent": begun["parent"] if begun else self.parent_key,
                "tracking_uri": without_password(self._tracking_uri),
                "artifact_location": self._artifact_location,
            }
            self.journal.append("open", fields)
            self.opened = True
        self.ship()

    @rank_zero_only
    def ship(self) -> None:
        """Send what the journal holds, in the background, without writing to it."""
        if self._shipper is None:
            self._shipper = Shipper(self.sender, self.store_warned)
            self._shipper.start()

    @rank_zero_only
    def finalize(self, status: str = "success") -> None:
        """Called by Lightning at the end of every fit, validate and test. Lightning says "failed" for Ctrl-C too."""
        if self.driven or not self.opened:
            return
        if status == "failed" and isinstance(sys.exc_info()[1], KeyboardInterrupt | SystemExit):
            status = "KILLED"
        self.close({"success": "FINISHED", "failed": "FAILED"}.get(status, status.upper()))

    @rank_zero_only
    def close(self, status: str | None = None) -> None:
        """Write the final status, send what is left (for ``drain_seconds`` at most), and say what couldn't be sent."""
        if status is not None:
            self.set_status(status)
        drain([self], self.drain_seconds)

    @property
    def recorded_tags(self) -> dict[str, str]:
        """The tags set so far, by earlier processes too."""
        return dict(self._earlier.tags)

    @property
    def sender(self) -> Sender:
        return Sender(self.journal, self._tracking_uri)

    def _already_there(self, name: str, step: int, value: float) -> bool:
        known = self._earlier.points.get(name, {}).get(step)
        if known is None:
            return False
        differs = known != value and not (math.isnan(known) and math.isnan(value))
        if differs and name not in self._said_differs and repeats(name):
            self._said_differs.add(name)
            logger.warning(
                "%s at step %d is %r in the resumed run and was %r before it was stopped; the first is kept (said once a metric)",
                name,
                step,
                value,
                known,
            )
        return True

    def _clean_name(self, raw_name: str, level: int = logging.WARNING) -> str:
        """MLflow takes letters, digits and ``_ / . - space`` in names, 250 of them."""
        name = re.sub(r"[^a-zA-Z0-9_/. -]", "_", raw_name)[:LONGEST_NAME]
        if name != raw_name:
            logger.log(level, "%r is no name that MLflow takes; it is tracked as %r", raw_name, name)
        self._names[raw_name] = name
        return name


def drain(loggers: list[JournalMLFlowLogger], seconds: float) -> bool:
    """Stop the loggers' shippers, waiting ``seconds`` at most for all of them together. True: everything has been sent."""
    deadline = time.monotonic() + seconds
    shippers = [(each, each._shipper) for each in loggers if each._shipper is not None]
    for _, shipper in shippers:
        shipper.stop()
    for each, shipper in shippers:
        shipper.join(max(0.0, deadline - time.monotonic()))
        each._shipper = None  # a later write starts a new one
    left = sum(each.sender.records_left() for each, _ in shippers)
    if left:
        each = shippers[0][0]
        logger.warning(
            "%d tracking records have not been sent to %s; `python -m tracking.sync %s` sends them",
            left,
            without_password(each.tracking_uri),
            each.journal.run_dir,
        )
    return left == 0
