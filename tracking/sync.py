"""``python -m tracking.sync RUN_FOLDER``: send what a run has recorded and its store hasn't got yet.

Exit codes: 0 all sent or nothing to send, 1 the store can't be reached (run it again later), 2 a mistake in what was asked.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from insight.errors import InputError
from tracking.records import Journal
from tracking.registration import deliver
from tracking.shipper import Sender
from tracking.store import resolve_tracking_uri, store_errors, without_password

logger = logging.getLogger(__name__)


def sync(run_dir: str | Path, tracking_uri: str | None = None) -> int:
    """Send every journal under RUN/tracking, to ``tracking_uri`` or where the run itself sent them; returns how many records went.

    Then the run becomes a version of its registered model, if it asked for that.

    Raises InputError for a folder without journals or an impossible address, and one of ``store_errors()`` if the store is away.
    """
    journals = find_journals(run_dir)
    senders = [Sender(journal, _address(journal, tracking_uri)) for journal in journals]
    total = 0
    for number, sender in enumerate(senders, start=1):
        label = f"[{number}/{len(senders)}] {sender.journal.folder.name}"
        waiting = sender.records_left()
        if not waiting:
            logger.info("%s: nothing to send", label)
            continue
        logger.info("%s: sending %d records to %s", label, waiting, without_password(sender.tracking_uri))
        sent = sender.send()
        total += sent
        logger.info("%s: %d records sent (MLflow run %s)", label, sent, sender.state.run_id)
    registered = deliver(run_dir, senders[0].tracking_uri)
    if registered is not None:
        logger.info("registered as %s", registered)
    return total


def find_journals(run_dir: str | Path) -> list[Journal]:
    """The journals of a run, parents before their children."""
    folder = Path(run_dir) / "tracking"
    if not Path(run_dir).is_dir():
        raise InputError(f"no run folder at {run_dir}; give the folder that holds config.yaml and tracking/")
    journals = [Journal(path.parent) for path in sorted(folder.glob("*/journal.jsonl"))]
    openings = [(journal, journal.opening()) for journal in journals]
    known = [(opening["parent"] is not None, journal) for journal, opening in openings if opening is not None]
    if not known:
        raise InputError(f"{folder} holds no journal; nothing was tracked in this run folder")
    return [journal for _, journal in sorted(known, key=lambda pair: pair[0])]


def _address(journal: Journal, tracking_uri: str | None) -> str:
    recorded = [record["tracking_uri"] for _, record in journal.read() if record["kind"] == "open"][-1]
    if tracking_uri is None and "***" not in recorded:
        return resolve_tracking_uri(recorded)
    if tracking_uri is None and not os.environ.get("MLFLOW_TRACKING_URI"):
        raise InputError(f"the run went to {recorded}, whose password isn't kept; give --tracking-uri or set MLFLOW_TRACKING_URI")
    return resolve_tracking_uri(tracking_uri)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tracking.sync", description="Send what a run recorded while its store was away.")
    parser.add_argument("run_folder", help="the folder of the run (outputs/..., or outputs/latest)")
    parser.add_argument("--tracking-uri", help="another store than the one the run was made with")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stdout)
    logging.getLogger("tracking").setLevel(logging.INFO)
    logger.setLevel(logging.INFO)  # started with -m, this module is called __main__
    try:
        total = sync(options.run_folder, options.tracking_uri)
    except InputError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except store_errors() as error:
        sys.stderr.write(f"the tracking store can't be reached; nothing is lost, try again later: {without_password(str(error))[:500]}\n")
        return 1
    logger.info("%d records sent", total)
    return 0


if __name__ == "__main__":
    sys.exit(main())
