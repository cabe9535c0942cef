"""What every test shares: one thread, no network, no writing into the source tree."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # of processes that a test starts, too
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import torch

torch.set_num_threads(1)  # here: a module's fixture is made before the first test's _one_thread


# The files that take longest, the longest first: begun first, they leave no worker alone at the end (make test: --dist loadfile).
LONGEST = (
    *("test_readme.py", "test_configs.py", "test_resume.py", "test_release.py", "test_release_notebook.py", "test_tracked_runs.py"),
    *("test_notebooks.py", "test_sweep.py", "test_ddp.py", "test_classifier_run.py", "test_language_run.py", "test_drive.py"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def scenes_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Generated pictures, rendered once for all tests."""
    return tmp_path_factory.mktemp("scenes_cache")


@pytest.fixture(scope="session")
def migrated_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of an empty SQLite store, to be copied: MLflow takes seconds to make its tables."""
    from tracking.store import open_client

    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    open_client(f"sqlite:///{path}")
    return path
