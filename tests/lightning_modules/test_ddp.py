"""Two processes of half the batch each end where one process of the whole batch ends."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch
import yaml

from lightning_modules.drive import run_stages
from lightning_modules.engine_cli import build
from tracking.store import open_client


def test_two_processes_equal_one_of_the_same_global_batch_and_write_one_run(tiny_config, tmp_path, migrated_store):
    tiny_config["model"]["init_args"]["dropout"] = 0.0  # drawn anew in each process
    for stage in tiny_config["stages"].values():
        stage |= {
            "optimizer": {"function": "torch.optim.SGD", "arguments": {"momentum": 0.9}},
            "learning_rate": 0.03,
        }  # linear in its errors
        stage |= {"learning_rates": {}, "monitor": None, "mode": "max"}
    one = {**copy.deepcopy(tiny_config), "run_dir": str(tmp_path / "one")}
    two = {**copy.deepcopy(tiny_config), "run_dir": None}
    two["trainer"] |= {"devices": 2, "strategy": "ddp_find_unused_parameters_true"}
    shutil.copy(migrated_store, tmp_path / "mlflow.db")
    two["tracking"] = {"tracking_uri": f"sqlite:///{tmp_path}/mlflow.db"}
    assert run_stages(build(one)) == 0
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(two, sort_keys=False))
    command = [
        sys.executable,
        "-m",
        "lightning_modules.cli",
        "multistage",
        "--config",
        str(tmp_path / "two.yaml"),
        "--run_dir",
        str(tmp_path / "two"),
    ]
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("stage 1/3") >= 1 and done.stdout.count("recall (fraction of queries)") == 1  # said once, not by each process
    for number, name in enumerate(tiny_config["stages"], start=1):
        first, second = (
            torch.load(tmp_path / which / f"{number:02d}-{name}" / "final.ckpt", weights_only=True)["state_dict"]
            for which in ("one", "two")
        )
        for key in first:
            torch.testing.assert_close(
                second[key], first[key], atol=1e-5, rtol=1e-5, msg=lambda text, key=key, name=name: f"{name} {key}: {text}"
            )
    figures = [json.loads((tmp_path / which / "summary.json").read_text())["test"] for which in ("one", "two")]
    assert figures[0].keys() == figures[1].keys()
    assert all(abs(figures[0][key] - figures[1][key]) < 0.1 for key in figures[0] if "recall" in key)
    metrics = [json.loads((tmp_path / which / "summary.json").read_text())["stages"] for which in ("one", "two")]
    for first, second in zip(*metrics, strict=True):
        assert first["metrics"].keys() == second["metrics"].keys() and "val/loss" in second["metrics"]
    kept = [stages[2]["metrics"]["val/loss/feature_consistency"] for stages in metrics]  # a mean over pictures, however they are batched
    assert kept[0] > 1e-4 and abs(kept[0] - kept[1]) < 0.01 * kept[0], kept
    client = open_client(two["tracking"]["tracking_uri"])
    runs = client.search_runs(["1"])
    assert sorted(run.info.run_name for run in runs) == ["01-single_modality", "02-cross_modal", "03-end_to_end", "two"]
    assert {run.info.status for run in runs} == {"FINISHED"}
    for run in runs:
        if run.info.run_name != "two":
            steps = [metric.step for metric in client.get_metric_history(run.info.run_id, "train/loss")]
            assert len(steps) == len(set(steps)) == 10  # 2 epochs of 5 batches, each once
