"""Sends a journal to a store: in order, from where it stopped last, once in effect.

Sending a record twice does no harm (a metric's key, step, time and value are its identity in MLflow; an artifact is its path; a run is
found again by the tag ``journal.key``), so the offset is written after the store has answered, never before.
What belongs to one store lies in ``RUN/tracking/<key>/stores/<digest of the address>/``: run_id, offset, uri, locks.
"""

from __future__ import annotations

import itertools
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracking.records import Journal, Record
from tracking.store import (
    StoreError,
    address_digest,
    default_artifact_location,
    file_lock,
    open_client,
    quiet,
    store_errors,
    without_password,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

KEY_TAG = "journal.key"
PARENT_TAG = "mlflow.parentRunId"
RECORDS_AT_ONCE = 500
BATCH_LIMITS = {"metrics": 1000, "params": 100, "tags": 100}  # MLflow's, per request
REFUSALS = ("INVALID_PARAMETER_VALUE", "RESOURCE_ALREADY_EXISTS", "BAD_REQUEST", "MALFORMED_REQUEST")


class StoreState:
    """What is known about one journal in one store: the run's id and how far the journal has been sent."""

    def __init__(self, journal: Journal, tracking_uri: str) -> None:
        self.folder = journal.folder / "stores" / address_digest(tracking_uri)
        self.tracking_uri = tracking_uri

    def lock_path(self, purpose: str) -> Path:
        return self.folder / f"{purpose}.lock"

    @property
    def run_id(self) -> str | None:
        return self._read("run_id")

    @run_id.setter
    def run_id(self, value: str) -> None:
        self._write("uri", without_password(self.tracking_uri))
        self._write("run_id", value)

    @property
    def offset(self) -> int:
        return int(self._read("offset") or 0)

    @offset.setter
    def offset(self, value: int) -> None:
        self._write("offset", str(value))

    @property
    def registered(self) -> str | None:
        """Address of the model version that the run has become."""
        return self._read("registered")

    @registered.setter
    def registered(self, value: str) -> None:
        self._write("registered", value)

    def forget(self) -> None:
        """The store no longer knows the run: begin again from the first record."""
        self.offset = 0
        for name in ("run_id", "registered"):
            (self.folder / name).unlink(missing_ok=True)

    def _read(self, name: str) -> str | None:
        path = self.folder / name
        return path.read_text() if path.exists() else None

    def _write(self, name: str, text: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / f"{name}.tmp"
        temporary.write_text(text)
        os.replace(temporary, self.folder / name)


class Sender:
    """One journal, one store."""

    def __init__(self, journal: Journal, tracking_uri: str) -> None:
        self.journal, self.tracking_uri = journal, tracking_uri
        self.state = StoreState(journal, tracking_uri)
        self._client: MlflowClient | None = None
        self._run_id: str | None = None

    def offset(self) -> int:
        """How far the journal has been sent; 0 if the journal is shorter than that (an older copy of the folder was put back)."""
        return self.state.offset if self.state.offset <= self.journal.size() else 0

    def records_left(self) -> int:
        return sum(1 for _ in self.journal.read(self.offset()))

    def send(self) -> int:
        """Send everything that is in the journal now; returns the number of records. Raises one of ``store_errors()``."""
        sent = 0
        while self.journal.size() > self.offset():
            count = self._send_some()
            if count == 0:  # only half a line is left
                break
            sent += count
        return sent

    def _send_some(self) -> int:
        with quiet(), file_lock(self.state.lock_path("ship")):
            if self._client is None:
                self._client = open_client(self.tracking_uri)
            if self._run_id is None:
                self._run_id = ensure_run(self._client, self.journal, self.tracking_uri)
            batch = list(itertools.islice(self.journal.read(self.offset()), RECORDS_AT_ONCE))
            for kind, group in itertools.groupby((record for _, record in batch), key=lambda record: record["kind"]):
                self._send_group(self._client, self._run_id, kind, list(group))
            if batch:
                self.state.offset = batch[-1][0]
            return len(batch)

    def _send_group(self, client: MlflowClient, run_id: str, kind: str, records: Sequence[Record]) -> None:
        from mlflow.entities import Metric, Param, RunTag

        if kind in BATCH_LIMITS:
            entities: list[Any]
            if kind == "metrics":
                entities = [Metric(k, v, r["time"], r["step"]) for r in records for k, v in r["values"].items()]
            else:
                entity = Param if kind == "params" else RunTag
                entities = [entity(k, v) for r in records for k, v in r["values"].items()]
            for start in range(0, len(entities), BATCH_LIMITS[kind]):
                self._send_entities(client, run_id, kind, entities[start : start + BATCH_LIMITS[kind]])
            return
        for record in records:
            if kind == "open":
                client.update_run(run_id, status="RUNNING")
            elif kind == "status":
                client.set_terminated(run_id, record["status"], record["time"])
            elif kind == "artifact":
                self._send_artifact(client, run_id, record)

    def _send_entities(self, client: MlflowClient, run_id: str, kind: str, entities: list[Any]) -> None:
        """What the store refuses is left out, by name; the rest of the batch still arrives."""

        def call() -> None:
            client.log_batch(
                run_id,
                metrics=entities if kind == "metrics" else [],
                params=entities if kind == "params" else [],
                tags=entities if kind == "tags" else [],
            )

        if not self._refused(client, run_id, call, entities):
            return
        if len(entities) > 1:
            middle = len(entities) // 2
            self._send_entities(client, run_id, kind, entities[:middle])
            self._send_entities(client, run_id, kind, entities[middle:])

    def _send_artifact(self, client: MlflowClient, run_id: str, record: Record) -> None:
        path = self.journal.run_dir / record["path"]
        if not path.exists():
            logger.warning("%s was deleted before it could be sent to the tracking store; the run goes on without this artifact", path)
            return
        try:
            self._refused(client, run_id, lambda: client.log_artifact(run_id, str(path), record["to"]), [record["path"]])
        except FileNotFoundError:
            if path.exists():
                raise
            logger.warning("%s was deleted while it was sent to the tracking store; the run goes on without this artifact", path)

    def _refused(self, client: MlflowClient, run_id: str, call: Callable[[], Any], what: list[Any]) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            call()
        except MlflowException as error:
            if error.error_code not in REFUSALS:
                raise
            _known_run(client, run_id)  # refused because the whole run was deleted: raises, and keeps the records
            if len(what) == 1:
                name = getattr(what[0], "key", what[0])
                logger.warning("the tracking store refused %r and goes on without it: %s", name, str(error)[:300])
            return True
        return False


def ensure_run(client: MlflowClient, journal: Journal, tracking_uri: str) -> str:
    """The MLflow run of this journal in this store: known, found again, or made (its parent's first). Returns the run's id."""
    state = StoreState(journal, tracking_uri)
    with file_lock(state.lock_path("create")):
        if state.run_id is not None:
            if _known_run(client, state.run_id):
                return state.run_id
            logger.warning("%s no longer has run %s; it is made again from %s", without_password(tracking_uri), state.run_id, journal.path)
            state.forget()
        opening = journal.opening()
        if opening is None:
            raise StoreError(f"{journal.path} doesn't say which run it belongs to; was the file damaged?")
        experiment_id = _experiment(client, opening, tracking_uri)
        found = client.search_runs([experiment_id], f"tags.`{KEY_TAG}` = '{opening['key']}'", max_results=1)
        if found:
            state.run_id = run_id = found[0].info.run_id
            return run_id
        tags = {**opening["tags"], KEY_TAG: opening["key"]}
        if opening["parent"] is not None:
            tags[PARENT_TAG] = ensure_run(client, Journal(journal.folder.parent / opening["parent"]), tracking_uri)
        run = client.create_run(experiment_id, start_time=opening["time"], tags=tags, run_name=opening["name"])
        state.run_id = run.info.run_id
        return run.info.run_id


def _known_run(client: MlflowClient, run_id: str) -> bool:
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise
    if run.info.lifecycle_stage == "deleted":
        raise StoreError(f"run {run_id} was deleted in the tracking store; `mlflow runs restore --run-id {run_id}` brings it back")
    return True


def _experiment(client: MlflowClient, opening: Record, tracking_uri: str) -> str:
    from mlflow.exceptions import MlflowException

    name = opening["experiment"]
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        location = opening["artifact_location"] or default_artifact_location(tracking_uri)
        try:
            return client.create_experiment(name, artifact_location=location)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            experiment = client.get_experiment_by_name(name)  # another process was quicker
            if experiment is None:
                raise
    if experiment.lifecycle_stage == "deleted":
        raise StoreError(
            f"experiment {name!r} was deleted in the tracking store; `mlflow experiments restore -x {experiment.experiment_id}` "
            "brings it back, or choose another experiment name"
        )
    return experiment.experiment_id


class Shipper(threading.Thread):
    """Sends in the background what the training process writes. A daemon: it never keeps a process alive, nor stops one.

    Make it in the main thread: that imports MLflow there. An import still going on in another thread while data workers are forked
    would leave its locks held in the workers for ever.
    """

    def __init__(
        self,
        sender: Sender,
        warned: threading.Event,
        poll_seconds: float = 0.5,
        longest_wait: float = 30.0,
        last_attempts: int = 3,
    ) -> None:
        super().__init__(daemon=True, name=f"tracking-shipper-{sender.journal.folder.name}")
        self.sender, self.warned = sender, warned
        self.poll_seconds, self.longest_wait, self.last_attempts = poll_seconds, longest_wait, last_attempts
        self.error: Exception | None = None
        self._stopping = threading.Event()
        self._store_errors = store_errors()

    def stop(self) -> None:
        """Send what is there, then end. Returns at once; ``join(timeout)`` waits. A store that was already gone gets one more try."""
        self._stopping.set()

    def run(self) -> None:
        wait = self.poll_seconds
        while not self._stopping.is_set():
            wait = self.poll_seconds if self._attempt() else min(wait * 2, self.longest_wait)
            self._stopping.wait(wait)
        for _ in range(self.last_attempts if self.error is None else 1):  # stop() came after the last record was written
            if self._attempt():
                return
            time.sleep(self.poll_seconds)

    def _attempt(self) -> bool:
        try:
            self.sender.send()
        except self._store_errors as error:
            if not self.warned.is_set():
                self.warned.set()
                self._warn(error)
            self.error = error
            return False
        if self.error is not None:
            self.warned.clear()
            logger.info("the tracking store is there again; %s has been sent", self.sender.journal.path)
        self.error = None
        return True

    def _warn(self, error: Exception) -> None:
        logger.warning(
            "tracking store %s is unreachable, training goes on; %s holds the data; `python -m tracking.sync %s` sends it (%s)",
            without_password(self.sender.tracking_uri),
            self.sender.journal.path,
            self.sender.journal.run_dir,
            without_password(" ".join(str(error).split()))[:200],
        )
