"""The engine serves any task: a toy one runs through stages, goes on after a stop, and a mismatch of task and data is named."""

from __future__ import annotations

import json

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from insight.errors import InputError, TrainingFailure
from lightning_modules.cli import main
from lightning_modules.drive import run_stages
from lightning_modules.engine_cli import build

TOY = "tests.lightning_modules.toy_task."


class Killed(Exception):
    pass


class KillAt(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step and pl_module.stage_name == "second":
            raise Killed


@pytest.fixture
def toy_config(tmp_path):
    stage = {"epochs": 2, "train": ["*"], "losses": {"error": {"function": TOY + "squared_error"}}, "monitor": "val/loss", "mode": "min"}
    return {
        "seed_everything": 1,
        "trainer": {"accelerator": "cpu", "devices": 1, "num_sanity_val_steps": 0, "log_every_n_steps": 1},
        "model": {"class_path": TOY + "ToyModule"},
        "data": {"class_path": TOY + "ToyData"},
        "stages": {"first": {**stage, "train": ["model.0.*"]}, "second": {**stage, "data": {"batch_size": 4}}},
        "callbacks": {"figures": {"class_path": "callbacks.training_figures.TrainingFigures"}},
        "tracking": {"enabled": False},
        "deployment": {"bundle": False, "register": False},
        "run": {"name": "toy", "output_dir": str(tmp_path / "outputs"), "save_every_n_steps": 2},
        "run_dir": str(tmp_path / "run"),
    }


def last_weights(run_dir):
    return torch.load(run_dir / "02-second" / "final.ckpt", weights_only=True)["state_dict"]


def test_a_task_without_pictures_and_texts_has_all_that_a_run_has(toy_config, tmp_path, capsys):
    assert run_stages(build(toy_config)) == 0
    said, summary = capsys.readouterr().out, json.loads((tmp_path / "run" / "summary.json").read_text())
    assert [(stage["name"], stage["steps"]) for stage in summary["stages"]] == [("first", 6), ("second", 12)]
    assert "mean squared error" in said and "a remark" in said
    (reference,) = [line for line in said.splitlines() if "test, mean of y" in line]
    expected = build(toy_config).datamodule.points("test").y
    assert f"{float(((expected - expected.mean()) ** 2).mean()):.3f}" in reference
    assert json.loads((tmp_path / "run" / "errors.json").read_text()) == {"points": 8}
    assert json.loads((tmp_path / "run" / "splits.json").read_text())["val"][0] == "val0"
    assert main(["test", "--config", str(tmp_path / "run" / "config.yaml"), "--output", str(tmp_path)]) == 0
    assert json.loads((tmp_path / "test.json").read_text()) == pytest.approx(summary["test"])


def test_it_goes_on_after_a_kill_to_the_very_same_weights(toy_config, tmp_path):
    whole = {**toy_config, "run_dir": str(tmp_path / "whole")}
    assert run_stages(build(whole)) == 0
    stopped = build(toy_config)
    stopped.callbacks["kill"] = KillAt(7)
    with pytest.raises(Killed):
        run_stages(stopped)
    assert run_stages(build(toy_config)) == 0
    expected = last_weights(tmp_path / "whole")
    assert all(torch.equal(value, expected[name]) for name, value in last_weights(tmp_path / "run").items())


def test_a_loss_that_is_not_finite_is_named_in_the_words_of_the_task(toy_config):
    cli = build(toy_config)
    with torch.no_grad():
        cli.model.model[2].bias.fill_(float("nan"))
    with pytest.raises(TrainingFailure, match=r"points of this batch: train\d+, .*Look at these points"):
        run_stages(cli)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stages.first.data": {"views": 2}}, "stages.first.data.views: .* takes no such argument"),
        ({"data.class_path": "lightning.LightningDataModule"}, "LightningDataModule: has no configure_stage, .*choose data for this task"),
        ({"deployment.bundle": True}, "Sequential is not in ARCHITECTURES .*deployment=none"),
        ({"model.class_path": "lightning.pytorch.demos.boring_classes.BoringModel"}, "must be a module of lightning_modules"),
    ],
)
def test_what_a_task_lacks_is_named(toy_config, change, message):
    for key, value in change.items():
        *parents, leaf = key.split(".")
        place = toy_config
        for parent in parents:
            place = place[parent]
        place[leaf] = value
    with pytest.raises(InputError, match=message):
        run_stages(build(toy_config))


def test_image_text_models_refuse_data_of_another_task(tiny_config):
    tiny_config["data"] = {"class_path": TOY + "ToyData"}
    with pytest.raises(InputError, match=r"ToyData: has no caption_counts, hard_negatives, .*, probe, which CrossAttentionModule needs"):
        build(tiny_config)


def test_predict_says_that_a_task_has_nothing_to_predict(toy_config, tmp_path, capsys):
    toy_config["stages"].pop("second")
    assert run_stages(build(toy_config)) == 0
    assert main(["predict", "--config", str(tmp_path / "run" / "config.yaml")]) == 2
    assert "ToyModule has nothing to predict" in capsys.readouterr().err
