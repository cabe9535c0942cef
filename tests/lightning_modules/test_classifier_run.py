"""A classifier has all that a run has: stages, accuracy beside what is blind, maps, resume to the bit, an average of its weights."""

from __future__ import annotations

import copy
import json
from collections import Counter

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from insight.errors import InputError
from insight.export.bundle import load
from insight.export.card import missing_sections
from insight.interpret.maps import load_maps
from insight.interpret.record import record_attention
from lightning_modules.cli import main
from lightning_modules.drive import run_stages
from lightning_modules.engine_cli import build

DECAY = 0.5


class Killed(Exception):
    pass


class KillAt(Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 6:
            raise Killed


class Remember(Callback):
    """The trained weights after every step."""

    kept: list = []  # of the class: the driver gives each stage a copy of the callback

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.kept.append({name: value.detach().clone() for name, value in pl_module.model.state_dict().items()})


def classifier_config(tmp_path, cache, **model):
    """Everything random at once: dropped paths and patches, MixUp or CutMix, crops, and an average of the weights."""
    return {
        "seed_everything": 2,
        "trainer": {"accelerator": "cpu", "devices": 1, "num_sanity_val_steps": 0, "log_every_n_steps": 2},
        "model": {
            "class_path": "lightning_modules.classifier.ClassifierModule",
            "init_args": {
                "num_classes": 8, "image_size": 32, "patch_size": 8, "dim": 16, "depth": 2, "heads": 2, "dropout": 0.1,
                "block": {"drop_path": 0.3}, "patch_dropout": 0.25, "mixup": 0.5, "cutmix": 0.5, **model,
            },
        },
        "data": {
            "class_path": "datamodules.scenes_labels.ScenesLabelsDataModule",
            "init_args": {
                "cache_dir": str(cache), "num_train": 24, "num_val": 24, "num_test": 24, "image_size": 32, "batch_size": 6,
                "eval_batch_size": 10, "crop_scale_min": 0.8,
            },
        },
        "stages": {
            "classification": {
                "epochs": 2,
                "train": ["*"],
                "losses": {"classes": {"function": "insight.classification.cross_entropy", "arguments": {"label_smoothing": 0.1}}},
                "learning_rate": 1e-2,
                "monitor": "val/accuracy_top_1",
            }
        },
        "callbacks": {
            "attention_maps": {"class_path": "callbacks.attention_maps.AttentionMaps", "init_args": {"num_examples": 2}},
            "training_figures": {"class_path": "callbacks.training_figures.TrainingFigures"},
            "weight_average": {"class_path": "callbacks.weight_average.WeightAverage", "init_args": {"decay": DECAY}},
        },
        "tracking": {"enabled": False},
        "deployment": {"name": "shapes", "bundle": True, "register": False},
        "run": {"name": "tiny", "output_dir": str(tmp_path / "outputs"), "save_every_n_steps": 2},
        "run_dir": str(tmp_path / "run"),
    }  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory, scenes_cache):
    folder = tmp_path_factory.mktemp("classifier")
    config = classifier_config(folder, scenes_cache)
    cli = build(config)
    Remember.kept.clear()
    cli.callbacks = {"remember": Remember(), **cli.callbacks}
    assert run_stages(cli) == 0
    return config, folder / "run", list(Remember.kept)


def weights(folder, name):
    found = torch.load(folder / "01-classification" / name, weights_only=True)["state_dict"]
    return {key.removeprefix("model."): value for key, value in found.items() if key.startswith("model.")}


def rebuilt(config, run_dir):
    cli = build({**config, "run_dir": None})
    cli.datamodule.prepare_data()
    cli.model.model.load_state_dict(weights(run_dir, "best.ckpt"))
    return cli, cli.model.model.eval()


@torch.no_grad()
def test_accuracies_of_the_test_are_counted_one_by_one_and_stand_beside_the_most_frequent_class(finished):
    config, run_dir, _ = finished
    cli, model = rebuilt(config, run_dir)
    test = json.loads((run_dir / "summary.json").read_text())["test"]
    (batch,) = [cli.datamodule._split("test").collate([cli.datamodule._split("test")[(0, row)] for row in range(24)])]
    ranks = [int((row > row[label]).sum()) for row, label in zip(model(batch.image).logits, batch.label, strict=True)]
    assert test["test/accuracy_top_1"] == pytest.approx(sum(rank < 1 for rank in ranks) / 24)
    assert test["test/accuracy_top_5"] == pytest.approx(sum(rank < 5 for rank in ranks) / 24)
    rows = json.loads((run_dir / "predictions.json").read_text())
    assert sum(row["class"] == row["named"] for row in rows) == sum(rank < 1 for rank in ranks)
    named = sorted(Counter(cli.datamodule.labels("train")).items(), key=lambda one: (-one[1], one[0]))[0][0]
    references = cli.model.references(cli.datamodule, "test")
    assert references["most frequent class"]["accuracy_top_1"] == pytest.approx(cli.datamodule.labels("test").count(named) / 24)
    assert references["chance"] == {"accuracy_top_1": 1 / 8, "accuracy_top_5": 5 / 8}


@torch.no_grad()
def test_the_maps_of_every_validation_are_of_the_averaged_weights_and_say_class_and_answer(finished):
    config, run_dir, _ = finished
    cli, model = rebuilt(config, run_dir)
    (stage,) = json.loads((run_dir / "stages.json").read_text())["done"]
    files = sorted((run_dir / "01-classification" / "maps").glob("epoch*.safetensors"))
    assert len(files) == 2 and len(list((run_dir / "01-classification" / "figures").glob("*.png"))) == 2
    arrays, facts = load_maps(files[stage["best_epoch"]])
    batch = cli.datamodule.probe("val", 2, 0)
    with record_attention(model, ["image.blocks.1.attention"]) as maps:
        logits = model(batch.image).logits
    weights = torch.from_numpy(arrays["class/image.blocks.1.attention"]).float()
    torch.testing.assert_close(weights, maps["image.blocks.1.attention"][:, :, 0], atol=2e-3, rtol=1e-2)
    for example, label, row in zip(facts.examples, batch.label.tolist(), logits.softmax(-1), strict=True):
        names = cli.datamodule.class_names()
        assert example.caption == f"{names[label]}; the model names {names[int(row.argmax())]} ({float(row.max()):.0%})"


def test_what_is_kept_and_handed_on_is_the_average_of_the_weights_after_every_step(finished):
    _, run_dir, steps = finished
    assert len(steps) == 8
    (stage,) = json.loads((run_dir / "stages.json").read_text())["done"]
    for file, count in (("best.ckpt", 4 * (stage["best_epoch"] + 1)), ("final.ckpt", 8)):
        average = dict(steps[0])
        for trained in steps[1:count]:
            average = {name: DECAY * value + (1 - DECAY) * trained[name] for name, value in average.items()}
        for name, value in weights(run_dir, file).items():
            torch.testing.assert_close(value, average[name], atol=1e-6, rtol=1e-5)
    assert not torch.allclose(steps[-1]["head.weight"], average["head.weight"])


def test_killed_and_begun_again_it_ends_with_the_very_same_weights(finished, tmp_path):
    config, run_dir, _ = finished
    config = {**copy.deepcopy(config), "run_dir": str(tmp_path / "run")}
    cli = build(config)
    cli.callbacks = {"kill": KillAt(), **cli.callbacks}
    with pytest.raises(Killed):
        run_stages(cli)
    assert run_stages(build(config)) == 0
    ours, theirs = weights(tmp_path / "run", "final.ckpt"), weights(run_dir, "final.ckpt")
    assert ours.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_probabilities_come_from_the_command_line(finished, tmp_path, capsys):
    _, run_dir, _ = finished
    assert main(["predict", "--config", str(run_dir / "config.yaml"), "--output", str(tmp_path / "out")]) == 0
    assert "probabilities of the classes by file name" in capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "probabilities.json").read_text())
    assert len(found) == 24 and all(sum(row) == pytest.approx(1, abs=1e-5) and len(row) == 8 for row in found.values())


@torch.no_grad()
def test_the_bundle_of_a_run_says_what_its_best_weights_say_and_its_card_what_the_test_found(finished):
    config, run_dir, _ = finished
    cli, model = rebuilt(config, run_dir)
    kept, batch = load(run_dir / "bundle"), cli.datamodule.probe("test", 5, 0)
    assert all(torch.equal(value, kept.model.state_dict()[name]) for name, value in weights(run_dir, "best.ckpt").items())
    assert torch.equal(kept.model(batch.image).logits, model(batch.image).logits)
    names = cli.datamodule.class_names()
    assert kept.labels == tuple(names) and kept.example_error() == 0.0
    card, test = (run_dir / "bundle" / "card" / "model_card.md").read_text(), json.loads((run_dir / "summary.json").read_text())["test"]
    chance, frequent = cli.model.references(cli.datamodule, "test").values()
    for k in (1, 5):
        beside = f"{chance[f'accuracy_top_{k}']:.3f} | {frequent[f'accuracy_top_{k}']:.3f}"
        assert f"| test/accuracy_top_{k} | {test[f'test/accuracy_top_{k}']:.3f} | {beside} |" in card
    wrong = [row for row in json.loads((run_dir / "predictions.json").read_text()) if row["class"] != row["named"]]
    surest = max(wrong, key=lambda row: row["probability"])
    assert f"| {surest['filename']} | {surest['class']} | {surest['named']} | {surest['probability']:.3f} |" in card
    assert f"{len(wrong)} of 24 pictures" in card and "it names the class of a picture" in card and "![" in card
    assert missing_sections(run_dir / "bundle" / "card") == ["Robustness and faithfulness (not measured)"]


def test_first_weights_from_a_file_are_what_training_starts_from(finished, tmp_path, scenes_cache):
    _, run_dir, _ = finished
    given = run_dir / "01-classification" / "best.ckpt"  # of this project: eps and names are its own
    module = build(classifier_config(tmp_path, scenes_cache, weights=str(given), weights_head=True)).model
    assert all(torch.equal(value, weights(run_dir, "best.ckpt")[name]) for name, value in module.model.state_dict().items())
    fresh = build(classifier_config(tmp_path, scenes_cache, weights=str(given))).model
    assert torch.equal(fresh.model.image.norm.weight, module.model.image.norm.weight)
    assert not torch.equal(fresh.model.head.weight, module.model.head.weight)


def test_another_number_of_classes_is_an_error_that_says_what_to_set(tmp_path, scenes_cache):
    with pytest.raises(InputError, match=r"num_classes=3, but the data have 8 classes: set model\.init_args\.num_classes=8"):
        run_stages(build(classifier_config(tmp_path, scenes_cache, num_classes=3)))
