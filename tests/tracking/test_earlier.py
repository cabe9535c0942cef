"""What a run could not say or send is said and sent later: when it goes on, or when another run starts."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tracking import facts
from tracking.earlier import in_use
from tracking.records import Journal
from tracking.run import TrackedRun

MOMENT = 1_700_000_000_000  # 2023-11-14T22:13:20 UTC
HOLDER = """
import fcntl, sys, time
file = open(sys.argv[1], "a+")
fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def _no_git(monkeypatch):
    monkeypatch.setattr(facts, "git_facts", lambda folder: facts.GitFacts("c" * 40, "main", False, "", ""))
    monkeypatch.setattr(facts, "environment", dict)


def write_run(folder: Path, store: str, end: str | None) -> Path:
    """A run folder whose process wrote three points and never reached the store; ``end`` None: it was killed."""
    journal = Journal(folder / "tracking" / "run")
    fields = {"key": folder.name * 8, "experiment": "tests", "name": folder.name, "tags": {}, "parent": None, "artifact_location": None}
    journal.append("open", {**fields, "tracking_uri": store, "time": MOMENT})
    for step in range(3):
        journal.append("metrics", {"step": step, "values": {"loss": float(step)}, "time": MOMENT + step})
    if end is not None:
        journal.append("status", {"status": end, "time": MOMENT + 9})
    journal.close()
    (folder / ".lock").touch()
    return folder


def test_a_run_killed_without_a_word_is_marked_when_it_goes_on(tmp_path, store, client, caplog):
    for attempt in range(3):
        run = TrackedRun(tmp_path / "RUN", "tests", tracking_uri=store, output_dir=tmp_path / "out")
        run.start({"seed": 3})
        stage = run.stage_logger(0, "only")
        stage.log_metrics({"train/loss": 1.0}, attempt)
        if attempt < 2:  # killed: what was written arrives, and nobody says how it ended
            run.logger.close()
            stage.close()
            heard = time.time()
    run.finish("FINISHED")
    parent = client.get_run(run.run_id)
    assert parent.info.status == "FINISHED" and len(client.search_runs(["1"])) == 2
    first, second = parent.data.tags["killed"].split(", ")
    assert abs(time.mktime(time.strptime(second, "%Y-%m-%dT%H:%M:%S+00:00")) - time.timezone - heard) < 5 and first <= second
    assert len([text for text in caplog.messages if text.startswith("the process before was killed without a word")]) == 2
    for key in ("run", "01-only"):
        statuses = [record["status"] for _, record in Journal(tmp_path / "RUN" / "tracking" / key).read() if record["kind"] == "status"]
        assert statuses == ["KILLED", "KILLED", "FINISHED"]


def test_a_run_that_ended_is_not_said_to_be_killed_when_it_goes_on(tmp_path, store, client):
    for status in ("KILLED", "FINISHED"):
        run = TrackedRun(tmp_path / "RUN", "tests", tracking_uri=store, output_dir=tmp_path / "out")
        run.start({})
        run.finish(status)
    assert "killed" not in client.get_run(run.run_id).data.tags


def test_the_next_start_sends_what_earlier_runs_could_not_and_marks_the_killed(tmp_path, store, client, points, caplog):
    caplog.set_level(logging.INFO, "tracking")
    outputs = tmp_path / "runs"
    write_run(outputs / "whole", store, "FINISHED")
    write_run(outputs / "killed", store, None)
    write_run(outputs / "sweeps" / "rates" / "trial", store, None)
    write_run(outputs / "elsewhere", f"sqlite:///{tmp_path}/other.db", "FINISHED")
    alive = write_run(outputs / "alive", store, None)
    (outputs / "latest").symlink_to("whole")
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(alive / ".lock")], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n" and in_use(alive) and not in_use(outputs / "whole")
        for _ in range(2):  # the second start finds nothing left
            run = TrackedRun(outputs / "new", "tests", tracking_uri=store, output_dir=outputs)
            run.start({})
            for thread in threading.enumerate():
                if thread.name == "tracking-earlier-runs":  # a run as short as this one would stop it half-way
                    thread.join(60)
            run.finish("FINISHED")
    finally:
        holder.kill()
        holder.wait()
    runs = {run.info.run_name: run for run in client.search_runs(["1"])}
    assert {name: run.info.status for name, run in runs.items()} == {
        "whole": "FINISHED",
        "killed": "KILLED",
        "trial": "KILLED",
        "new": "FINISHED",
    }
    assert runs["killed"].info.end_time == MOMENT + 2  # its last sign of life
    for name in ("whole", "killed", "trial"):
        assert points(runs[name].info.run_id, "loss") == [(0, 0.0), (1, 1.0), (2, 2.0)]
    assert not (tmp_path / "other.db").exists()
    sent = [text for text in caplog.messages if "of this earlier run have been sent" in text]
    assert sorted(Path(text.split(":")[0]).name for text in sent) == ["killed", "trial", "whole"]


def test_a_sweep_that_holds_this_run_is_left_alone(tmp_path, store):
    sweep = write_run(tmp_path / "out" / "sweeps" / "rates", store, None)
    run = TrackedRun(sweep / "trial", "tests", tracking_uri=store, output_dir=tmp_path / "out")
    run.start({})
    run.finish("FINISHED")
    assert not Journal(sweep / "tracking" / "run").ended()


def test_a_sweep_that_goes_on_leaves_its_killed_trial_alone_and_holds_its_run(tmp_path, store, client):
    sweep_dir = tmp_path / "out" / "sweeps" / "rates"
    killed = write_run(sweep_dir / "0", store, None)
    sweep = TrackedRun(sweep_dir, "tests", tracking_uri=store, output_dir=tmp_path / "out")
    sweep.start({})
    trial = TrackedRun(sweep_dir / "1", "tests", tracking_uri=store, output_dir=tmp_path / "out", sweep_dir=sweep_dir)
    trial.logger.open()
    trial.finish("FINISHED")
    sweep.finish("FINISHED")
    assert not Journal(killed / "tracking" / "run").ended()  # the sweep takes its lock when it goes on with it
    assert client.get_run(trial.run_id).data.tags["mlflow.parentRunId"] == sweep.run_id


@pytest.mark.parametrize("length", [10, 70_000, 200_000])
def test_the_last_record_is_found_from_the_end_of_a_journal_also_past_a_torn_line(tmp_path, length):
    journal = Journal(tmp_path)
    assert journal.last() is None and journal.ended()
    for number in range(3):
        journal.append("tags", {"values": {"text": f"{number}" * length}})
        assert journal.last() == list(journal.read())[-1][1]
    with journal.path.open("ab") as file:
        file.write(b'{"kind": "status", "time"')
    assert journal.last()["values"]["text"] == "2" * length and not journal.ended()


def test_a_stage_that_ended_just_before_its_process_was_killed_is_sent_when_the_run_goes_on(tmp_path, store, client):
    run = TrackedRun(tmp_path / "RUN", "tests", tracking_uri=store, output_dir=tmp_path / "out")
    run.start({})
    stage = run.stage_logger(0, "first")
    stage.log_metrics({"train/loss": 1.0}, 0)
    run.logger.close()
    stage.close()
    stage.journal.append("status", {"status": "FINISHED"})  # written, and not sent: the process is killed here
    stage.journal.close()
    assert {one.info.status for one in client.search_runs(["1"])} == {"RUNNING"}
    run = TrackedRun(tmp_path / "RUN", "tests", tracking_uri=store, output_dir=tmp_path / "out")
    run.start({})
    run.finish("FINISHED")
    assert [one.info.status for one in client.search_runs(["1"])] == ["FINISHED", "FINISHED"]
