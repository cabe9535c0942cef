from __future__ import annotations

import json
import logging
import math
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import lightning
import pytest
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch.utils.data import DataLoader, TensorDataset

from insight.errors import InputError
from tracking.journal import JournalMLFlowLogger
from tracking.sync import sync

ROOT = Path(__file__).resolve().parents[2]


def make(tmp_path: Path, uri: str, **arguments) -> JournalMLFlowLogger:
    return JournalMLFlowLogger("tests", tracking_uri=uri, journal_dir=tmp_path / "RUN" / "tracking" / "run", drain_seconds=20, **arguments)


def closed_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


def test_everything_logged_arrives_in_the_store(tmp_path, store, client, points):
    picture = tmp_path / "picture.txt"
    picture.write_text("drawn")
    logger = make(tmp_path, store, run_name="first", tags={"colour": "red"})
    logger.log_params({"dim": 8})
    for step in range(5):
        logger.log_metrics({"train/loss": 1 / (step + 1), "val/nan": math.nan}, step)
    logger.set_tags({"seed": "7"})
    logger.log_artifact(picture, "figures")
    logger.finalize("success")
    run = client.get_run(logger.run_id)
    assert run.info.status == "FINISHED" and run.info.run_name == "first"
    assert run.data.params == {"dim": "8"}
    assert run.data.tags["colour"] == "red" and run.data.tags["seed"] == "7"
    assert points(logger.run_id, "train/loss") == [(step, 1 / (step + 1)) for step in range(5)]  # bitwise, through JSON and SQL
    assert len(points(logger.run_id, "val/nan")) == 5
    assert [file.path for file in client.list_artifacts(logger.run_id, "figures")] == ["figures/picture.txt"]
    assert (tmp_path / "out" / "mlartifacts").is_dir()  # beside the database, not in the working directory


def test_sending_the_whole_journal_a_second_time_adds_nothing(tmp_path, store, client, points):
    logger = make(tmp_path, store)
    for step in range(3):
        logger.log_metrics({"loss": 1.0}, step)
    logger.close("FINISHED")
    run_id = logger.run_id
    for name in ("offset", "run_id"):
        next((tmp_path / "RUN/tracking/run/stores").glob(f"*/{name}")).unlink()  # killed before these were written
    assert sync(tmp_path / "RUN") == 5  # open, three points, status
    assert logger.run_id == run_id
    assert points(run_id, "loss") == [(0, 1.0), (1, 1.0), (2, 1.0)]
    assert client.get_run(run_id).info.status == "FINISHED"
    assert len(client.search_runs(["1"])) == 1


def test_a_resumed_run_has_no_gap_and_no_duplicate_step(tmp_path, store, client, points):
    def train(logger: JournalMLFlowLogger, steps: range) -> None:
        for step in steps:
            logger.log_metrics({"train/loss": 0.1 * step, "epoch": step // 4}, step)
            if step % 4 == 3:
                logger.log_metrics({"val/loss": 0.2 * step}, step)

    first = make(tmp_path, store)
    train(first, range(10))
    first.close("KILLED")
    run_id = first.run_id
    resumed = make(tmp_path, store)
    resumed.rewind(5)  # the checkpoint was older than the last point
    train(resumed, range(6, 16))
    resumed.close("FINISHED")
    assert resumed.run_id == run_id
    assert points(run_id, "train/loss") == [(step, 0.1 * step) for step in range(16)]
    assert points(run_id, "val/loss") == [(step, 0.2 * step) for step in (3, 7, 11, 15)]
    assert client.get_run(run_id).info.status == "FINISHED"


def test_rewinding_in_the_same_process_keeps_one_point_per_step(tmp_path, store, points):
    logger = make(tmp_path, store)
    for step in range(4):
        logger.log_metrics({"loss": float(step)}, step)
    logger.rewind(1)
    for step in range(2, 6):
        logger.log_metrics({"loss": float(step)}, step)
    logger.close("FINISHED")
    assert points(logger.run_id, "loss") == [(step, float(step)) for step in range(6)]


def test_a_value_that_differs_after_a_resume_is_named_and_the_first_is_kept(tmp_path, store, points, caplog):
    first = make(tmp_path, store)
    first.log_metrics({"loss": 1.0, "same": math.nan}, 0)
    first.close()
    resumed = make(tmp_path, store)
    resumed.rewind(0)
    resumed.log_metrics({"loss": 1.5, "same": math.nan, "new": 3.0}, 0)
    resumed.close("FINISHED")
    assert points(resumed.run_id, "loss") == [(0, 1.0)]
    assert points(resumed.run_id, "new") == [(0, 3.0)]
    warned = [record.getMessage() for record in caplog.records if "the first is kept" in record.getMessage()]
    assert len(warned) == 1 and warned[0].startswith("loss at step 0 is 1.5")


def test_a_line_torn_by_kill_is_cut_and_the_rest_survives(tmp_path, store, points, caplog):
    first = make(tmp_path, store)
    first.log_metrics({"loss": 0.0}, 0)
    first.close()
    with (tmp_path / "RUN/tracking/run/journal.jsonl").open("ab") as file:
        file.write(b'{"kind": "metrics", "time": 1, "step": 1, "val')
    assert sync(tmp_path / "RUN") == 0  # half a line is never sent
    resumed = make(tmp_path, store)
    resumed.rewind(0)
    resumed.log_metrics({"loss": 1.0}, 1)
    resumed.close("FINISHED")
    assert "half-written line" in caplog.text
    assert points(resumed.run_id, "loss") == [(0, 0.0), (1, 1.0)]
    assert [json.loads(line)["kind"] for line in (tmp_path / "RUN/tracking/run/journal.jsonl").open()] == [
        "open",
        "metrics",
        "status",  # KILLED, which the first process could not write
        "open",
        "metrics",
        "status",
    ]


ENDLESS_WRITER = """
import itertools, sys
from tracking.records import Journal
journal = Journal(sys.argv[1])
for step in itertools.count():
    journal.append("metrics", {"step": step, "values": {"loss": float(step), "other": 0.5}})
    if step == 100:
        print("going", flush=True)
"""


def test_a_process_killed_while_it_writes_loses_no_whole_line(tmp_path, store, client, points):
    first = make(tmp_path, store)
    first.set_tags({"begun": "yes"})
    first.close()
    writer = subprocess.Popen(
        [sys.executable, "-c", ENDLESS_WRITER, str(tmp_path / "RUN/tracking/run")], stdout=subprocess.PIPE, cwd=ROOT, text=True
    )
    assert writer.stdout.readline() == "going\n"
    writer.kill()
    assert writer.wait() == -signal.SIGKILL
    sync(tmp_path / "RUN")
    stored = points(first.run_id, "loss")
    assert len(stored) > 100 and stored == [(step, float(step)) for step in range(len(stored))]
    resumed = make(tmp_path, store)
    resumed.rewind(50)
    resumed.log_metrics({"loss": 60.0}, 60)
    resumed.log_metrics({"loss": -1.0}, len(stored))
    resumed.close("FINISHED")
    assert points(first.run_id, "loss") == [*stored, (len(stored), -1.0)]
    assert client.get_run(first.run_id).info.status == "FINISHED"


class Line(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layer = torch.nn.Linear(2, 1)

    def training_step(self, batch):
        loss = self.layer(batch[0]).pow(2).mean()
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.01)


def test_training_runs_to_its_end_without_a_store_and_sync_brings_it_later(tmp_path, store, points, caplog, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    logger = make(tmp_path, closed_port())
    trainer = lightning.Trainer(
        accelerator="cpu", max_epochs=1, logger=logger, log_every_n_steps=1, default_root_dir=tmp_path,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(Line(), DataLoader(TensorDataset(torch.randn(12, 2)), batch_size=2))
    assert trainer.global_step == 6 and logger.run_id is None
    warnings = [
        record.getMessage() for record in caplog.records if record.levelno == logging.WARNING and record.name.startswith("tracking")
    ]
    assert len([text for text in warnings if "unreachable, training goes on" in text]) == 1
    assert len([text for text in warnings if "have not been sent" in text and "python -m tracking.sync" in text]) == 1
    assert "Retrying" not in caplog.text  # urllib3's chatter
    sync(tmp_path / "RUN", store)
    again = make(tmp_path, store)
    assert [step for step, _ in points(again.run_id, "train/loss")] == list(range(6))


def test_ctrl_c_without_a_driver_ends_killed_and_an_error_failed(tmp_path, store, client):
    for folder, error, status in (("a", KeyboardInterrupt(), "KILLED"), ("b", RuntimeError("x"), "FAILED")):
        logger = make(tmp_path / folder, store)
        logger.log_metrics({"loss": 1.0}, 0)
        try:
            raise error
        except (KeyboardInterrupt, RuntimeError):
            logger.finalize("failed")
        assert client.get_run(logger.run_id).info.status == status


def test_a_file_deleted_before_it_is_sent_is_left_out_with_a_warning(tmp_path, store, client, caplog):
    logger = make(tmp_path, closed_port())
    kept, pruned = tmp_path / "kept.txt", tmp_path / "pruned.txt"
    kept.write_text("1")
    pruned.write_text("2")
    logger.log_artifact(pruned)
    logger.log_artifact(kept)
    logger.close("FINISHED")
    pruned.unlink()
    sync(tmp_path / "RUN", store)
    assert "pruned.txt was deleted before" in caplog.text
    assert [file.path for file in client.list_artifacts(make(tmp_path, store).run_id)] == ["kept.txt"]
    with pytest.raises(FileNotFoundError, match=r"never\.txt"):
        logger.log_artifact(tmp_path / "never.txt")


def test_what_the_store_refuses_is_named_and_the_rest_arrives(tmp_path, store, client, points, caplog):
    logger = make(tmp_path, store)
    logger.log_metrics({"a//b": 1.0, "loss": 2.0}, 0)  # MLflow takes no such path
    logger.log_metrics({"recall@1": 0.5}, 0)
    logger.close("FINISHED")
    assert "refused 'a//b'" in caplog.text
    assert points(logger.run_id, "loss") == [(0, 2.0)]
    assert points(logger.run_id, "recall_1") == [(0, 0.5)]
    assert client.get_run(logger.run_id).info.status == "FINISHED"


def test_params_are_written_once_whole_up_to_mlflows_limit_and_without_passwords(tmp_path, store, client, caplog):
    first = make(tmp_path, store)
    first.log_params({"long": "x" * 6000, "longer": "y" * 6001, "uri": "postgresql://me:secret@host/db"})
    first.close()
    resumed = make(tmp_path, store)
    resumed.log_params({"long": "changed"})
    resumed.close()
    params = client.get_run(resumed.run_id).data.params
    assert params["long"] == "x" * 6000
    assert len(params["longer"]) == 6000 and params["longer"].endswith("(cut: 6001 characters in all)")
    assert params["uri"] == "postgresql://me:***@host/db"
    assert "parameter longer has 6001 characters" in caplog.text and "parameter long is 'changed' now" in caplog.text
    assert "secret" not in (tmp_path / "RUN/tracking/run/journal.jsonl").read_text()


def test_a_store_that_lost_its_database_gets_the_whole_run_again(tmp_path, store, points):
    first = make(tmp_path, store)
    first.log_metrics({"loss": 1.0}, 0)
    first.close()
    state = next((tmp_path / "RUN/tracking/run/stores").glob("*/run_id"))
    state.write_text("0" * 32)  # what a deleted and remade mlflow.db looks like: the id means nothing there
    resumed = make(tmp_path, store)
    resumed.log_metrics({"loss": 2.0}, 1)
    resumed.close()
    assert resumed.run_id != "0" * 32
    assert points(resumed.run_id, "loss") == [(0, 1.0), (1, 2.0)]


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("htp://x", "begins with 'htp'"),
        ("http://:5000", "names no host"),
        ("http://host:port", "not an address"),
        ("sqlite://mlflow.db", "three slashes"),
        ("./mlruns", "is a folder"),
    ],
)
def test_an_impossible_address_is_refused_by_name(tmp_path, monkeypatch, uri, said):
    with pytest.raises(InputError, match=f"tracking_uri: .*{said}"):
        make(tmp_path, uri)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(InputError, match="MLFLOW_TRACKING_URI"):
        JournalMLFlowLogger(journal_dir=tmp_path)


def test_the_constructor_makes_no_file_and_other_ranks_never_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    logger = JournalMLFlowLogger(journal_dir="journal")
    assert logger.tracking_uri == f"sqlite:///{tmp_path / 'outputs' / 'mlflow.db'}"
    _ = logger.experiment, logger.run_id, logger.version, logger.name, logger.save_dir  # what Lightning touches before a fit
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    logger.log_metrics({"loss": 1.0}, 0)
    logger.rewind(3)
    logger.finalize("success")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_no_half_line(tmp_path, monkeypatch):
    logger = make(tmp_path, closed_port())
    logger.log_metrics({"loss": 1.0}, 0)
    path = tmp_path / "RUN/tracking/run/journal.jsonl"
    before, write = path.read_bytes(), os.write
    calls = iter([1])

    def half_then_full(descriptor: int, data: bytes) -> int:
        if next(calls, None):
            return write(descriptor, data[:10])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("tracking.records.os.write", half_then_full)
        with pytest.raises(OSError, match="No space left"):
            logger.log_metrics({"loss": 2.0}, 1)
    assert path.read_bytes() == before
    logger.close()
