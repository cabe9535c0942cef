"""Hydra's multirun: each trial in a folder of its own, never registered, on one machine in parallel; a cluster's launcher composes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import MissingConfigException

from insight.errors import InputError
from lightning_modules.front import run_composed
from lightning_modules.overrides import CONFIGS, compose_plain, explain

ROOT = Path(__file__).resolve().parents[2]
SIZES = ("dim=16", "heads=2", "image_depth=1", "text_depth=1", "embed_dim=16")
TINY = [
    *(f"model.init_args.{key}" for key in SIZES),
    *(f"data.init_args.{key}" for key in ("image_size=32", "batch_size=8", "eval_batch_size=20")),
    *(f"+data.init_args.num_{split}={count}" for split, count in {"train": 40, "val": 20, "test": 12}.items()),
    *("stages=one_stage", "trainer=cpu", "+trainer.limit_train_batches=1", "~callbacks", "tracking.enabled=false"),
]


def test_parallel_trials_share_no_folder_and_one_that_fails_stops_no_other(tmp_path, scenes_cache):
    words = ["--multirun", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "stages.one_stage.epochs=0,1,2", *TINY]
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *words, f"data.init_args.cache_dir={scenes_cache}"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert "error: stages.one_stage.epochs=0: must be at least 1" in done.stderr and "Traceback" not in done.stderr
    (sweep,) = (tmp_path / "outputs" / "sweeps").iterdir()
    assert sorted(path.name for path in sweep.iterdir() if path.is_dir()) == ["0", "1", "2"]
    for number in (1, 2):
        config = yaml.safe_load((sweep / str(number) / "config.yaml").read_text())
        assert config["stages"]["one_stage"]["epochs"] == number and config["deployment"]["register"] is False
        assert (sweep / str(number) / "summary.json").exists()
    assert not (sweep / "0" / "summary.json").exists()
    assert sorted(path.name for path in (tmp_path / "outputs").iterdir()) == ["latest", "sweeps"]  # nothing beside it
    assert sorted(path.name for path in tmp_path.iterdir()) == ["outputs"]


def launcher(*overrides: str) -> dict:
    GlobalHydra.instance().clear()
    with initialize_config_dir(version_base="1.3", config_dir=CONFIGS):
        config = compose("train", overrides=list(overrides), return_hydra_config=True)
    return dict(config.hydra.launcher)


def test_the_launchers_of_one_machine_and_of_a_cluster_compose():
    assert launcher("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")["n_jobs"] == 2
    words = ["partition=gpu", "gpus_per_node=1", "timeout_min=240", "array_parallelism=4"]
    slurm = launcher("hydra/launcher=submitit_slurm", *(f"hydra.launcher.{word}" for word in words))
    assert slurm["_target_"].endswith("SlurmLauncher") and (slurm["partition"], slurm["timeout_min"]) == ("gpu", 240)


def test_multiruns_of_the_same_second_get_folders_of_their_own():
    def folder() -> str:
        GlobalHydra.instance().clear()
        with initialize_config_dir(version_base="1.3", config_dir=CONFIGS):
            return str(compose("train", overrides=["run.name=x"], return_hydra_config=True).hydra.sweep.dir)

    first, second = folder(), folder()
    assert first != second and all(path.startswith("outputs/sweeps/") and path.endswith("_x") for path in (first, second))


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("run_dir=x", "run_dir beside --multirun: trials have folders of their own in hydra.sweep.dir, which can be set"),
        ("resume=x", "resume beside --multirun: go on with one run at a time, without --multirun"),
        ("reproduce=x", "reproduce beside --multirun: repeat one run at a time, without --multirun"),
        ("+sweep=rates", "sweep beside --multirun: it chooses the values itself; leave --multirun out"),
    ],
)
def test_what_all_trials_would_share_is_refused(word, said, tmp_path, capsys):
    assert run_composed(compose_plain(CONFIGS, [word]), [word], trial_dir=str(tmp_path / "0")) == 2
    assert capsys.readouterr().err.strip() == f"error: {said}"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("option", "extra"), [("joblib", "sweeps"), ("submitit_slurm", "slurm")])
def test_a_launcher_that_is_not_installed_names_its_extra(option, extra):
    options = "Available options in 'hydra/launcher':\n\tbasic\nConfig search path:\n"
    said = explain(MissingConfigException(f"Could not find 'hydra/launcher/{option}'\n\n{options}", ""), CONFIGS, [])
    assert isinstance(said, InputError) and f"hydra/launcher={option}: needs the extra `{extra}`: pip install hydra-" in str(said)
