"""``python -m tracking.compare RUN_A RUN_B``: two runs (ids or folders) side by side, as one page that needs nothing else.

Exit codes: 0 written, 1 the store cannot be reached, 2 a mistake in what was asked.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from insight.comparison import MEAN_RECALL, Figure, compare_figures
from insight.errors import InputError
from insight.query_ranks import FILES, QueryRanks, read_ranks
from tracking.page import Side, render
from tracking.past import SUMMARY, PastRun, find_run
from tracking.records import PARENT_KEY, Journal
from tracking.reproduce import Difference, made_differently
from tracking.run import flatten
from tracking.store import open_client, resolve_tracking_uri, store_errors, without_password

logger = logging.getLogger(__name__)

ARTIFACTS = "comparisons"  # the artifact folder of both runs
IGNORED = ("run.", "tracking.", "run_dir", "data.init_args.cache_dir", "deployment.")  # where things lie, not what the run is


def compare(first: str, second: str, output: Path | None = None, tracking_uri: str | None = None) -> tuple[Path, str]:
    """Write the page, and hand it to both runs in MLflow; returns where it lies and the verdict in one line.

    Raises:
        InputError: a run that does not exist, or has no test to compare.
        One of ``store_errors()``: an id was given and the store is away.
    """
    address = tracking_uri or next(filter(None, (_recorded_address(one) for one in (first, second))), None)
    address = resolve_tracking_uri(address)
    with tempfile.TemporaryDirectory(prefix="compare-") as scratch:
        runs = [find_run(reference, address, Path(scratch), "run") for reference in (first, second)]
        sides = [_side(run) for run in runs]
        figures, note = _figures(*sides)
        said = verdict(figures, note, *sides)
        path = output or Path("outputs") / ARTIFACTS / f"{runs[0].name}_and_{runs[1].name}.html"
        path.parent.mkdir(parents=True, exist_ok=True)
        page = render(sides[0], sides[1], figures, said, note, config_differences(*runs), _made_differently(*runs))
        path.write_text(page, encoding="utf-8")
    _keep(path, runs, address)
    return path, said


def _recorded_address(reference: str) -> str | None:
    """Where a run's folder says that it was tracked."""
    opening = Journal(Path(reference) / "tracking" / PARENT_KEY).opening()
    return None if opening is None or "***" in opening["tracking_uri"] else opening["tracking_uri"]


def _side(run: PastRun) -> Side:
    summary = run.read_json(SUMMARY)
    if not summary.get("test"):
        raise InputError(f"run {run.run_id or run.name} has no test to compare ({SUMMARY} says none; its status is {run.status})")
    ranks: QueryRanks | None = None
    if all((run.folder / name).is_file() for name in FILES):
        ranks, _ = read_ranks(run.folder)
    return Side(run, summary, ranks)


def _figures(first: Side, second: Side) -> tuple[list[Figure], str]:
    """The figures, and why there is no test of their differences, where there is none."""
    tests = first.summary["test"], second.summary["test"]
    missing = [side.run.name for side in (first, second) if side.ranks is None]
    if missing:
        return compare_figures(*tests, first.ranks, second.ranks), f"no ranks of single queries were kept by {' and '.join(missing)}"
    try:
        return compare_figures(*tests, first.ranks, second.ranks), ""
    except InputError as error:
        return compare_figures(*tests, None, None), str(error)


def verdict(figures: list[Figure], note: str, first: Side, second: Side) -> str:
    """What the comparison says, by the mean of the six recalls."""
    figure = next((one for one in figures if one.name == MEAN_RECALL), None)
    if figure is None or figure.difference is None or figure.first is None or figure.second is None:
        return f"Nobody can say which is better: {note or 'there are no recalls of both'}."
    pictures = len(first.ranks.filenames) if first.ranks else 0
    values = f"mean recall {figure.first:.4f} and {figure.second:.4f}, difference {interval(figure.difference)}"
    if figure.winner:
        return f"{'B' if figure.winner == 'second' else 'A'} is better: {values}."
    return f"No difference that {pictures:,} test pictures can show: {values}."


def interval(value: tuple[float, float, float]) -> str:
    """``+.0123 (95 % interval -.001 to +.026)``."""
    return f"{value[0]:+.4f} (95 % interval {value[1]:+.4f} to {value[2]:+.4f})"


def config_differences(first: PastRun, second: PastRun) -> list[Difference]:
    """Every key of the configs that differs, but for where things lie."""
    flat = [flatten(run.config) for run in (first, second)]
    keys = [key for key in dict.fromkeys([*flat[0], *flat[1]]) if not key.startswith(IGNORED)]
    values = [(key, flat[0].get(key, "absent"), flat[1].get(key, "absent")) for key in keys]
    return [Difference(key, old, new) for key, old, new in values if old != new]


def _made_differently(first: PastRun, second: PastRun) -> list[Difference]:
    found = made_differently(first.tags, first.diff, first.environment, second.tags, second.diff, second.environment)
    prints = [run.tags.get("data.fingerprint", "not recorded") for run in (first, second)]
    return found if prints[0] == prints[1] else [Difference("data fingerprint", prints[0], prints[1]), *found]


def _keep(path: Path, runs: list[PastRun], address: str) -> None:
    """The page as an artifact of both runs. A store that is away costs a warning: the page is written already."""
    for run in runs:
        if run.run_id is None:
            logger.warning("%s is in no store, so the page is no artifact of it", run.name)
            continue
        try:
            open_client(address).log_artifact(run.run_id, str(path), ARTIFACTS)
        except store_errors() as error:
            reason = without_password(" ".join(str(error).split()))[:200]
            logger.warning("the page could not be kept in MLflow with run %s: %s", run.run_id, reason)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tracking.compare", description="Two runs side by side, as one page.")
    parser.add_argument("run_a", help="MLflow id or folder of a run")
    parser.add_argument("run_b", help="the same of the other")
    parser.add_argument("--output", type=Path, help="where the page goes; by default under outputs/comparisons")
    parser.add_argument("--tracking-uri", help="the MLflow store; by default the folder's own, MLFLOW_TRACKING_URI or outputs/mlflow.db")
    options = parser.parse_args(arguments)
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
    try:
        path, said = compare(options.run_a, options.run_b, options.output, options.tracking_uri)
    except InputError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except store_errors() as error:
        sys.stderr.write(f"the tracking store can't be reached: {without_password(' '.join(str(error).split()))[:500]}\n")
        return 1
    sys.stdout.write(f"{said}\npage: {os.path.relpath(path)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
