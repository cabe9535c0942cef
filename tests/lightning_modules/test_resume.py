"""Killed by any signal at any moment, a run goes on and ends bitwise equal to the run never killed.

Every run here is a real process (forked, so that torch is imported once) that kills itself at the given moment.
"""

from __future__ import annotations

import copy
import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from callbacks.stage_scheduler import StageScheduler
from lightning_modules.drive import run_stages
from lightning_modules.engine_cli import build
from tests.processes import forked

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks processes that have imported torch: Linux only")
STAGES = ("single_modality", "cross_modal", "end_to_end")


class At(Callback):
    """Calls ``act`` at one moment of one stage: (hook, stage, step or how many times the hook was called)."""

    def __init__(self, moment: tuple[str, str, int], act: Callable[[], None]) -> None:
        self.moment, self.act, self.calls = moment, act, 0

    def _maybe(self, hook: str, module: Any, count: int) -> None:
        if self.moment == (hook, module.stage_name, count):
            self.act()

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self._maybe("batch", pl_module, trainer.fit_loop.epoch_loop.total_batch_idx + 1)

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        self.calls += 1
        self._maybe("validation", pl_module, self.calls)

    def on_validation_end(self, trainer, pl_module):
        self._maybe("after_validation", pl_module, trainer.current_epoch)

    def on_train_end(self, trainer, pl_module):
        self._maybe("train_end", pl_module, 0)


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def process(config: dict[str, Any], moment: tuple[str, str, int] | None = None, act: Callable[[], None] = kill) -> int:
    """Run in a process of its own; returns the exit code, negative for a signal."""

    def function() -> int:
        cli = build(copy.deepcopy(config))
        original = StageScheduler.commit
        if moment is not None and moment[0] == "commit":
            StageScheduler.commit = lambda self, facts: act() if self.name == moment[1] else original(self, facts)
        elif moment is not None and moment[0] == "committed":

            def committed(self, facts):
                name = self.name
                original(self, facts)
                if name == moment[1]:
                    act()

            StageScheduler.commit = committed
        elif moment is not None:
            cli.callbacks["at"] = At(moment, act)
        return run_stages(cli)

    return forked(function)


def outcome(run_dir: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """All weights at the end of every stage, and every figure of the summary."""
    weights = {}
    for number, name in enumerate(STAGES, start=1):
        for which in ("best", "final"):
            state = torch.load(run_dir / f"{number:02d}-{name}" / f"{which}.ckpt", weights_only=True)["state_dict"]
            weights |= {f"{name}/{which}/{key}": value for key, value in state.items()}
    summary = json.loads((run_dir / "summary.json").read_text())
    figures = {stage["name"]: {key: stage[key] for key in ("epochs", "steps", "best_epoch", "metrics")} for stage in summary["stages"]}
    return weights, {**figures, "test": summary["test"]}


def assert_same(first: Path, second: Path) -> None:
    (weights, figures), (other_weights, other_figures) = outcome(first), outcome(second)
    assert weights.keys() == other_weights.keys()
    assert [key for key in weights if not torch.equal(weights[key], other_weights[key])] == []
    assert figures == other_figures


def varied(config: dict[str, Any], run_dir: Path, workers: int = 0) -> dict[str, Any]:
    """Accumulation, early stopping and a validation in the middle of the epoch, in different stages."""
    config = copy.deepcopy(config)
    config["run_dir"] = str(run_dir)
    config["data"]["init_args"]["num_workers"] = workers
    config["stages"]["single_modality"]["trainer"]["accumulate_grad_batches"] = 2
    config["stages"]["cross_modal"] |= {"epochs": 4, "patience": 1}
    config["stages"]["end_to_end"]["trainer"]["val_check_interval"] = 2
    return config


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("resume")


@pytest.fixture
def reference(tiny_config, folder) -> Path:
    """The run never killed."""
    run_dir = folder / "reference"
    if not (run_dir / "summary.json").exists():
        assert process(varied(tiny_config, run_dir)) == 0
    return run_dir


@pytest.mark.parametrize(
    "moment",
    [
        ("batch", "single_modality", 1),  # before the first save: starts over
        ("batch", "single_modality", 8),
        ("validation", "single_modality", 2),
        ("train_end", "single_modality", 0),
        ("commit", "single_modality", 0),
        ("committed", "single_modality", 0),
        ("batch", "cross_modal", 7),
        ("after_validation", "cross_modal", 1),
        ("train_end", "cross_modal", 0),
        ("batch", "end_to_end", 4),
        ("validation", "end_to_end", 5),
        ("committed", "end_to_end", 0),
    ],
    ids=lambda moment: "-".join(map(str, moment)),
)
def test_killed_and_resumed_equals_never_killed(tiny_config, reference, tmp_path, moment):
    config = varied(tiny_config, tmp_path / "run")
    assert process(config, moment) == -signal.SIGKILL
    assert process(config) == 0
    assert_same(reference, tmp_path / "run")


def test_killed_three_times_with_two_workers_equals_never_killed_with_none(tiny_config, reference, tmp_path):
    config = varied(tiny_config, tmp_path / "run", workers=2)
    for moment in (("batch", "single_modality", 4), ("batch", "cross_modal", 3), ("batch", "end_to_end", 8)):
        assert process(config, moment) == -signal.SIGKILL
    assert process(config) == 0
    assert_same(reference, tmp_path / "run")


def test_killed_while_writing_a_checkpoint_the_one_before_stays_usable(tiny_config, reference, tmp_path):
    def die_in_the_next_write() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # the kernel kills the process in the middle of the write
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))

    config = varied(tiny_config, tmp_path / "run")
    assert process(config, ("batch", "cross_modal", 4), die_in_the_next_write) == -signal.SIGXFSZ
    torch.load(tmp_path / "run" / "02-cross_modal" / "last.ckpt", weights_only=True)
    assert process(config) == 0
    assert_same(reference, tmp_path / "run")


def test_a_full_disk_while_saving_leaves_the_checkpoint_before_usable(tiny_config, reference, tmp_path):
    config = varied(tiny_config, tmp_path / "run")
    full = ("batch", "cross_modal", 4), lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
    assert process(config, *full) == 70  # the write fails with an OSError, which ends the run
    torch.load(tmp_path / "run" / "02-cross_modal" / "last.ckpt", weights_only=True)
    assert process(config) == 0
    assert_same(reference, tmp_path / "run")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_signal_saves_and_stops_cleanly(tiny_config, reference, tmp_path, number):
    config = varied(tiny_config, tmp_path / "run")
    moment = ("batch", "single_modality", 3)
    assert process(config, moment, lambda: os.kill(os.getpid(), number)) == 130
    saved = torch.load(tmp_path / "run" / "01-single_modality" / "last.ckpt", weights_only=True)
    assert saved["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["completed"] in (
        3,
        4,
    )  # this step, or the end of its accumulation
    assert process(config) == 0
    assert_same(reference, tmp_path / "run")
