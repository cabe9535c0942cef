"""Runs with an image tower of another library: locked, with its features on disk; fine-tuned; on another folder."""

from __future__ import annotations

import copy
import json
import os
import shutil
import signal

import pytest
import torch

from datamodules import feature_cache
from datamodules.flickr30k_files import find_images
from insight.data.images import normalise
from insight.errors import InputError
from insight.export.bundle import load
from insight.towers.timm import TimmImage
from lightning_modules.cli import main
from lightning_modules.drive import run_stages
from lightning_modules.engine_cli import build
from lightning_modules.multimodal import MultiModalModule

timm = pytest.importorskip("timm")

NAME, SIZE = "test_efficientnet", 32
HEADS = ["model.image_*", "model.text.*", "model.text_*", "model.fusion*", "model.match_head.*", "model.masked_head.*", "model.logit_scale"]


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory):
    torch.manual_seed(0)
    network = timm.create_model(NAME)
    path = tmp_path_factory.mktemp("weights") / "tiny.pth"
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture
def config(tiny_config, weights_file):
    """Two stages: heads and text on the locked tower, then its last part too."""
    tiny_config["model"]["init_args"] |= {"image_size": SIZE, "dropout": 0.0}
    del tiny_config["model"]["init_args"]["image_depth"], tiny_config["model"]["init_args"]["patch_size"]
    tiny_config["model"]["init_args"]["image"] = {
        "class_path": "insight.towers.timm.TimmImage",
        "init_args": {"name": NAME, "weights": str(weights_file), "image_size": SIZE},
    }
    tiny_config["data"]["init_args"] |= {
        "image_size": SIZE,
        "num_train": 24,
        "num_val": 8,
        "num_test": 8,
        "features": {"views": 3, "precision": "float32"},
    }
    losses = {name: {"function": f"insight.losses.{name}"} for name in ("contrastive", "image_text_matching", "masked_language_modelling")}
    shared = {"epochs": 2, "losses": losses, "learning_rate": 3.0e-3, "monitor": "val/mean_recall"}
    tiny_config["stages"] = {
        "cross_modal": {**shared, "train": HEADS},
        "end_to_end": {**shared, "epochs": 1, "train": [*HEADS, "model.image.network.blocks.3.*", "model.image.network.conv_head.*"]},
    }
    return tiny_config


def weights(run_dir, number, name, which="final"):
    return torch.load(run_dir / f"{number:02d}-{name}" / f"{which}.ckpt", weights_only=True)["state_dict"]


def train(config, run_dir):
    config = copy.deepcopy(config) | {"run_dir": str(run_dir)}
    assert run_stages(build(config)) == 0
    return json.loads((run_dir / "summary.json").read_text())


@pytest.fixture(scope="module")
def shared_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("finished")


@pytest.fixture
def finished(config, shared_folder):
    """One run for all tests that only read it."""
    run_dir = shared_folder / "run"
    config["run"]["output_dir"] = str(shared_folder / "outputs")
    if not run_dir.exists():
        train(config, run_dir)
    return config, run_dir


def test_a_locked_tower_stays_as_it_came_and_its_last_part_moves_when_it_is_told_to(finished, weights_file):
    config, run_dir = finished
    start = {f"model.image.network.{name}": value for name, value in torch.load(weights_file, weights_only=True).items()}
    locked, tuned = weights(run_dir, 1, "cross_modal"), weights(run_dir, 2, "end_to_end")
    tower = [name for name in locked if name.startswith("model.image.network.")]
    assert len(tower) > 20
    for name in tower:
        assert torch.equal(locked[name], start[name]), name
        last = name.split(".")[3] in ("conv_head",) or name.startswith("model.image.network.blocks.3.")
        moves = last and "running" not in name and "num_batches" not in name
        assert torch.equal(tuned[name], start[name]) != moves, name
    assert not torch.equal(locked["model.image_projection.weight"], build(config).model.state_dict()["model.image_projection.weight"])


def test_a_stage_on_kept_features_ends_as_one_on_pixels_and_one_that_is_repeated_bit_for_bit(finished, tmp_path):
    config, run_dir = finished
    first, again = weights(run_dir, 1, "cross_modal"), copy.deepcopy(config)
    again["data"]["init_args"]["features"]["cache"] = False
    again["stages"] = {"cross_modal": again["stages"]["cross_modal"]}
    train(again, tmp_path / "pixels")
    done = [json.loads((folder / "stages.json").read_text())["done"][0] for folder in (run_dir, tmp_path / "pixels")]
    assert done[0]["metrics"] == pytest.approx(done[1]["metrics"], rel=1e-3)  # every term of the loss, after six steps of training
    again["data"]["init_args"]["features"]["cache"] = True
    train(again, tmp_path / "repeated")
    assert all(torch.equal(value, first[name]) for name, value in weights(tmp_path / "repeated", 1, "cross_modal").items())


def test_one_ctrl_c_stops_the_computation_of_features_at_its_next_batch_and_keeps_what_is_done(config, scenes_cache, capsys, monkeypatch):
    config["data"]["init_args"]["features"]["views"] = 4  # 96 views of training pictures, 32 at once
    seen = []

    def interrupted(image):
        seen.append(len(image))
        if len(seen) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return normalise(image)

    monkeypatch.setattr(feature_cache, "normalise", interrupted)
    assert run_stages(build(config)) == 130
    assert seen == [32, 32] and len(list(scenes_cache.glob("features-*.begun.npy"))) == 1
    said = capsys.readouterr().out
    assert "stopping at the next safe point" in said and f"Go on with: python train.py resume={config['run_dir']}" in said


def test_a_frozen_config_replays_with_its_tower(finished):
    config, _ = finished
    first = build(config)
    again = build({**first.frozen, "run_dir": None})
    assert again.frozen == first.frozen and again.plan == first.plan
    assert first.frozen["model"]["init_args"]["image"]["init_args"]["name"] == NAME


def test_the_kept_test_runs_on_another_folder_whose_pictures_are_all_in_the_test_split(finished, tmp_path, capsys):
    config, run_dir = finished
    source = build(config).datamodule.locate()
    folder = tmp_path / "kept"
    shutil.copytree(source, folder)
    (folder / "hard_negatives.json").unlink(missing_ok=True)
    described = json.loads((folder / "dataset_flickr30k.json").read_text())
    described["images"] = [{**one, "split": "test"} for one in described["images"]][:9]
    for path in find_images(folder)[0].iterdir():
        if path.name not in {one["filename"] for one in described["images"]}:
            path.unlink()
    (folder / "dataset_flickr30k.json").write_text(json.dumps(described))
    flickr = {**config["data"]["init_args"], "root": str(folder)}
    for key in ("num_train", "num_val", "num_test"):
        del flickr[key]
    saved = json.loads(json.dumps(build(config).frozen)) | {"callbacks": {"baselines": {"class_path": "callbacks.baselines.Baselines"}}}
    saved["data"] = {"class_path": "datamodules.flickr30k.Flickr30kDataModule", "init_args": flickr}
    (run_dir / "kept.yaml").write_text(json.dumps(saved))
    assert main(["test", "--config", str(run_dir / "kept.yaml"), f"--data.init_args.root={folder}", "--output", str(tmp_path)]) == 0
    assert "0/0/9 pictures" in capsys.readouterr().out
    figures = json.loads((tmp_path / "test.json").read_text())
    assert 0 <= figures["test/image_to_text_recall_at_1"] <= 1
    assert main(["validate", "--config", str(run_dir / "kept.yaml")]) == 2
    assert "the val split is empty" in capsys.readouterr().err


def test_adapters_of_a_tower_are_named_in_its_init_args_and_train_alone_in_a_run_that_is_resumed_as_any(config, tmp_path):
    pytest.importorskip("peft")
    plain = build(copy.deepcopy(config)).model.state_dict()
    config["model"]["init_args"]["image"]["init_args"]["lora"] = {"targets": ["conv_head"], "rank": 2}
    config["stages"] = {"adapters": {**config["stages"]["cross_modal"], "epochs": 1, "train": ["*lora_*", "model.image_projection.*"]}}
    config["deployment"] = {"bundle": True, "register": False}
    train(config, tmp_path / "run")
    after = weights(tmp_path / "run", 1, "adapters")
    for name, value in plain.items():
        moved = name.startswith("model.image_projection.")
        key = name if name in after else name.replace("conv_head.", "conv_head.base_layer.")
        if name.startswith(("model.image.", "model.image_projection.")):
            assert torch.equal(after[key], value) != moved, name
    assert after["model.image.network.conv_head.lora_B.default.weight"].abs().sum() > 0  # it began at zero
    bundle = load(tmp_path / "run" / "bundle")
    assert bundle.example_error() == 0 and not any("lora_" in name for name in bundle.model.state_dict())
    assert run_stages(build({**copy.deepcopy(config), "run_dir": str(tmp_path / "run")})) == 0  # finished, and the very same config
    words = ["--config", str(tmp_path / "run" / "config.yaml"), "--model.init_args.image.init_args.lora.rank=3"]
    assert build(words).frozen["model"]["init_args"]["image"]["init_args"]["lora"]["rank"] == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lora": {"targets": ["attn.qkv"]}}, r"lora\.targets: no linear layer ends with 'attn\.qkv'"),
        ({"weights": "/nowhere/none.pth"}, r"weights=/nowhere/none\.pth: there is no such file"),
        ({"name": "test_efficientnettt"}, "did you mean 'test_efficientnet'"),
        ({"nmae": "x"}, "nmae"),
        ({"image_size": 64}, r"data\.init_args\.image_size=64"),
    ],
)
def test_a_mistake_in_a_tower_is_named(config, change, message):
    config["model"]["init_args"]["image"]["init_args"] |= change
    with pytest.raises(InputError, match=message):
        build(config)


def test_weights_for_a_tower_of_our_own_are_refused_beside_another_librarys(weights_file):
    tower = TimmImage(NAME, image_size=SIZE)
    with pytest.raises(InputError, match=r"image_weights=.*tiny\.pth: the image tower is another library's: give it its own"):
        MultiModalModule(vocab_size=300, image_size=SIZE, dim=16, heads=2, image=tower, image_weights=str(weights_file))
    with pytest.raises(InputError, match=r"not the weights of a vision transformer"):
        MultiModalModule(vocab_size=300, image_size=SIZE, dim=16, heads=2, image_weights=str(weights_file))
