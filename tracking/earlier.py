"""At the start of a run, in the background: what earlier runs could not send is sent, and those that were killed are marked so."""

from __future__ import annotations

import fcntl
import logging
import threading
from pathlib import Path

from insight.errors import InputError
from tracking.records import PARENT_KEY, Journal
from tracking.registration import pending
from tracking.shipper import StoreState
from tracking.store import store_errors, without_password
from tracking.sync import sync

logger = logging.getLogger(__name__)

JOURNALS = ("*/tracking/*/journal.jsonl", "sweeps/*/tracking/*/journal.jsonl", "sweeps/*/*/tracking/*/journal.jsonl")


class EarlierRuns(threading.Thread):
    """A daemon that brings the runs under ``output_dir`` up to date in this run's store, then ends. A run of another store is left alone.

    Make it in the main thread: that imports MLflow there (see Shipper).

    Args:
        output_dir: Folder of all runs.
        tracking_uri: This run's store.
        own: This run's folder.
    """

    def __init__(self, output_dir: str | Path, tracking_uri: str, own: str | Path) -> None:
        super().__init__(daemon=True, name="tracking-earlier-runs")
        self.output_dir, self.tracking_uri, self.own = Path(output_dir), tracking_uri, Path(own).resolve()
        self._store_errors = store_errors()
        self._stopping = threading.Event()

    def stop(self, seconds: float) -> None:
        """Begin no other run; wait ``seconds`` at most for the one under way. What is left is for the next start."""
        self._stopping.set()
        self.join(seconds)

    def run(self) -> None:
        for run_dir in waiting_runs(self.output_dir, self.tracking_uri, self.own):
            if self._stopping.is_set():
                return
            try:
                mark_killed(run_dir)
                sent = sync(run_dir, self.tracking_uri)
            except InputError as error:
                logger.warning("%s could not be sent: %s", run_dir, error)
                continue
            except self._store_errors as error:  # this run's own shipper says it, where the store is away
                logger.debug("%s is not sent: %s", run_dir, without_password(str(error))[:200])
                return
            if sent:
                logger.info("%s: %d records of this earlier run have been sent", run_dir, sent)


def waiting_runs(output_dir: Path, tracking_uri: str, own: Path) -> list[Path]:
    """Folders of other runs of this store that have something to send, or that no living process will end.

    Folders that hold ``own`` (a sweep's) or lie in it (its trials) are left out: this process has, or will have, their lock, which it
    would lose by asking for it again.
    """
    waiting = set()
    for pattern in JOURNALS:
        for path in output_dir.glob(pattern):
            journal = Journal(path.parent)
            run_dir = journal.run_dir.resolve()  # not twice, by way of `latest`
            if own.is_relative_to(run_dir) or run_dir.is_relative_to(own) or not path.stat().st_size:
                continue
            unsent = StoreState(journal, tracking_uri).offset < journal.size()
            waits = unsent or not journal.ended() or pending(run_dir, tracking_uri)
            if waits and _store_of(journal) == without_password(tracking_uri) and not in_use(run_dir):
                waiting.add(run_dir)
    return sorted(waiting)


def _store_of(journal: Journal) -> str | None:
    opening = journal.opening()
    return None if opening is None else opening["tracking_uri"]


def mark_killed(run_dir: Path) -> None:
    """Write KILLED in each journal of the run whose process died without a word."""
    for path in sorted((run_dir / "tracking").glob("*/journal.jsonl")):
        journal = Journal(path.parent)
        if not journal.ended():
            journal.mark_killed()
            journal.close()
            if path.parent.name == PARENT_KEY:
                logger.warning("%s was killed without a word; it is marked KILLED. python train.py resume=%s goes on", run_dir, run_dir)


def in_use(run_dir: Path) -> bool:
    """Whether a living process has the run's lock (see RunLock), or nobody can tell: such a run is left alone."""
    try:
        with (run_dir / ".lock").open("r+") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return False
    except OSError:
        return True
