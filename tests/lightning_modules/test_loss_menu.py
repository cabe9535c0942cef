"""Every loss of the menu in a real stage; a stage whose losses have state, killed and resumed."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch.callbacks import Callback

import insight.losses
from insight.errors import InputError
from lightning_modules.drive import run_stages
from lightning_modules.engine_cli import build

NOT_IN_MENU = {
    *("hard_negatives", "fade_in", "fade_out", "UncertaintyWeighting", "LossScaleWeighting"),  # not losses themselves
    "TeacherDistillation",  # needs a file
    *("captioning", "causal_language_modelling", "answer_classification"),  # of other models and tasks
}
MENU = Path(__file__).resolve().parents[2] / "configs" / "stages" / "loss_menu.yaml"


class Watch(Callback):
    """What was logged at each step, and where the losses' own parameters began."""

    logged: list[dict[str, float]] = []
    first: dict[str, torch.Tensor] = {}

    def on_train_start(self, trainer, pl_module):
        Watch.first = {name: value.detach().clone() for name, value in pl_module.losses.named_parameters()}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        Watch.logged.append({name: float(value) for name, value in trainer.callback_metrics.items()})


class Die(Callback):
    def __init__(self, stage: str, step: int) -> None:
        self.moment = (stage, step)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if (pl_module.stage_name, trainer.global_step) == self.moment:
            raise RuntimeError("the end")


def checkpoint(config, name: str) -> dict:
    return torch.load(Path(config["run_dir"]) / name, weights_only=True)


def test_every_loss_of_the_menu_trains_a_step_and_so_do_its_own_parameters(tiny_config):
    stage = yaml.safe_load(MENU.read_text())["loss_menu"]
    for name in ("contrastive", "vicreg"):
        stage["losses"][name]["schedule"]["arguments"] = {"start": 0.0, "end": 1.0}
    config = {**tiny_config, "stages": {"loss_menu": stage}}
    config["model"]["init_args"]["rerank_top_k"] = 0
    config["run"]["test"] = False
    config["trainer"]["limit_train_batches"] = 2
    cli = build(config)
    Watch.logged = []
    cli.callbacks["watch"] = Watch()
    assert run_stages(cli) == 0
    terms = set(stage["losses"])
    in_menu = {term["function"].rpartition(".")[2] for term in stage["losses"].values()}
    assert in_menu == {name for name in insight.losses.__all__ if not name.isupper()} - NOT_IN_MENU
    seen = {name.removeprefix("train/loss/") for step in Watch.logged for name in step if name.startswith("train/loss/")}
    assert seen == terms
    assert [step["train/loss_weight/contrastive"] for step in Watch.logged] == [1.0, pytest.approx(0.5, rel=0.01)]  # half the way
    last = checkpoint(config, "01-loss_menu/last.ckpt")["state_dict"]
    trained = {name for name in Watch.first if not name.startswith("momentum.keys.")}
    followed = {"momentum.keys.image_projection.weight", "momentum.keys.text_projection.weight"}
    assert {name.split(".")[0] for name in trained} == {"projected_vicreg", "projected_barlow_twins", "balance"}
    assert [name for name in trained | followed if torch.equal(last[f"losses.{name}"], Watch.first[name])] == []
    assert (last["losses.momentum.text_queue_id"] >= 0).sum() == 32  # two batches of 8 pictures with 2 captions


def test_a_stage_with_queue_projector_learnt_weights_and_changed_data_is_resumed_bitwise_and_hands_on_the_model_alone(
    tiny_config, tmp_path
):
    losses = {
        "momentum": {"function": "insight.losses.MomentumContrast", "arguments": {"queue_size": 12, "momentum": 0.9}},
        "vicreg": {
            "function": "insight.losses.ProjectedVICReg",
            "arguments": {"width": 8},
            "schedule": {"function": "insight.losses.fade_in"},
        },
    }
    first = {**tiny_config["stages"]["end_to_end"], "losses": losses, "learning_rates": {"losses.*": 0.01}}
    first["balance"] = {"function": "insight.losses.UncertaintyWeighting"}
    first["data"] = {
        "text_augmentation": {"drop": 0.1, "swap": 0.1},
        "image_augmentation": {"blur": 0.5, "erase": 0.5},
        "curriculum": {"function": "datamodules.curriculum.BySimilarity", "arguments": {"group": 4, "epochs": 1}},
    }
    first["train"] = ["*", "!losses.vicreg.text_projector.*"]
    second = {
        **tiny_config["stages"]["end_to_end"],
        "epochs": 1,
        "losses": {"same": {"function": "insight.losses.similarity_distillation"}},
    }
    second["losses"]["contrastive"] = {"function": "insight.losses.contrastive"}
    tiny_config["model"]["init_args"]["rerank_top_k"] = 0
    config = {**tiny_config, "stages": {"first": first, "second": second}, "run": {**tiny_config["run"], "test": False}}
    killed = {**copy.deepcopy(config), "run_dir": str(tmp_path / "killed")}
    assert run_stages(build(config)) == 0
    for moment in (("first", 7), ("second", 1), None):
        cli = build(copy.deepcopy(killed))
        if moment is None:
            assert run_stages(cli) == 0
            continue
        cli.callbacks["die"] = Die(*moment)
        with pytest.raises(RuntimeError, match="the end"):
            run_stages(cli)
    for name in ("01-first/last.ckpt", "01-first/best.ckpt", "02-second/final.ckpt"):
        whole, resumed = checkpoint(config, name)["state_dict"], checkpoint(killed, name)["state_dict"]
        assert whole.keys() == resumed.keys()
        assert [key for key in whole if not torch.equal(whole[key], resumed[key])] == []
    own = [key for key in checkpoint(config, "01-first/last.ckpt")["state_dict"] if key.startswith("losses.")]
    assert {key.split(".")[1] for key in own} == {"momentum", "vicreg", "balance"}
    assert not any(key.startswith("losses.") for key in checkpoint(config, "02-second/final.ckpt")["state_dict"])
    groups = checkpoint(config, "01-first/last.ckpt")["optimizer_states"][0]["param_groups"]
    sizes = {group["name"]: len(group["params"]) for group in groups}
    assert sizes["losses.*"] == 3 and sizes["losses.*/no_decay"] == 7  # matrices; biases, norms and log variances; one projector is frozen


def test_terms_over_boxes_are_measured_in_validation_too(tiny_config):
    stage = tiny_config["stages"]["end_to_end"] | {"epochs": 1}
    del stage["losses"]["feature_consistency"]
    tiny_config["stages"] = {"end_to_end": stage}
    assert run_stages(build(tiny_config)) == 0
    metrics = json.loads((Path(tiny_config["run_dir"]) / "stages.json").read_text())["done"][0]["metrics"]
    assert metrics["val/loss/phrase_regions"] > 0 and metrics["val/loss/fused_phrase_regions"] > 0


def without_boxes(tiny_config, **losses: str):
    stage = tiny_config["stages"]["cross_modal"] | {"epochs": 1}
    stage["losses"] = {name: {"function": f"insight.losses.{function}"} for name, function in losses.items()}
    return {**tiny_config, "stages": {"cross_modal": stage}}


def test_terms_over_boxes_are_left_out_with_a_warning_where_the_data_have_none(tiny_config, caplog, monkeypatch):
    monkeypatch.setattr("datamodules.flickr30k.Flickr30kDataModule.num_boxed_phrases", lambda self: 0)
    config = without_boxes(tiny_config, contrastive="contrastive", regions="phrase_regions", fused="fused_phrase_regions")
    config["callbacks"] = {"watch": {"class_path": f"{__name__}.Watch"}}
    Watch.logged.clear()
    assert run_stages(build(config)) == 0
    assert "stages.cross_modal.losses: regions, fused needs boxes" in caplog.text
    terms = {name for figures in Watch.logged for name in figures if name.startswith("train/loss/")}
    assert terms == {"train/loss/contrastive"}


def test_a_stage_of_nothing_but_boxes_is_refused_where_the_data_have_none(tiny_config, monkeypatch):
    monkeypatch.setattr("datamodules.flickr30k.Flickr30kDataModule.num_boxed_phrases", lambda self: 0)
    with pytest.raises(InputError, match=r"stages.cross_modal.losses: all of them \(regions\) need boxes of phrases"):
        run_stages(build(without_boxes(tiny_config, regions="phrase_regions")))
