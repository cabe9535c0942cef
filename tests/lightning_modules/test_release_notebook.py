"""The release story runs to its end on tiny scenes: one version promoted, one refused, one alias given back."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from tracking.store import open_client

NOTEBOOK = Path(__file__).resolve().parents[2] / "notebooks" / "03_release.ipynb"
# learns enough in a few seconds to be told from chance on 80 pictures; the story needs attention maps and no other callback
TINY = (
    "+experiment=flickr_dual_encoder stages=one_stage ~stages.one_stage.losses.matching ~stages.one_stage.losses.masked_words "
    "~stages.one_stage.losses.fused_regions trainer=cpu "
    "~callbacks.score_card ~callbacks.drift ~callbacks.baselines ~callbacks.canary ~callbacks.training_figures "
    "~callbacks.embedding_figures ~callbacks.negative_figures ~callbacks.system_metrics callbacks.attention_maps.init_args.num_examples=1 "
    "+callbacks.attention_maps.init_args.every_n_validations=100 +data.init_args.num_train=600 +data.init_args.num_val=24 "
    "+data.init_args.num_test=80 data.init_args.batch_size=24 data.init_args.image_size=32 model.init_args.patch_size=4 "
    "model.init_args.dim=32 model.init_args.image_depth=1 model.init_args.text_depth=1"
)


def test_the_release_story_runs_to_its_end(tmp_path, scenes_cache, migrated_store, monkeypatch):
    shutil.copy(migrated_store, tmp_path / "mlflow.db")
    monkeypatch.setenv("RELEASE_FOLDER", str(tmp_path))
    monkeypatch.setenv("RELEASE_COMMON", f"{TINY} paths.cache={scenes_cache}")
    monkeypatch.setenv("RELEASE_SETTING", "stages.one_stage.epochs")
    monkeypatch.setenv("RELEASE_VALUES", "8 1")
    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOK.parents[1]))
    monkeypatch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=550, resources={"metadata": {"path": str(NOTEBOOK.parent)}}).execute()
    shown = [
        output["data"].get("text/markdown", "")
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if output.output_type == "display_data"
    ]
    assert any("@staging goes to version 1." in text for text in shown)
    assert any("@staging does not go to version 2." in text for text in shown)
    client = open_client(f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert client.get_registered_model("flickr").aliases == {"staging": 1}
    assert client.get_model_version("flickr", "2").tags["promotion.staging.forced"] == "to show how it is undone"
