"""A run that has been: found by its id in MLflow or by its folder, with the files it left, its tags and its curves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from insight.errors import InputError
from tracking.records import PARENT_KEY, Journal
from tracking.shipper import PARENT_TAG, StoreState
from tracking.store import open_client, set_mlflow_defaults, without_password

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

CONFIG, SUMMARY, ENVIRONMENT, DIFF = "config.yaml", "summary.json", "environment.json", "git.diff"

Curves = dict[str, dict[str, list[tuple[int, float]]]]  # stage, metric -> (step, value), by step


class PastRun(NamedTuple):
    """What is known of a run."""

    name: str
    run_id: str | None  # None: a folder whose run has not reached this store
    folder: Path  # config.yaml and what else it left: its own folder, or a copy of the artifacts
    status: str | None
    tags: dict[str, str]
    curves: Curves

    @property
    def config(self) -> dict[str, Any]:
        """The frozen config.

        Raises:
            InputError: the run left none.
        """
        path = self.folder / CONFIG
        if not path.is_file():
            raise InputError(f"run {self.run_id or self.name}: left no {CONFIG}; only runs of train.py and lightning_modules.cli have one")
        return yaml.safe_load(path.read_text())

    def read_json(self, name: str) -> dict[str, Any]:
        """A file of the run, empty where it left none (it was killed before)."""
        path = self.folder / name
        return json.loads(path.read_text()) if path.is_file() else {}

    @property
    def environment(self) -> dict[str, Any]:
        """Packages and machine, as ``tracking.facts.environment`` has them."""
        return self.read_json(ENVIRONMENT) or self.read_json(f"tracking/{PARENT_KEY}/{ENVIRONMENT}")

    @property
    def diff(self) -> str:
        """What was changed against the commit."""
        paths = (self.folder / DIFF, self.folder / "tracking" / PARENT_KEY / DIFF)
        return next((path.read_text() for path in paths if path.is_file()), "")


def find_run(reference: str, tracking_uri: str, scratch: Path, key: str = "run") -> PastRun:
    """The run of an id or a folder. ``scratch`` takes the artifacts of a run that is found by its id; ``key`` names it in messages.

    Raises:
        InputError: there is none.
        One of ``store_errors()``: the store is away.
    """
    if Path(reference).is_dir():
        return _of_folder(Path(reference).resolve(), tracking_uri)
    if any(sign in reference for sign in "/\\."):
        raise InputError(f"{key}={reference}: there is no such folder; give a run's folder, or its id in MLflow")
    return _of_id(open_client(tracking_uri), reference, scratch, key)


def _of_folder(folder: Path, tracking_uri: str) -> PastRun:
    if not (folder / CONFIG).is_file():
        raise InputError(f"{folder}: holds no {CONFIG}; give the folder of a run, e.g. outputs/latest")
    journals = {path.parent.name: Journal(path.parent) for path in sorted((folder / "tracking").glob("*/journal.jsonl"))}
    if PARENT_KEY not in journals:
        return PastRun(folder.name, None, folder, None, {}, {})
    parent = journals.pop(PARENT_KEY)
    opening, last = parent.opening(), parent.last()
    assert opening is not None and last is not None, "a journal begins with its opening"
    curves = {
        stage: {name: sorted(points.items()) for name, points in journal.contents().points.items()} for stage, journal in journals.items()
    }
    status = last["status"] if last["kind"] == "status" else "RUNNING"
    tags = {**opening["tags"], **parent.contents().tags}
    return PastRun(opening["name"], StoreState(parent, tracking_uri).run_id, folder, status, tags, curves)


def _of_id(client: MlflowClient, run_id: str, scratch: Path, key: str) -> PastRun:
    set_mlflow_defaults()
    from mlflow.exceptions import MlflowException

    store = without_password(client.tracking_uri)
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        raise InputError(f"{key}={run_id}: no run of this id in {store}{_newest(client)}") from error
    parent = run.data.tags.get(PARENT_TAG)
    if parent is not None and CONFIG not in {file.path for file in client.list_artifacts(run_id)}:
        raise InputError(f"{key}={run_id}: is one stage of a run; give the run's own id, {parent}")
    folder = scratch / run_id
    folder.mkdir(parents=True, exist_ok=True)
    for file in client.list_artifacts(run_id):
        if not file.is_dir:
            client.download_artifacts(run_id, file.path, str(folder))
    return PastRun(run.info.run_name, run_id, folder, run.info.status, dict(run.data.tags), _curves(client, run))


def _newest(client: MlflowClient, count: int = 3) -> str:
    ids = [one.experiment_id for one in client.search_experiments()]
    runs = [run for run in client.search_runs(ids, max_results=50) if PARENT_TAG not in run.data.tags][:count] if ids else []
    listed = ", ".join(f"{run.info.run_id} ({run.info.run_name})" for run in runs)
    return f"; the newest there: {listed}" if runs else "; it has none at all"


def _curves(client: MlflowClient, run: Run) -> Curves:
    children = client.search_runs([run.info.experiment_id], f"tags.`{PARENT_TAG}` = '{run.info.run_id}'", max_results=1000)
    return {
        child.info.run_name: {
            name: sorted((metric.step, metric.value) for metric in client.get_metric_history(child.info.run_id, name))
            for name in child.data.metrics
        }
        for child in sorted(children, key=lambda child: child.info.run_name)
    }
