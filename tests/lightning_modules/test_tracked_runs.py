"""Whole runs with tracking on: how a run ends is in MLflow, and a server that dies costs nothing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.callbacks import Callback
from mlflow import MlflowClient
from mlflow.entities import Run

from lightning_modules.drive import new_run_dir, run_stages
from lightning_modules.engine_cli import build
from tests.processes import forked
from tracking.records import Journal
from tracking.store import open_client
from tracking.sync import main as sync


class At(Callback):
    """Calls ``act`` before one batch of one stage."""

    def __init__(self, stage: str, batch: int, act: Callable[[], Any]) -> None:
        self.stage, self.batch, self.act = stage, batch, act

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if (self.stage, self.batch) == (pl_module.stage_name, batch_idx):
            self.act()


@pytest.fixture
def config(tiny_config, tmp_path, migrated_store, monkeypatch) -> dict[str, Any]:
    """Two short stages, tracked in a store of their own."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copy(migrated_store, tmp_path / "mlflow.db")
    tiny_config["tracking"] = {"tracking_uri": f"sqlite:///{tmp_path}/mlflow.db"}
    tiny_config["stages"] = {name: {**tiny_config["stages"][name], "epochs": 1} for name in ("single_modality", "cross_modal")}
    return tiny_config


def run(config: dict[str, Any], *actions: At) -> int:
    cli = build(config)
    cli.callbacks |= {f"at{number}": action for number, action in enumerate(actions)}
    return run_stages(cli)


def runs_of(config: dict[str, Any]) -> tuple[MlflowClient, dict[str, Run]]:
    """The runs in the store by name; ``run`` is the parent."""
    client = open_client(config["tracking"]["tracking_uri"])
    return client, {run.info.run_name: run for run in client.search_runs(["1"])}


def assert_exactly_once(client: MlflowClient, run_dir: Path) -> None:
    """Every point and file of every journal of the run is in the store, and nothing else."""
    journals = [Journal(path.parent) for path in sorted((run_dir / "tracking").glob("*/journal.jsonl"))]
    assert len(journals) == 3
    for journal in journals:
        key = journal.opening()["key"]
        (found,) = client.search_runs(["1"], f"tags.`journal.key` = '{key}'")
        assert found.info.status == "FINISHED"
        for name, values in journal.contents().points.items():
            if name == "epoch":  # Lightning writes it beside the metrics of training and of validation, at the same step
                continue
            stored = [(metric.step, metric.value) for metric in client.get_metric_history(found.info.run_id, name)]
            assert sorted(stored) == sorted(values.items()), name
        sent = {Path(record["path"]).name for _, record in journal.read() if record["kind"] == "artifact"}
        assert {file.path for file in client.list_artifacts(found.info.run_id)} == sent


def test_a_crash_leaves_failed_runs_and_the_traceback(config, tmp_path):
    def crash() -> None:
        raise ArithmeticError("planted in batch 2")

    with pytest.raises(ArithmeticError):
        run(config, At("cross_modal", 2, crash))
    client, runs = runs_of(config)
    statuses = {name: one.info.status for name, one in runs.items()}
    assert statuses == {"run": "FAILED", "01-single_modality": "FINISHED", "02-cross_modal": "FAILED"}
    text = Path(client.download_artifacts(runs["run"].info.run_id, "error.txt", str(tmp_path))).read_text()
    assert text.startswith("Traceback") and text.rstrip().endswith("ArithmeticError: planted in batch 2") and "in training_step" not in text


@pytest.mark.skipif(sys.platform != "linux", reason="forks a process that has imported torch: Linux only")
def test_ctrl_c_leaves_killed_runs_and_a_kill_is_found_when_the_run_goes_on(config):
    assert forked(lambda: run(config, At("single_modality", 2, lambda: os.kill(os.getpid(), signal.SIGINT)))) == 130
    client, runs = runs_of(config)
    assert {name: one.info.status for name, one in runs.items()} == {"run": "KILLED", "01-single_modality": "KILLED"}
    assert forked(lambda: run(config, At("cross_modal", 3, lambda: os.kill(os.getpid(), signal.SIGKILL)))) == -signal.SIGKILL
    assert run(config) == 0
    client, runs = runs_of(config)
    assert {name: one.info.status for name, one in runs.items()} == dict.fromkeys(
        ("run", "01-single_modality", "02-cross_modal"), "FINISHED"
    )
    assert runs["run"].data.tags["killed"].count("T") == 1  # one time: Ctrl-C was said, the kill was not
    assert_exactly_once(client, Path(config["run_dir"]))
    steps = {metric.step for metric in client.get_metric_history(runs["02-cross_modal"].info.run_id, "train/loss")}
    assert len(steps) == 5  # of 5 batches, none twice


def test_runs_that_start_in_the_same_second_get_folders_of_their_own(tmp_path):
    made: list[Path] = []
    threads = [threading.Thread(target=lambda: made.append(new_run_dir(tmp_path, "same"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(made)) == len(list(tmp_path.iterdir())) == 8


class Server:
    """`mlflow server` on loopback, over the database of the config."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        words = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        words += ["--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db", "--no-serve-artifacts"]
        words += ["--default-artifact-root", (self.folder / "artifacts").as_uri()]
        log = (self.folder / "server.log").open("a")
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        self.process = subprocess.Popen(words, stdout=log, stderr=log, env=environment, start_new_session=True)
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                urllib.request.urlopen(f"{self.address}/health", timeout=5).close()
                return
            except OSError:
                time.sleep(0.1)
        raise AssertionError((self.folder / "server.log").read_text()[-2000:])

    def kill(self) -> None:
        """As a power cut would: the command and the workers that it started."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@pytest.fixture
def server(tmp_path) -> Iterator[Server]:
    server = Server(tmp_path)
    yield server
    server.kill()


def test_a_server_killed_in_the_middle_of_a_run_costs_nothing(config, server, tmp_path, caplog):
    store = config["tracking"]["tracking_uri"]
    config["tracking"] = {"tracking_uri": server.address}
    server.start()
    back = {**config, "run_dir": str(tmp_path / "back")}  # it comes back in the next stage: all has arrived when the run ends
    assert run(back, At("single_modality", 1, lambda: server.kill()), At("cross_modal", 1, lambda: server.start())) == 0
    assert_exactly_once(open_client(server.address), tmp_path / "back")
    caplog.clear()
    gone = {**config, "run_dir": str(tmp_path / "gone")}  # it never comes back: what is missing is sent later, to the same database
    assert run(gone, At("single_modality", 1, lambda: server.kill())) == 0
    said = [text for text in caplog.messages if str(tmp_path / "gone") in text]
    assert len(said) == 2 and "is unreachable, training goes on" in said[0] and f"python -m tracking.sync {tmp_path}/gone" in said[1]
    assert json.loads((tmp_path / "gone" / "summary.json").read_text())["test"]
    assert sync([str(tmp_path / "gone"), "--tracking-uri", store]) == 0
    assert_exactly_once(open_client(store), tmp_path / "gone")
    assert_exactly_once(open_client(store), tmp_path / "back")
    assert len(open_client(store).search_runs(["1"])) == 6
