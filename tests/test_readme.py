"""Every command of the README runs, on tiny shapes; and a mistake is one message and exit code 2."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path

import pytest

from tests.processes import ROOT, Ended, python

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
PLAIN = ["~callbacks"]  # the first run has them all
NOT_RUN = (
    "make ",  # the targets run what is run here
    "mlflow ui",  # stays up until it is stopped
    *(f"python -m benchmarks.{name}" for name in ("interactions", "perturbation", "tracking")),  # minutes each
    "python -m tracking.promote",  # needs three versions; the release notebook runs it
)


IMPORTED = (
    *("lightning_modules.front", "lightning_modules.cross_attention", "datamodules.scenes", "datamodules.flickr30k"),
    *("callbacks.watcher", "matplotlib.pyplot", "mlflow.store.tracking.sqlalchemy_store"),
)


@pytest.fixture(scope="module", autouse=True)
def _imported() -> None:
    """What the commands import: their processes are forked from this one, and have it already."""
    for name in IMPORTED:
        importlib.import_module(name)


def run(command: str, folder: Path, *more: str, **environment: str) -> Ended:
    """A command as a user types it, in a folder of its own (Hydra finds the configs beside train.py)."""
    words = [str(ROOT / word) if word == "train.py" else word for word in [*command.split()[1:], *more]]
    return python(words, folder, **environment)


def place(command: str) -> tuple[bool, bool, str]:
    """First what looks at the run with all callbacks, then what trains without them, then what repeats such a run."""
    return "insight.interpret" not in command, "+experiment" not in command, command


@pytest.mark.timeout(1500)
def test_every_command_of_the_readme_runs(tmp_path, scenes_cache):
    cache = f"data.init_args.cache_dir={scenes_cache}"
    looks = [f"callbacks.{name}.init_args.num_examples=1" for name in ("attention_maps", "score_card")]
    looks += [f"+callbacks.score_card.init_args.{key}" for key in ("search_examples=4", "every_n_validations=1")]
    first = run("python train.py +experiment=flickr_multistage", tmp_path, *TINY, *SMALL_SCENES, *looks, cache)
    assert first.returncode == 0, first.stdout + first.stderr
    assert first.stdout.lstrip().startswith("generated data")
    assert "recall (fraction of queries)" in first.stdout and "mlflow ui" in first.stdout and "figures" in first.stdout
    root = next(path.parent for path in scenes_cache.glob("scenes-v1-seed0-16-16-16/dataset_flickr30k.json"))
    folder = (tmp_path / "outputs" / "latest").resolve()
    summary = json.loads((folder / "summary.json").read_text())
    assert [stage["steps"] for stage in summary["stages"]] == [1, 1, 1]
    for number, stage in enumerate(summary["stages"], start=1):
        for kind in ("figures", "score_card"):
            assert list((folder / f"{number:02d}-{stage['name']}" / kind).glob("*.png")), f"no picture in {kind} of {stage['name']}"
    ran, plain = 0, folder
    for command in sorted((one for one in COMMANDS if not one.startswith(NOT_RUN)), key=place):
        trains = "+experiment=flickr_multistage" in command
        more = [*TINY, *PLAIN, cache, *([] if "data=flickr30k" in command else SMALL_SCENES)] if trains else []
        more += ["sweep.num_trials=2"] if "+sweep=rates" in command else []
        if "benchmarks.retrieval" in command:
            more += ["--images", "20", "--captions", "100", "--repeats", "1", "--output", str(tmp_path / "retrieval.json")]
        for word, meant in {
            "PATH": root,
            "RUN_FOLDER": plain,
            "RUN_ID": next(plain.glob("tracking/run/stores/*/run_id")).read_text(),
            "RUN_A": folder,
            "RUN_B": plain,
        }.items():
            command = re.sub(rf"\b{word}\b", str(meant), command)
        done = run(command, tmp_path, *more)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        if trains and "sweep" not in command and "--multirun" not in command:
            plain = (tmp_path / "outputs" / "latest").resolve()
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
    done = run("python train.py", tmp_path, *words, FLICKR30K_ROOT="")
    assert done.returncode == 2, done.stdout + done.stderr
    assert message in done.stderr and "Traceback" not in done.stderr


def test_the_traceback_is_there_for_who_asks(tmp_path):
    done = run("python train.py resume=nowhere", tmp_path, HYDRA_FULL_ERROR="1")
    assert done.returncode != 0 and "Traceback" in done.stderr
