"""An empty SQLite store for each test, and none from outside."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tracking.store import open_client


@pytest.fixture(autouse=True)
def _no_store_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE", raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")


@pytest.fixture
def store(tmp_path: Path, migrated_store: Path) -> str:
    """The address of an empty SQLite store."""
    (tmp_path / "out").mkdir()
    shutil.copy(migrated_store, tmp_path / "out" / "mlflow.db")
    return f"sqlite:///{tmp_path / 'out' / 'mlflow.db'}"


@pytest.fixture
def client(store: str) -> MlflowClient:
    return open_client(store)


@pytest.fixture
def points(client: MlflowClient) -> Callable[[str, str], list[tuple[int, float]]]:
    """(run id, metric) -> the stored (step, value), by step."""
    return lambda run_id, name: sorted((metric.step, metric.value) for metric in client.get_metric_history(run_id, name))
