"""The notebooks run to their end on a finished run, and are kept without outputs."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from lightning_modules.drive import run_stages
from lightning_modules.engine_cli import build

WITH_TESTS_OF_THEIR_OWN = ("03_release",)  # they train
NOTEBOOKS = sorted((Path(__file__).resolve().parents[2] / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", [path for path in NOTEBOOKS if path.stem not in WITH_TESTS_OF_THEIR_OWN], ids=lambda path: path.stem)
def test_a_notebook_runs_on_a_finished_run(path, tiny_config, tmp_path, monkeypatch):
    tiny_config["callbacks"] = {
        "attention_maps": {"class_path": "callbacks.attention_maps.AttentionMaps", "init_args": {"num_examples": 2}}
    }
    tiny_config["tracking"] = {"enabled": True, "experiment": "tour", "tracking_uri": f"sqlite:///{tmp_path}/mlflow.db"}
    assert run_stages(build(tiny_config)) == 0
    monkeypatch.setenv("RUN", tiny_config["run_dir"])
    monkeypatch.delenv("MPLBACKEND", raising=False)  # the notebook shows its pictures
    monkeypatch.setenv("PYTHONPATH", str(path.parents[1]))
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=180, resources={"metadata": {"path": str(path.parent)}}).execute()
    pictures = [
        output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs if "image/png" in output.get("data", {})
    ]
    assert len(pictures) >= 5


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_outputs(path):
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in cells)
