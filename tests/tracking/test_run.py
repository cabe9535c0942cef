from __future__ import annotations

import json
import logging
import signal
import socket
import subprocess
import sys

import pytest
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from insight.errors import InputError
from tracking import facts
from tracking.run import RunLock, TrackedRun, flatten, status_of
from tracking.sync import sync

GIT = facts.GitFacts(commit="c" * 40, branch="main", dirty=True, diff="+one line\n", note="")


@pytest.fixture(autouse=True)
def _known_git(monkeypatch):
    monkeypatch.setattr(facts, "git_facts", lambda folder: GIT)


@pytest.fixture
def begin(tmp_path, store):
    """Open RUN as a process would, with its config."""

    def _begin() -> TrackedRun:
        run = TrackedRun(tmp_path / "RUN", "tests", tracking_uri=store, drain_seconds=20)
        config = tmp_path / "RUN" / "config.yaml"
        config.parent.mkdir(exist_ok=True)
        config.write_text("seed: 3\n")
        run.start({"seed": 3, "model": {"dim": 8}}, tags={"data.fingerprint": "abc"}, config_path=config)
        return run

    return _begin


def test_stages_are_children_of_one_run_that_holds_config_code_and_summary(begin, client, points):
    run = begin()
    for index, name in enumerate(["single_modality", "end_to_end"]):
        stage = run.stage_logger(index, name)
        stage.log_metrics({"train/loss": 1.0 / (index + 1)}, 0)
        stage.log_hyperparams({"not": "here"})
        stage.finalize("success")  # Lightning's: the driver says how a stage ended
        run.finish_stage(stage, "FINISHED")
    run.log_metrics({"test/image_to_text_recall_at_1": 0.25})
    run.finish(status_of(None))
    parent = client.get_run(run.run_id)
    assert parent.info.status == "FINISHED" and parent.info.run_name == "RUN"
    assert parent.data.params == {"seed": "3", "model.dim": "8"}
    assert parent.data.metrics == {"test/image_to_text_recall_at_1": 0.25}
    tags = parent.data.tags
    assert tags["mlflow.source.git.commit"] == "c" * 40 and tags["git.dirty"] == "true" and tags["data.fingerprint"] == "abc"
    assert {file.path for file in client.list_artifacts(run.run_id)} == {"config.yaml", "environment.json", "git.diff"}
    children = client.search_runs(["1"], f"tags.`mlflow.parentRunId` = '{run.run_id}'", order_by=["attributes.run_name"])
    assert [child.info.run_name for child in children] == ["01-single_modality", "02-end_to_end"]
    assert [child.info.status for child in children] == ["FINISHED", "FINISHED"]
    assert [points(child.info.run_id, "train/loss") for child in children] == [[(0, 1.0)], [(0, 0.5)]]
    assert children[0].data.params == {}


def test_a_run_opened_again_goes_on_in_the_same_runs(begin, client, points):
    first = begin()
    stage = first.stage_logger(0, "only")
    for step in range(4):
        stage.log_metrics({"train/loss": float(step)}, step)
    first.finish("KILLED")  # the stage was not finished: it ends as the run does
    ids = first.run_id, stage.run_id
    assert [client.get_run(run_id).info.status for run_id in ids] == ["KILLED", "KILLED"]
    again = begin()
    stage = again.stage_logger(0, "only")
    stage.rewind(2)
    for each in (again.logger, stage):
        each.close()  # sends what is there, without a status
    assert [client.get_run(run_id).info.status for run_id in ids] == ["RUNNING", "RUNNING"]
    for step in range(3, 6):
        stage.log_metrics({"train/loss": float(step)}, step)
    again.finish_stage(stage, "FINISHED")
    again.finish("FINISHED")
    assert (again.run_id, stage.run_id) == ids
    assert [client.get_run(run_id).info.status for run_id in ids] == ["FINISHED", "FINISHED"]
    assert points(stage.run_id, "train/loss") == [(step, float(step)) for step in range(6)]
    assert len(client.search_runs(["1"])) == 2


def test_going_on_with_other_code_records_it_beside_the_first(begin, client, monkeypatch, caplog):
    begin().finish("KILLED")
    monkeypatch.setattr(facts, "git_facts", lambda folder: GIT._replace(commit="d" * 40, diff="+another line\n"))
    run = begin()
    run.finish("FINISHED")
    tags = client.get_run(run.run_id).data.tags
    assert (tags["mlflow.source.git.commit"], tags["mlflow.source.git.commit.resumed"]) == ("c" * 40, "d" * 40)
    assert {"git.diff", "git.resumed.diff"} <= {file.path for file in client.list_artifacts(run.run_id)}
    assert "goes on with " + "d" * 40 in caplog.text


def test_an_error_leaves_failed_runs_and_its_traceback(begin, client, tmp_path):
    run = begin()
    stage = run.stage_logger(0, "only")
    try:
        raise ArithmeticError("loss is NaN at step 3")
    except ArithmeticError as error:
        run.finish(status_of(error), error)
    assert [client.get_run(run_id).info.status for run_id in (run.run_id, stage.run_id)] == ["FAILED", "FAILED"]
    assert "ArithmeticError: loss is NaN at step 3" in (tmp_path / "RUN/tracking/run/error.txt").read_text()
    assert "error.txt" in {file.path for file in client.list_artifacts(run.run_id)}


def test_a_run_without_a_store_says_so_once_and_is_sent_whole_later(tmp_path, store, client, points, caplog):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{probe.getsockname()[1]}"
    run = TrackedRun(tmp_path / "RUN", "tests", tracking_uri=closed, drain_seconds=20)
    run.start({"seed": 3})
    stages = [run.stage_logger(index, name) for index, name in enumerate("ab")]
    for stage in stages:
        stage.log_metrics({"train/loss": 1.0}, 0)
        run.finish_stage(stage, "FINISHED")
    run.finish("FINISHED")
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING and "tracking" in record.name]
    assert len([text for text in warnings if "unreachable" in text]) == 1
    assert len([text for text in warnings if "have not been sent" in text]) == 1
    sync(tmp_path / "RUN", store)
    children = client.search_runs(["1"], "tags.`mlflow.parentRunId` LIKE '%'")
    assert len(children) == 2 and all(points(child.info.run_id, "train/loss") == [(0, 1.0)] for child in children)
    parent = client.get_run(children[0].data.tags["mlflow.parentRunId"])
    assert parent.info.run_name == "RUN" and parent.data.params == {"seed": "3"}


def test_a_child_sent_first_makes_its_parent_first(tmp_path, store, client):
    """Two shippers run at once; whichever comes first, there is one parent."""
    run = TrackedRun(tmp_path / "RUN", "tests", tracking_uri=store)
    stage = run._make_logger("01-a", "01-a", "run")
    run.logger.journal.append("open", {"key": "k" * 32, "experiment": "tests", "name": "RUN", "tags": {}, "parent": None, "tracking_uri": store, "artifact_location": None})  # fmt: skip # noqa: E501
    stage.close("FINISHED")
    parent_id = client.get_run(stage.run_id).data.tags["mlflow.parentRunId"]
    run.logger.close("FINISHED")
    assert run.run_id == parent_id
    assert len(client.search_runs(["1"])) == 2


def test_a_mistake_before_the_start_leaves_no_run_behind(tmp_path, store):
    TrackedRun(tmp_path / "RUN", "tests", tracking_uri=store).finish("FAILED", InputError("no data"))
    assert not (tmp_path / "RUN").exists()


def test_other_ranks_write_nothing(tmp_path, monkeypatch, store):
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    with RunLock(tmp_path / "RUN"):
        run = TrackedRun(tmp_path / "RUN", "tests", tracking_uri=store)
        run.start({"seed": 3})
        stage = run.stage_logger(0, "only")
        stage.log_metrics({"train/loss": 1.0}, 0)
        run.finish_stage(stage, "FINISHED")
        run.finish("FINISHED")
    assert not (tmp_path / "RUN").exists()


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (None, "FINISHED"),
        (ValueError("x"), "FAILED"),
        (KeyboardInterrupt(), "KILLED"),
        (SIGTERMException(), "KILLED"),
        (SystemExit(2), "FAILED"),
    ],
)
def test_the_status_says_how_a_run_ended(error, status):
    assert status_of(error) == status


def test_lightnings_exit_after_ctrl_c_counts_as_killed():
    def fit() -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            sys.exit(1)

    with pytest.raises(SystemExit) as stopped:
        fit()
    assert status_of(stopped.value) == "KILLED"


def test_a_nested_config_becomes_flat_names():
    config = {"model": {"dim": 8, "empty": {}}, "stages": [{"name": "a"}, {"name": "b", "losses": [1, 2]}], "none": None}
    assert flatten(config) == {
        "model.dim": "8", "model.empty": "{}", "stages.0.name": "a", "stages.1.name": "b", "stages.1.losses": "[1, 2]", "none": "None",
    }  # fmt: skip


HOLDER = """
import fcntl, sys, time
file = open(sys.argv[1], "a+")
fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
file.truncate(0); file.write("process 4711 on elsewhere"); file.flush()
print("held", flush=True)
time.sleep(60)
"""
TAKER = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'a+'), fcntl.LOCK_EX | fcntl.LOCK_NB)"


def test_a_run_folder_in_use_is_refused_until_its_process_dies(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path / ".lock")], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(InputError, match=r"in use by process 4711 on elsewhere; .*another run_dir"):
            RunLock(tmp_path).acquire()
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with RunLock(tmp_path):
        taken = subprocess.run([sys.executable, "-c", TAKER, str(tmp_path / ".lock")], check=False, capture_output=True)
        assert taken.returncode != 0 and b"BlockingIOError" in taken.stderr
    assert subprocess.run([sys.executable, "-c", TAKER, str(tmp_path / ".lock")], check=False).returncode == 0


def test_environment_json_names_packages_and_machine(begin, tmp_path):
    begin().finish("FINISHED")
    environment = json.loads((tmp_path / "RUN/tracking/run/environment.json").read_text())
    assert environment["packages"]["torch"] and environment["machine"]["cpu_count"]
