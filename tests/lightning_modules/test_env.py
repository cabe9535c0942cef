"""Environments: what they compose, and that the value of a secret is nowhere, whatever a run leaves behind."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from insight.errors import InputError
from lightning_modules.cli import main
from lightning_modules.drive import run_stages
from lightning_modules.engine_cli import build
from tracking.store import open_client, without_password
from tracking.sync import main as sync

ROOT = Path(__file__).resolve().parents[2]
TOKEN, PASSWORD = "tok-8f2c51d0e7", "pw-93ab77c41f"


def composed(*overrides: str) -> dict:
    GlobalHydra.instance().clear()
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "configs")):
        return OmegaConf.to_container(compose("train", overrides=list(overrides)), resolve=True)


@pytest.mark.parametrize(
    ("env", "outputs", "experiment", "deterministic", "level", "token_env"),
    [
        ("dev", "outputs", "flickr", False, "INFO", None),
        ("staging", "outputs/staging", "flickr", True, "INFO", "MLFLOW_TRACKING_TOKEN"),
        ("prod", "outputs/prod", "flickr_prod", True, "WARNING", "MLFLOW_TRACKING_TOKEN"),
    ],
)
def test_an_environment_composes_stores_places_precision_and_verbosity(env, outputs, experiment, deterministic, level, token_env):
    config = composed(f"env={env}", "trainer=cuda", "data=flickr30k", "paths.flickr30k=/photos")
    assert config["run"]["output_dir"] == outputs and config["run"]["log_level"] == level and config["run"]["env"] == env
    assert config["tracking"]["experiment"] == experiment and config["tracking"]["token_env"] == token_env
    assert config["trainer"]["deterministic"] is deterministic
    assert config["trainer"]["precision"] == ("32-true" if deterministic else "bf16-mixed")  # dev leaves it to the device
    assert config["data"]["init_args"]["root"] == "/photos" and config["data"]["init_args"]["cache_dir"] == "outputs/cache"
    assert composed(f"env={env}", "trainer.precision=bf16-mixed")["trainer"]["precision"] == "bf16-mixed"  # a key still wins


@pytest.mark.parametrize("missing", ["token_env", "tracking_uri_env"])
@pytest.mark.parametrize("door", ["run_stages", "cli"])
def test_a_missing_secret_is_one_line_before_any_work(tiny_config, tmp_path, monkeypatch, capsys, missing, door):
    monkeypatch.delenv("NOT_SET", raising=False)
    tiny_config["tracking"] = {missing: "NOT_SET"}
    said = f"tracking.{missing}=NOT_SET: this environment variable is not set"
    if door == "cli":
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(tiny_config))
        assert main(["multistage", "--config", str(tmp_path / "config.yaml")]) == 2
        error = capsys.readouterr().err.strip()
        assert error.startswith(f"error: {said}") and "\n" not in error
    else:
        with pytest.raises(InputError, match=said):
            run_stages(build(tiny_config))
    assert not (tmp_path / "run").exists() and not (tmp_path / "outputs").exists()


def test_a_password_in_the_config_is_refused_without_being_repeated(tiny_config):
    tiny_config["tracking"] = {"tracking_uri": f"http://me:{PASSWORD}@127.0.0.1:9"}
    with pytest.raises(InputError, match=r"tracking\.tracking_uri holds a password.*tracking_uri_env=MLFLOW_TRACKING_URI") as refused:
        build(tiny_config)
    assert PASSWORD not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("sqlite:////home/me@work/mlflow.db", "sqlite:////home/me@work/mlflow.db"),
        ("http://me:a@b:c@host:5000/x", "http://me:***@host:5000/x"),
        ("see https://t0ken@host, then http://host", "see https://***@host, then http://host"),
    ],
)
def test_passwords_and_tokens_of_addresses_are_starred_out(text, shown):
    assert without_password(text) == shown


def test_hydra_shows_names_of_secrets_and_no_values(tmp_path):
    secrets = {"MLFLOW_TRACKING_TOKEN": TOKEN, "MLFLOW_TRACKING_URI": f"http://me:{PASSWORD}@127.0.0.1:9"}
    shown = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), "env=prod", "--cfg", "job", "--resolve"],
        cwd=tmp_path,
        env={**os.environ, **secrets},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert shown.returncode == 0, shown.stderr
    assert "token_env: MLFLOW_TRACKING_TOKEN" in shown.stdout and "tracking_uri_env: MLFLOW_TRACKING_URI" in shown.stdout
    assert TOKEN not in shown.stdout + shown.stderr and PASSWORD not in shown.stdout + shown.stderr


def test_nothing_that_a_run_leaves_behind_holds_the_value_of_a_secret(tiny_config, tmp_path, migrated_store, monkeypatch, capfd, caplog):
    """A run whose server is away, in debug verbosity, that fails; then its journals are sent to a store of their own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    monkeypatch.setenv("STORE_ADDRESS", f"http://me:{PASSWORD}@127.0.0.1:{port}")
    monkeypatch.setenv("STORE_TOKEN", TOKEN)
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "")  # set by the run; put back after this test
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    tiny_config["tracking"] = {"tracking_uri_env": "STORE_ADDRESS", "token_env": "STORE_TOKEN"}
    tiny_config["run"] |= {"log_level": "DEBUG", "env": "staging"}
    tiny_config["stages"] = {"cross_modal": {**tiny_config["stages"]["cross_modal"], "epochs": 1}}
    cli = build(tiny_config)
    original = cli.model.on_test_epoch_end

    def broken() -> None:
        original()
        raise OSError(f"cannot reach http://me:{PASSWORD}@127.0.0.1:{port}/api")

    cli.model.on_test_epoch_end = broken
    with pytest.raises(OSError):
        run_stages(cli)
    shutil.copy(migrated_store, tmp_path / "other.db")
    store = f"sqlite:///{tmp_path / 'other.db'}"
    assert sync([tiny_config["run_dir"], "--tracking-uri", store]) == 0
    (parent,) = open_client(store).search_runs(["1"], "tags.env = 'staging'")
    assert parent.info.status == "FAILED"  # the database holds the run
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"config.yaml", "journal.jsonl", "other.db", "error.txt"} <= {path.name for path in files}
    said = capfd.readouterr()
    for secret in (TOKEN, PASSWORD):
        assert [path for path in files if secret.encode() in path.read_bytes()] == []
        assert secret not in said.out + said.err + caplog.text
    assert "STORE_TOKEN" in (tmp_path / "run" / "config.yaml").read_text()


def test_a_run_with_the_trainer_of_prod_trains_on_the_cpu(tiny_config):
    tiny_config["trainer"] = {**composed("env=prod", "trainer=cpu")["trainer"], "max_epochs": 1, "limit_train_batches": 1}
    assert tiny_config["trainer"]["deterministic"] is True
    try:
        assert run_stages(build(tiny_config)) == 0
    finally:
        torch.use_deterministic_algorithms(False)
    assert (Path(tiny_config["run_dir"]) / "summary.json").exists()
