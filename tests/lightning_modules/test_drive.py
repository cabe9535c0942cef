"""A whole run, small: what moves and what does not, what is left behind, what stops it."""

from __future__ import annotations

import fnmatch
import json
from pathlib import Path

import pytest
import torch
import yaml

import insight.losses
from insight.errors import InputError, TrainingFailure
from lightning_modules.cli import main
from lightning_modules.drive import run_stages
from lightning_modules.engine_cli import build
from lightning_modules.front import read_run


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["state_dict"]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("finished")


@pytest.fixture
def finished(tiny_config, shared) -> tuple[dict, Path]:
    """One finished run for all tests that only read it."""
    run_dir = shared / "run"
    tiny_config = {**tiny_config, "run_dir": str(run_dir), "run": {**tiny_config["run"], "output_dir": str(shared / "outputs")}}
    if not (run_dir / "summary.json").exists():
        assert run_stages(build(tiny_config)) == 0
    return tiny_config, run_dir


def test_in_each_stage_what_should_move_moves_and_what_is_frozen_is_bitwise_unchanged(finished):
    config, run_dir = finished
    before = build(config).model.state_dict()
    for number, (name, stage) in enumerate(config["stages"].items(), start=1):
        after = weights(run_dir / f"{number:02d}-{name}" / "final.ckpt")
        for key, value in after.items():
            trained = any(fnmatch.fnmatch(key, pattern) for pattern in stage["train"])
            unused = key == "model.logit_bias"  # only the sigmoid loss reads it
            assert torch.equal(value, before[key]) != (trained and not unused), f"{name}: {key}"
        before = weights(run_dir / f"{number:02d}-{name}" / "best.ckpt")


def test_a_run_leaves_its_config_ledger_checkpoints_tokenizer_and_summary(finished):
    config, run_dir = finished
    summary = json.loads((run_dir / "summary.json").read_text())
    assert [stage["name"] for stage in summary["stages"]] == list(config["stages"])
    assert 0 <= summary["test"]["test/image_to_text_recall_at_1"] <= 1
    assert {"test/reranked_text_to_image_recall_at_10", "test/hard_negative_accuracy_seen"} <= set(summary["test"])
    for number, name in enumerate(config["stages"], start=1):
        assert {"last.ckpt", "best.ckpt", "final.ckpt"} <= {path.name for path in (run_dir / f"{number:02d}-{name}").iterdir()}
    assert yaml.safe_load((run_dir / "config.yaml").read_text())["model"] == build(config).frozen["model"]
    assert (run_dir / "tokenizer.json").exists()
    assert (Path(config["run"]["output_dir"]) / "latest").resolve() == run_dir.resolve()


def test_the_best_checkpoint_is_the_epoch_with_the_best_monitored_value(finished):
    _, run_dir = finished
    stage = json.loads((run_dir / "stages.json").read_text())["done"][1]
    last = torch.load(run_dir / "02-cross_modal" / "last.ckpt", weights_only=True)["callbacks"]["StageCheckpoints"]
    assert stage["metrics"]["val/mean_recall"] == pytest.approx(last["best_score"])


def test_a_finished_run_says_so_and_does_nothing(finished, capsys):
    config, run_dir = finished
    before = (run_dir / "summary.json").stat().st_mtime_ns
    assert run_stages(build(config)) == 0
    assert "is finished" in capsys.readouterr().out and (run_dir / "summary.json").stat().st_mtime_ns == before


def test_a_run_folder_of_another_config_is_refused_with_the_difference(finished):
    config, _ = finished
    changed = {**config, "seed_everything": 4}
    with pytest.raises(InputError, match=r"seed_everything: 3 -> 4"):
        run_stages(build(changed))


def test_a_run_folder_with_its_stages_in_another_order_is_refused(finished):
    config, _ = finished
    changed = {**config, "stages": dict(reversed(config["stages"].items()))}
    with pytest.raises(InputError, match="order"):
        run_stages(build(changed))


def test_test_validate_and_predict_work_from_the_saved_config(finished, tmp_path, capsys):
    _, run_dir = finished
    saved = ["--config", str(run_dir / "config.yaml")]
    assert main(["test", *saved, "--output", str(tmp_path)]) == 0
    again, summary = json.loads((tmp_path / "test.json").read_text()), json.loads((run_dir / "summary.json").read_text())["test"]
    assert {name: again[name] for name in summary if "baseline" not in name} == pytest.approx(
        {n: v for n, v in summary.items() if "baseline" not in n}
    )
    assert main(["validate", *saved]) == 0
    assert "val/image_to_text_recall_at_1" in capsys.readouterr().out
    assert main(["predict", *saved, "--output", str(tmp_path)]) == 0
    names = json.loads((tmp_path / "embeddings.json").read_text())
    assert len(names["filenames"]) == 12


def test_multistage_by_the_saved_config_repeats_the_run_bit_for_bit(finished, tmp_path):
    _, run_dir = finished
    assert main(["multistage", "--config", str(run_dir / "config.yaml"), "--run_dir", str(tmp_path / "again")]) == 0
    first, again = weights(run_dir / "03-end_to_end" / "final.ckpt"), weights(tmp_path / "again" / "03-end_to_end" / "final.ckpt")
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_fit_trains_one_stage_from_given_weights(finished, tmp_path):
    _, run_dir = finished
    start = run_dir / "02-cross_modal" / "best.ckpt"
    arguments = [
        "--config",
        str(run_dir / "config.yaml"),
        "--stage",
        "end_to_end",
        "--weights",
        str(start),
        "--run_dir",
        str(tmp_path / "one"),
    ]
    assert main(["fit", *arguments]) == 0
    done = json.loads((tmp_path / "one" / "stages.json").read_text())["done"]
    assert [stage["name"] for stage in done] == ["end_to_end"]


def test_an_override_changes_the_replay(finished, tmp_path):
    _, run_dir = finished
    arguments = ["--config", str(run_dir / "config.yaml"), "--run_dir", str(tmp_path / "wide"), "--model.init_args.embed_dim=8"]
    assert main(["multistage", *arguments, "--stages.end_to_end.epochs=1"]) == 0
    assert weights(tmp_path / "wide" / "03-end_to_end" / "final.ckpt")["model.image_projection.weight"].shape[0] == 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["multistge"], "did you mean 'multistage'"),
        (["fit"], "--stage NAME"),
        (["fit", "--stage", "end_to_ed"], "did you mean 'end_to_end'"),
        (["multistage", "--model.init_args.dmi=3"], "dmi"),
        (["test", "--ckpt_path", "nowhere.ckpt"], "nowhere.ckpt"),
        (["test", "--model.init_args.embed_dim=8"], "another architecture"),
    ],
)
def test_a_mistake_at_the_command_line_is_one_message_and_exit_code_2(finished, capsys, arguments, message):
    _, run_dir = finished
    saved = ["--config", str(run_dir / "config.yaml")] if len(arguments) > 1 or arguments == ["fit"] else []
    assert main([arguments[0], *saved, *arguments[1:]]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_a_damaged_checkpoint_is_named(finished, tmp_path, capsys):
    _, run_dir = finished
    damaged = tmp_path / "damaged.ckpt"
    damaged.write_bytes((run_dir / "03-end_to_end" / "best.ckpt").read_bytes()[:2000])
    assert main(["test", "--config", str(run_dir / "config.yaml"), "--ckpt_path", str(damaged)]) == 2
    assert "damaged.ckpt: not a readable checkpoint" in capsys.readouterr().err


def test_a_pattern_that_matches_nothing_stops_the_run(tiny_config):
    tiny_config["stages"]["single_modality"]["train"] = ["model.imag.*"]
    with pytest.raises(InputError, match=r"stages\.single_modality\.train.*did you mean 'model\.image\.\*'"):
        run_stages(build(tiny_config))


def test_a_loss_that_is_not_finite_names_the_step_and_the_pictures_and_keeps_the_last_good_checkpoint(tiny_config, monkeypatch):
    original, calls = insight.losses.contrastive, []

    def poisoned(image_embedding, text_embedding, positives, scale):
        calls.append(1)
        return original(image_embedding, text_embedding, positives, scale) * (float("nan") if len(calls) == 4 else 1.0)

    monkeypatch.setattr(insight.losses, "contrastive", poisoned)
    tiny_config["stages"] = {"cross_modal": tiny_config["stages"]["cross_modal"]}
    with pytest.raises(TrainingFailure, match=r"step 3 of stage 'cross_modal'.*train-\d+\.jpg"):
        run_stages(build(tiny_config))
    last = torch.load(Path(tiny_config["run_dir"]) / "01-cross_modal" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 2 and all(torch.isfinite(value).all() for value in last["state_dict"].values())


def test_early_stopping_ends_a_stage_and_hands_on_its_best(tiny_config):
    tiny_config["stages"] = {"cross_modal": {**tiny_config["stages"]["cross_modal"], "epochs": 30, "patience": 1}}
    assert run_stages(build(tiny_config)) == 0
    done = json.loads((Path(tiny_config["run_dir"]) / "stages.json").read_text())["done"][0]
    assert done["epochs"] < 30 and done["best_epoch"] == done["epochs"] - 2


def test_a_resumed_config_is_the_frozen_one(finished):
    _, run_dir = finished
    assert read_run(str(run_dir))["run_dir"] == str(run_dir.resolve())


def test_max_epochs_of_the_trainer_bounds_every_stage(tiny_config):
    tiny_config["trainer"] |= {"max_epochs": 1, "limit_train_batches": 1, "limit_val_batches": 1, "limit_test_batches": 1}
    assert run_stages(build(tiny_config)) == 0
    done = json.loads((Path(tiny_config["run_dir"]) / "stages.json").read_text())["done"]
    assert [(stage["epochs"], stage["steps"]) for stage in done] == [(1, 1)] * 3
