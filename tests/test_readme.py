"""Every command of the README runs, on tiny shapes; and a mistake is one message and exit code 2."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tracking.store import open_client

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = sorted(set(re.findall(r"(?:^|`)((?:python|make|mlflow) [^`\n#]*)", (ROOT / "README.md").read_text(), re.MULTILINE)))
TINY = [
    *(f"model.init_args.{key}" for key in ("dim=16", "heads=2", "image_depth=1", "text_depth=1", "embed_dim=16")),
    *(f"data.init_args.{key}" for key in ("batch_size=8", "eval_batch_size=8", "image_size=32")),
    "stages.single_modality.data.batch_size=8",
    *(
        f"++trainer.{key}"
        for key in ("accelerator=cpu", "max_epochs=1", "limit_train_batches=1", "limit_val_batches=1", "limit_test_batches=1")
    ),
]
SMALL_SCENES = [f"+data.init_args.num_{split}=16" for split in ("train", "val", "test")]
PLAIN = [f"~callbacks.{name}" for name in ("attention_maps", "score_card", "drift", "canary")]  # the first run has them all
NOT_RUN = (
    "make ",  # the targets run what is run here
    "mlflow ui",  # stays up until it is stopped
    *(f"python -m benchmarks.{name}" for name in ("interactions", "perturbation", "tracking")),  # minutes each
    "python -m tracking.promote",  # needs three versions; the release notebook runs it
)


def run(words: list[str], folder: Path, **environment: str) -> subprocess.CompletedProcess:
    """A command as a user types it, in a folder of its own (Hydra finds the configs beside train.py)."""
    words = [str(ROOT / word) if word == "train.py" else word for word in words]
    return subprocess.run(
        [sys.executable, *words[1:]],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.mark.timeout(1500)
def test_every_command_of_the_readme_runs(tmp_path, scenes_cache):
    cache = f"data.init_args.cache_dir={scenes_cache}"
    looks = [f"+callbacks.score_card.init_args.{key}" for key in ("search_examples=8", "every_n_validations=1")]
    first = run(["python", "train.py", "+experiment=flickr_multistage", *TINY, *SMALL_SCENES, *looks, cache], tmp_path)
    assert first.returncode == 0, first.stdout + first.stderr
    assert first.stdout.lstrip().startswith("generated data")
    assert "recall (fraction of queries)" in first.stdout and "mlflow ui" in first.stdout and "figures" in first.stdout
    root = next(path.parent for path in scenes_cache.glob("scenes-v1-seed0-16-16-16/dataset_flickr30k.json"))
    folder = (tmp_path / "outputs" / "latest").resolve()
    (run_id,) = [
        run.info.run_id
        for run in open_client(f"sqlite:///{tmp_path}/outputs/mlflow.db").search_runs(["1"])
        if run.info.run_name == folder.name
    ]
    ran = 0
    for command in COMMANDS:
        if command.startswith(NOT_RUN):
            continue
        for word, meant in {
            "PATH": root,
            "RUN_FOLDER": "outputs/latest",
            "RUN_ID": run_id,
            "RUN_A": folder,
            "RUN_B": "outputs/latest",
        }.items():
            command = re.sub(rf"\b{word}\b", str(meant), command)
        words = command.split()
        if "+experiment=flickr_multistage" in words:
            words += [*TINY, *PLAIN, cache, *([] if "data=flickr30k" in words else SMALL_SCENES)]
        if "+sweep=rates" in words:
            words += ["sweep.num_trials=2"]
        if "benchmarks.retrieval" in words:
            words += ["--images", "20", "--captions", "100", "--repeats", "1", "--output", str(tmp_path / "retrieval.json")]
        done = run(words, tmp_path)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        ran += 1
    assert ran >= 12


def test_the_readme_names_the_options_that_exist():
    text = (ROOT / "README.md").read_text()
    for name in ("mps", "cuda", "cpu", "ddp", "debug", "auto"):
        assert f"`{name}`" in text or f"trainer={name}" in text
        assert (ROOT / "configs" / "trainer" / f"{name}.yaml").exists()
    assert (ROOT / "configs" / "stages" / "one_stage.yaml").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["+experiment=flickr_multistage", "stages.end_to_end.epocs=3"], "epocs"),
        (["+experiment=flickr_multistge"], "flickr_multistge"),
        (["+experiment=flickr_multistage", "data=flickr30k"], "data=scenes"),
        (["resume=nowhere"], "nowhere"),
        (["stages.end_to_end.epocs=3", "trainer=cpu"], "did you mean 'epochs'"),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(words, message, tmp_path):
    done = run(["python", "train.py", *words], tmp_path, FLICKR30K_ROOT="")
    assert done.returncode == 2, done.stdout + done.stderr
    assert message in done.stderr and "Traceback" not in done.stderr


def test_the_traceback_is_there_for_who_asks(tmp_path):
    done = run(["python", "train.py", "resume=nowhere"], tmp_path, HYDRA_FULL_ERROR="1")
    assert done.returncode != 0 and "Traceback" in done.stderr
