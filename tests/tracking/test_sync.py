from __future__ import annotations

import socket

import pytest

from tracking.journal import JournalMLFlowLogger
from tracking.sync import main


@pytest.fixture
def unsent(tmp_path):
    """A run folder whose store was never there; gives (RUN, its store's address)."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{probe.getsockname()[1]}"
    logger = JournalMLFlowLogger("tests", tracking_uri=address, journal_dir=tmp_path / "RUN" / "tracking" / "run", drain_seconds=5)
    for step in range(3):
        logger.log_metrics({"loss": float(step)}, step)
    logger.close("FINISHED")
    return tmp_path / "RUN", address


def test_sync_sends_to_another_store_then_has_nothing_left(unsent, store, client, capsys, caplog):
    caplog.set_level("INFO", "tracking")
    run_dir, _ = unsent
    assert main([str(run_dir), "--tracking-uri", store]) == 0
    assert "sending 5 records" in caplog.text
    (run,) = client.search_runs(["1"])
    assert run.info.status == "FINISHED" and run.data.metrics["loss"] == 2.0
    caplog.clear()
    assert main([str(run_dir), "--tracking-uri", store]) == 0
    assert "nothing to send" in caplog.text


def test_sync_works_after_the_run_folder_was_moved(unsent, store, client):
    run_dir, _ = unsent
    moved = run_dir.rename(run_dir.with_name("MOVED"))
    assert main([str(moved), "--tracking-uri", store]) == 0
    assert len(client.search_runs(["1"])) == 1


def test_sync_to_a_store_that_is_still_away_exits_1(unsent, capsys):
    run_dir, address = unsent
    assert main([str(run_dir)]) == 1
    said = capsys.readouterr().err
    assert address.removeprefix("http://").partition(":")[0] in said and "nothing is lost" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "no run folder at nowhere"),
        (["."], "holds no journal"),
        (["RUN", "--tracking-uri", "htp://x"], "tracking_uri: 'htp://x'"),
    ],
)
def test_a_mistake_in_what_is_asked_exits_2(unsent, monkeypatch, tmp_path, capsys, arguments, said):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert said in capsys.readouterr().err


def test_a_password_is_never_kept_so_sync_asks_for_the_address(tmp_path, capsys):
    logger = JournalMLFlowLogger(
        "tests", tracking_uri="http://me:secret@127.0.0.1:9", journal_dir=tmp_path / "RUN/tracking/run", drain_seconds=5
    )
    logger.log_metrics({"loss": 1.0}, 0)
    logger.close()
    assert not [path for path in (tmp_path / "RUN").rglob("*") if path.is_file() and "secret" in path.read_text()]
    assert main([str(tmp_path / "RUN")]) == 2
    said = capsys.readouterr().err
    assert "--tracking-uri" in said and "secret" not in said
