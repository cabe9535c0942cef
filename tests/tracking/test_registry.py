"""From a finished run to a registered version, once; and from an address to a model that works."""

from __future__ import annotations

import http.server
import json
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED

from insight.errors import InputError
from insight.export import bundle
from tracking import registry
from tracking.earlier import EarlierRuns, waiting_runs
from tracking.registration import deliver
from tracking.registry import find, open_registry
from tracking.store import open_client
from tracking.sync import main


@pytest.fixture
def closed() -> str:
    """The address of a server that is not there."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


@pytest.fixture
def forbidding() -> Iterator[str]:
    """A server that lets nobody do anything."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer = json.dumps({"error_code": "PERMISSION_DENIED", "message": "Permission denied"}).encode()
            self.send_response(403)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        do_POST = do_GET

        def log_message(self, *words: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def versions(client: MlflowClient, name: str = "flickr") -> list[int]:
    return sorted(int(one.version) for one in client.search_model_versions(f"name = '{name}'"))


# --- registering ---
def test_a_finished_run_becomes_one_version_however_often_it_is_sent(release, store, client):
    first = release()
    assert first.address == "models:/flickr/1" and release().address == "models:/flickr/2"
    assert main([str(first.run_dir)]) == 0 and deliver(first.run_dir, store) == "models:/flickr/1"
    found = client.get_model_version("flickr", "1")
    assert versions(client) == [1, 2] and found.run_id == first.run_id and found.source == f"runs:/{first.run_id}/bundle"
    assert found.tags["bundle.sha256"] == bundle.load(first.run_dir / "bundle").sha256 and found.description == "a test"


def test_a_run_whose_store_was_away_is_registered_by_sync(release, closed, store, client, caplog):
    run_dir, _, address = release(tracking_uri=closed)
    assert address is None and "the run is not registered yet (not all that the run recorded has arrived there)" in caplog.text
    caplog.set_level("INFO", "tracking")
    for _ in range(2):
        assert main([str(run_dir), "--tracking-uri", store]) == 0
    assert versions(client) == [1] and "registered as models:/flickr/1" in caplog.text
    (parent,) = client.search_runs(["1"], "attributes.run_name = 'RUN-0'")
    assert parent.info.status == "FINISHED"


def test_a_kill_after_the_version_was_made_does_not_make_another(release, store, client):
    run_dir = release().run_dir
    (note,) = run_dir.glob("tracking/run/stores/*/registered")
    note.unlink()  # killed before it was written down
    assert deliver(run_dir, store) == "models:/flickr/1" and versions(client) == [1]


def test_a_version_that_somebody_deleted_is_not_made_again(release, client):
    run_dir = release().run_dir
    client.delete_model_version("flickr", "1")
    assert main([str(run_dir)]) == 0 and versions(client) == []


def test_a_registry_that_refuses_costs_the_run_nothing_and_is_asked_again_by_sync(release, client, monkeypatch, caplog):
    def refuse(*_: object, **__: object) -> None:
        raise MlflowException("no", error_code=PERMISSION_DENIED)

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "create_registered_model", refuse)
        run_dir, run_id, address = release()
        assert address is None and "does not let you register a version of 'flickr'" in caplog.text
        assert client.get_run(run_id).info.status == "FINISHED"
        assert main([str(run_dir)]) == 2
    assert main([str(run_dir)]) == 0 and versions(client) == [1]


def test_a_run_that_was_killed_before_it_finished_is_registered_when_it_has(release, closed, store, client):
    run_dir = release(tracking_uri=closed, register=False).run_dir
    (run_dir / "summary.json").rename(run_dir / "later")
    assert main([str(run_dir), "--tracking-uri", store]) == 0 and not client.search_registered_models()
    (run_dir / "later").rename(run_dir / "summary.json")
    assert main([str(run_dir), "--tracking-uri", store]) == 0 and versions(client) == [1]


def test_the_next_run_registers_what_an_earlier_one_could_not(release, store, client, tmp_path):
    run_dir = release(register=False).run_dir
    (run_dir / ".lock").touch()
    assert waiting_runs(tmp_path, store, tmp_path / "next") == [run_dir.resolve()]
    EarlierRuns(tmp_path, store, tmp_path / "next").run()
    assert versions(client) == [1] and waiting_runs(tmp_path, store, tmp_path / "next") == []


def test_without_its_bundle_a_run_becomes_no_version(release, closed, store, client, capsys):
    run_dir = release(tracking_uri=closed, register=False).run_dir
    shutil.rmtree(run_dir / "bundle")
    assert main([str(run_dir), "--tracking-uri", store]) == 1
    assert "has no bundle in the store" in capsys.readouterr().err and versions(client) == []


def test_the_model_may_be_there_already(release, client):
    client.create_registered_model("flickr")
    assert release().address == "models:/flickr/1"


# --- loading ---
def test_the_addresses_of_a_version_give_the_same_working_model(released):
    run_dir, run_id, _ = released.releases[1]
    released.client.set_registered_model_alias("flickr", "champion", "2")
    original = bundle.load(run_dir / "bundle").encode_texts(["a red circle"])
    for address in ("models:/flickr/2", "models:/flickr@champion", f"runs:/{run_id}"):
        model = registry.load(address, released.store)
        assert torch.equal(model.encode_texts(["a red circle"]), original) and model.example_error() < 1e-6


def test_a_run_that_is_no_version_can_be_loaded_too(release, store, client):
    run_id = release(register=False).run_id
    assert registry.load(f"runs:/{run_id}", store).data["description"] == "tiny"
    assert not client.search_registered_models()


def artifacts(client: MlflowClient, run_id: str) -> Path:
    return Path(client.get_run(run_id).info.artifact_uri.removeprefix("file://"))


def test_a_bundle_that_was_changed_in_the_store_is_refused(release, store, client, tmp_path):
    first, second = release(), release()
    shutil.rmtree(artifacts(client, first.run_id) / "bundle")
    shutil.copytree(second.run_dir / "bundle", artifacts(client, first.run_id) / "bundle")  # whole in itself, but another model
    with pytest.raises(InputError, match=r"was changed: its SHA-256 is .* the registry has"):
        registry.load("models:/flickr/1", store)


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("models:/flikr/1", "no registered model 'flikr'; did you mean 'flickr'"),
        ("models:/flickr/9", "model 'flickr' has no version 9; it has 1, 2, 3, 4"),
        ("models:/flickr@champoin", "no alias 'champoin'; did you mean 'champion'"),
        ("runs:/0123456789abcdef0123456789abcdef", "has no run '0123456789abcdef0123456789abcdef'"),
        ("flickr/1", "'flickr/1' is no address of a model"),
        ("models:/flickr/latest", "is no address"),
        ("models:/fl'ickr/1", "is no name for a registered model"),
    ],
)
def test_an_address_of_nothing_says_what_there_is(released, address, said):
    released.client.set_registered_model_alias("flickr", "champion", "1")
    with pytest.raises(InputError, match=said):
        registry.load(address, released.store)


def test_an_empty_registry_says_how_models_get_into_it(store, released):
    with pytest.raises(InputError, match=r"there is none yet: every finished run registers one"):
        registry.load("models:/flickr/1", store)
    with pytest.raises(InputError, match=r"no alias 'champion'; it has none yet: python -m tracking.promote"):
        registry.load("models:/flickr@champion", released.store)


def test_a_run_without_a_bundle_is_named(store, client):
    run = client.create_run("0")
    with pytest.raises(InputError, match=f"runs:/{run.info.run_id} holds no bundle"):
        registry.load(f"runs:/{run.info.run_id}", store)


def test_a_version_that_belongs_to_no_run_is_named(store, client):
    client.create_registered_model("flickr")
    client.create_model_version("flickr", "s3://elsewhere/model")
    with pytest.raises(InputError, match=r"models:/flickr/1 belongs to no run.* its source is s3://elsewhere/model"):
        registry.load("models:/flickr/1", store)


def test_a_registry_without_rights_is_one_line(forbidding):
    with pytest.raises(InputError, match=f"{forbidding} does not let you read model 'flickr': ask its owner"):
        registry.load("models:/flickr/1", forbidding)
    with pytest.raises(InputError, match="does not let you read run abc"):
        registry.load("runs:/abc", forbidding)


def test_a_store_that_is_not_there_is_not_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"no MLflow store at .*outputs/mlflow.db; give its address"):
        open_registry()
    assert not list(tmp_path.iterdir())


def test_the_registry_may_be_another_store(released, tmp_path, migrated_store):
    shutil.copy(migrated_store, tmp_path / "registry.db")
    run_id, elsewhere = released.releases[3].run_id, f"sqlite:///{tmp_path / 'registry.db'}"
    both = open_client(released.store, elsewhere)
    both.create_registered_model("flickr")
    both.create_model_version("flickr", f"runs:/{run_id}/bundle", run_id)
    assert find(both, "models:/flickr/1").run_id == run_id != find(released.client, "models:/flickr/1").run_id
    assert registry.load("models:/flickr/1", released.store, elsewhere).data["description"] == "tiny"
