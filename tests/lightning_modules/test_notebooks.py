"""The notebooks run to their end on a finished run, and are kept without outputs."""

from __future__ import annotations

import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from callbacks import score_card
from insight.interpret.checks import load_checks
from insight.interpret.methods import METHODS
from lightning_modules.drive import run_stages
from lightning_modules.engine_cli import build

WITH_TESTS_OF_THEIR_OWN = ("02_look_inside", "03_release")  # of another run; it trains
NOTEBOOKS = sorted((Path(__file__).resolve().parents[2] / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", [path for path in NOTEBOOKS if path.stem not in WITH_TESTS_OF_THEIR_OWN], ids=lambda path: path.stem)
def test_a_notebook_runs_on_a_finished_run(path, tiny_config, tmp_path, migrated_store, monkeypatch):
    tiny_config["callbacks"] = {
        "attention_maps": {"class_path": "callbacks.attention_maps.AttentionMaps", "init_args": {"num_examples": 1}}
    }
    tiny_config["stages"] = {name: {**stage, "epochs": 1} for name, stage in tiny_config["stages"].items()}
    shutil.copy(migrated_store, tmp_path / "mlflow.db")
    tiny_config["tracking"] = {"enabled": True, "experiment": "tour", "tracking_uri": f"sqlite:///{tmp_path}/mlflow.db"}
    assert run_stages(build(tiny_config)) == 0
    pictures, _ = executed(path, tiny_config["run_dir"], monkeypatch)
    assert pictures >= 5


def executed(path: Path, run_dir: str, monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    """Run a notebook on a run: how many pictures it shows, and all that it prints."""
    monkeypatch.setenv("RUN", run_dir)
    monkeypatch.delenv("MPLBACKEND", raising=False)  # the notebook shows its pictures
    monkeypatch.setenv("PYTHONPATH", str(path.parents[1]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(path.parent)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    pictures = sum("image/png" in output.get("data", {}) for output in outputs)
    return pictures, "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")


def test_the_look_inside_shows_every_method_with_its_scores_and_words_heads_and_the_film(tiny_config, monkeypatch):
    methods = {
        "chefer": {"function": "insight.interpret.relevance.chefer_relevance", "family": "insight.interpret.families.DualEncoder"},
        "read": {"function": "insight.interpret.attention_maps.raw_attention"},
    }
    settings = {"methods": methods, "num_examples": 2, "every_n_validations": 1, "steps": 2, "search_examples": 0}
    tiny_config["callbacks"] = {"score_card": {"class_path": "callbacks.score_card.ScoreCard", "init_args": settings}}
    tiny_config["model"]["init_args"]["patch_size"] = 4  # 16 patches: room for the 9 segments that are left out by turns
    tiny_config["stages"] = {"end_to_end": tiny_config["stages"]["end_to_end"]}
    monkeypatch.setattr(score_card, "draw_aside", lambda maps, figures: [])  # the notebook draws by itself
    assert run_stages(build(tiny_config)) == 0
    pictures, printed = executed(next(path for path in NOTEBOOKS if path.stem == "02_look_inside"), tiny_config["run_dir"], monkeypatch)
    assert pictures == 7  # the photo, the methods, words twice, heads, two films
    for name in METHODS:
        assert f"\n{name} " in printed
    check = load_checks(Path(tiny_config["run_dir"]) / "01-end_to_end" / "score_card" / "checks.json")["chefer"]
    assert f"{'passed' if check.passed else 'FAILED'} (ρ {check.rho:.2f})" in printed
    assert "layer 0 head 1: " in printed


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_outputs(path):
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in cells)
