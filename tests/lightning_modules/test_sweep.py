"""Sweeps: pruned by the median rule, gone on with after any kill to the very same trials, one MLflow run over all of them."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.core.global_hydra import GlobalHydra
from PIL import Image

from insight.errors import InputError, Pruned, TrainingFailure
from lightning_modules import sweep as driver
from lightning_modules.front import run_composed
from lightning_modules.overrides import CONFIGS, compose_plain
from lightning_modules.settings import Dimension
from lightning_modules.space import read_sweep
from lightning_modules.study import STUDY, SweepStudy, TrialRow
from tests.processes import forked
from tracking import facts
from tracking.shipper import PARENT_TAG
from tracking.store import open_client

KEY = "stages.one_stage.learning_rate"
SPACE = {"rate": {"key": KEY, "low": 1e-4, "high": 1e-2, "log": True}}


def words(scenes_cache: Path, outputs: Path, *more: str) -> list[str]:
    """A sweep of one short stage on 40 generated pictures."""
    sizes = [f"model.init_args.{key}" for key in ("dim=16", "heads=2", "image_depth=1", "text_depth=1", "embed_dim=16")]
    data = ["image_size=32", "batch_size=8", "eval_batch_size=20", f"cache_dir={scenes_cache}"]
    counts = [f"+data.init_args.num_{split}={count}" for split, count in {"train": 40, "val": 20, "test": 12}.items()]
    return [
        *sizes,
        *(f"data.init_args.{key}" for key in data),
        *counts,
        *("stages=one_stage", "stages.one_stage.epochs=3", "trainer=cpu", "+trainer.limit_train_batches=2", "trainer.log_every_n_steps=1"),
        *("~callbacks", f"paths.outputs={outputs}", "+sweep=rates", f"sweep.space.rate.key={KEY}"),
        *("~sweep.space.captions", "~sweep.space.weight_decay", "sweep.pruner.arguments.n_startup_trials=2", *more),
    ]


def run(overrides: list[str], full_error: bool = False) -> int:
    return run_composed(compose_plain(CONFIGS, overrides), overrides, full_error)


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "trials.json").read_text())["trials"]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sweep")


@pytest.fixture
def finished(kept, scenes_cache, migrated_store, monkeypatch) -> tuple[Path, list[str]]:
    """One sweep of six trials, tracked, for all tests that only read it."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(facts, "git_facts", lambda folder: facts.GitFacts("c" * 40, "main", False, "", ""))
    monkeypatch.setattr(facts, "environment", dict)
    overrides = words(scenes_cache, kept, "sweep.num_trials=6")
    if not (kept / "sweeps").exists():
        shutil.copy(migrated_store, kept / "mlflow.db")
        assert run(overrides, full_error=True) == 0
    return kept / "sweeps" / "rates", overrides


def test_a_trial_is_pruned_where_its_best_so_far_is_below_the_median_of_the_complete_ones(finished):
    rows, complete, pruned = rows_of(finished[0]), [], 0
    assert [row["number"] for row in rows] == list(range(6))
    for row in rows:
        reported = {int(step): value for step, value in row["curve"].items()}
        assert list(reported) == list(range(len(reported)))  # of the first stage, each validation
        expected = None
        for step in range(3):
            others = [other[step] for other in complete]
            if len(complete) >= 2 and max(reported[s] for s in range(step + 1)) < statistics.median(others):
                expected = step
                break
        assert row["state"] == ("complete" if expected is None else "pruned")
        assert len(reported) == (3 if expected is None else expected + 1)
        if row["state"] == "complete":
            assert row["value"] == max(reported.values())  # the stage hands on its best weights by the same metric
            complete.append(reported)
        else:
            assert row["reason"] == f"val/mean_recall {reported[expected]:.4g} after validation {expected + 1} of stage one_stage"
            pruned += 1
    assert pruned >= 1 and len(complete) >= 2


def test_one_run_holds_the_six_trials_and_knows_the_best(finished):
    folder, _ = finished
    client, rows = open_client(f"sqlite:///{folder.parent.parent}/mlflow.db"), rows_of(folder)
    (parent,) = client.search_runs(["1"], "tags.sweep = 'rates'")
    trials = {run.info.run_name: run for run in client.search_runs(["1"], f"tags.`{PARENT_TAG}` = '{parent.info.run_id}'")}
    assert sorted(trials) == [f"rates-{number}" for number in range(6)] and parent.info.status == "FINISHED"
    for row in rows:
        trial = trials[f"rates-{row['number']}"]
        assert trial.info.status == {"complete": "FINISHED", "pruned": "KILLED"}[row["state"]]
        assert trial.data.tags.get("pruned", "") == row["reason"]
        assert float(trial.data.params[KEY]) == row["values"]["rate"] and trial.data.tags["trial"] == str(row["number"])
        stages = client.search_runs(["1"], f"tags.`{PARENT_TAG}` = '{trial.info.run_id}'")
        assert [stage.info.run_name for stage in stages] == ["01-one_stage"]
    best = max((row for row in rows if row["state"] == "complete"), key=lambda row: (row["value"], -row["number"]))
    assert parent.data.tags["best.trial"] == str(best["number"]) and float(parent.data.tags[f"best.{KEY}"]) == best["values"]["rate"]
    assert parent.data.metrics["sweep/best"] == best["value"]
    values = {point.step: point.value for point in client.get_metric_history(parent.info.run_id, "sweep/value")}
    assert values == {row["number"]: row["value"] for row in rows}
    assert {"trials.json", "trials.png", "sweep.yaml"} <= {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert not client.search_registered_models() and "trial" not in parent.data.tags
    assert not (folder.parent.parent / "latest").exists()  # it stays the newest run that is no trial
    assert Image.open(folder / "trials.png").size[0] > 500 and (folder / "trials.png").stat().st_size < 100_000


def test_a_finished_sweep_says_the_best_and_the_command_that_trains_with_it(finished, capsys):
    folder, overrides = finished
    before = rows_of(folder)
    assert run(overrides) == 0
    said = capsys.readouterr().out
    assert rows_of(folder) == before and "is finished; sweep.num_trials=12 goes on" in said
    found = json.loads((folder / "trials.json").read_text())
    best = found["trials"][found["best"]]
    assert f"best:      trial {best['number']}, val/mean_recall {best['value']:.4f}" in said
    command = said.split("train it:  ")[1].strip()
    assert command.startswith("python train.py model.init_args.dim=16") and "sweep" not in command.replace(str(folder.parent.parent), "")
    config = compose_plain(CONFIGS, [word.strip("'") for word in command.split()[2:]])
    assert config["stages"]["one_stage"]["learning_rate"] == best["values"]["rate"]
    assert config["deployment"]["register"] is True and config["run"]["test"] is True
    trained = yaml.safe_load((folder / str(best["number"]) / "config.yaml").read_text())
    assert trained["stages"]["one_stage"]["learning_rate"] == best["values"]["rate"]
    assert trained["deployment"]["register"] is False and trained["run"]["test"] is False
    assert {key: trained[key] for key in ("model", "data")}.keys() <= config.keys()


def test_the_folder_of_another_sweep_is_refused_with_the_difference(finished, capsys):
    _, overrides = finished
    assert run([*overrides, "sweep.seed=5", "sweep.num_trials=7"]) == 2
    error = capsys.readouterr().err
    assert "holds another sweep" in error and "sweep.seed: 0 -> 5" in error and "num_trials" not in error


@pytest.mark.skipif(sys.platform != "linux", reason="forks a process that has imported torch: Linux only")
def test_killed_and_stopped_a_sweep_goes_on_to_the_same_trials(finished, scenes_cache, tmp_path, monkeypatch):
    overrides = words(scenes_cache, tmp_path, "sweep.num_trials=3", "tracking.enabled=false")

    def dying(number: int, reports: int, signal_number: int) -> Callable[[], int]:
        def function() -> int:
            original = SweepStudy.reporter

            def reporter(self, trial):
                report, calls = original(self, trial), []

                def counted(step, value):
                    calls.append(step)
                    go_on = report(step, value)
                    if trial.number == number and len(calls) == reports:
                        os.kill(os.getpid(), signal_number)
                    return go_on

                return counted

            SweepStudy.reporter = reporter
            return run(overrides)

        return function

    folder = tmp_path / "sweeps" / "rates"
    assert forked(dying(0, 2, signal.SIGKILL)) == -signal.SIGKILL  # reported, but not saved: the validation is repeated
    assert (folder / "0" / "01-one_stage" / "last.ckpt").exists()
    assert forked(dying(1, 1, signal.SIGINT)) == 130
    assert run(overrides) == 0
    expected = rows_of(finished[0])[:3]
    assert rows_of(folder) == expected
    assert json.loads((folder / "0" / "summary.json").read_text())["stages"][0]["resumed"] is True


# --- without training ---
@pytest.fixture
def sweep():
    return read_sweep({"name": "x", "num_trials": 14, "space": {**SPACE, "size": {"key": "a", "choices": [1, "b", None]}}})


def finish(study: SweepStudy, count: int) -> None:
    for _ in range(count):
        trial, values = study.next_trial()
        study.reporter(trial)(0, values["rate"])
        study.tell(trial, "complete", values["rate"])


def test_interrupted_anywhere_the_study_asks_for_the_same_values(tmp_path, sweep):
    whole = SweepStudy(sweep, tmp_path / "whole")
    finish(whole, 14)  # past the sampler's ten random trials
    for _ in range(14):
        trial, values = SweepStudy(sweep, tmp_path / "parts").next_trial()  # this process dies here
        again, same = SweepStudy(sweep, tmp_path / "parts").next_trial()
        assert (again.number, same) == (trial.number, values)
        study = SweepStudy(sweep, tmp_path / "parts")
        finish(study, 1)
    assert study.done and study.rows() == whole.rows()
    assert len({row.values["rate"] for row in study.rows()}) == 14


def test_half_a_line_at_the_end_of_the_study_is_cut_off(tmp_path, sweep):
    finish(SweepStudy(sweep, tmp_path), 2)
    path = tmp_path / STUDY
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"op_code": 5, "worker_i')
    study = SweepStudy(sweep, tmp_path)
    finish(study, 1)
    assert path.read_bytes().startswith(whole) and [row.state for row in study.rows()] == ["complete"] * 3


def test_a_validation_repeated_after_a_kill_is_reported_once(tmp_path, sweep):
    trial, _ = SweepStudy(sweep, tmp_path).next_trial()
    SweepStudy(sweep, tmp_path).reporter(trial)(0, 0.5)
    study = SweepStudy(sweep, tmp_path)
    again, _ = study.next_trial()
    report = study.reporter(again)
    assert report(0, 0.7) and report(1, 0.6)
    assert study.rows()[0].curve == {0: 0.5, 1: 0.6}


def test_a_value_that_is_not_finite_is_a_failure(tmp_path, sweep):
    study = SweepStudy(sweep, tmp_path)
    study.tell(study.next_trial()[0], "complete", float("nan"))
    assert study.rows()[0].state == "failed"


def planted(monkeypatch, tmp_path, scenes_cache, outcome: Callable[[int], Any]) -> list[str]:
    """A sweep whose trials end by ``outcome(number)`` without training: a value, or an exception to raise."""

    def train(cli, sweep_dir):
        run_dir = Path(cli.run_dir)
        found = outcome(int(run_dir.name))
        if isinstance(found, Exception):
            raise found
        run_dir.mkdir()
        (run_dir / "summary.json").write_text(json.dumps({"stages": [{"metrics": {"val/mean_recall": found}}]}))
        return 0

    monkeypatch.setattr(driver, "run_stages", train)
    return words(scenes_cache, tmp_path, "tracking.enabled=false", "sweep.num_trials=4")


def test_a_trial_that_fails_is_a_row_and_the_sweep_goes_on(tmp_path, scenes_cache, monkeypatch, capsys):
    failure = TrainingFailure("the loss is not finite at step 3")
    assert run(planted(monkeypatch, tmp_path, scenes_cache, lambda number: failure if number in (0, 1) else number / 10)) == 0
    rows = rows_of(tmp_path / "sweeps" / "rates")
    assert [(row["state"], row["value"]) for row in rows] == [("failed", None), ("failed", None), ("complete", 0.2), ("complete", 0.3)]
    assert "failed: the loss is not finite at step 3" in capsys.readouterr().out


def test_three_failures_in_a_row_stop_the_sweep_and_say_why(tmp_path, scenes_cache, monkeypatch, capsys):
    assert run(planted(monkeypatch, tmp_path, scenes_cache, lambda number: InputError(f"no {number}"))) == 1
    assert capsys.readouterr().err.strip() == "error: sweep rates: 3 trials in a row failed; the last: no 2"


def test_a_sweep_that_pruned_everything_says_so(tmp_path, scenes_cache, monkeypatch, capsys):
    assert run(planted(monkeypatch, tmp_path, scenes_cache, lambda number: Pruned("0.1"))) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: sweep rates: none of 4 trials was finished (4 pruned)") and "sweep.pruner" in error


# --- mistakes ---
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"space": {}}, "sweep.space: is empty"),
        ({"name": "a/b"}, "sweep.name='a/b': names a folder"),
        ({"name": ".."}, "sweep.name='..': names a folder"),
        ({"num_trials": 0}, "sweep.num_trials=0: must be at least 1"),
        ({"num_trials": "many"}, "sweep.num_trials: .*many"),
        ({"num_trial": 3}, "sweep.num_trial: no such key; did you mean 'num_trials'"),
        ({"metric": "val/mean_recal"}, "sweep.metric: no metric is called 'val/mean_recal'; did you mean 'val/mean_recall'"),
        (
            {"metric": "test/mean_recall"},
            "sweep.metric='test/mean_recall': must be one of the validation .*'val/mean_recall'",
        ),
        ({"mode": "min"}, "sweep.mode=min: the best val/mean_recall is its max"),
        ({"mode": "least"}, "sweep.mode: .*least"),
        ({"space": {"rate": {"low": 1, "high": 2}}}, "sweep.space.rate: lacks key"),
        ({"space": {"rate": {"key": "a", "lowest": 1}}}, "sweep.space.rate.lowest: no such key; did you mean 'low'"),
        ({"space": {"rate": {"key": "a b", "low": 1, "high": 2}}}, "sweep.space.rate.key='a b': must be a key"),
        (
            {"space": {"one": SPACE["rate"], "two": SPACE["rate"]}},
            f"sweep.space.one.key={KEY}: is searched twice",
        ),
    ],
    ids=lambda value: str(value)[:60] if isinstance(value, dict) else "",
)
def test_a_mistake_in_the_sweep_names_its_key(changes, said):
    with pytest.raises(InputError, match=said) as refused:
        read_sweep({"name": "x", "space": SPACE, **changes})
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"low": 2, "high": 1}, ": low=2 must be below high=1"),
        ({"low": 1.0, "high": 1.0}, ": low=1.0 must be below high=1.0"),
        ({"low": 0, "high": 1, "log": True}, ".low=0: must be above 0 where log is true"),
        ({"low": 1}, ": needs low and high, or choices"),
        ({}, ": needs low and high, or choices"),
        ({"low": 1, "high": float("inf")}, ".high=inf: must be a finite number"),
        ({"low": 1, "high": 9, "log": True, "step": 2}, ".step=2: has no meaning where log is true"),
        ({"low": 1, "high": 9, "step": 0}, ".step=0: must be above 0"),
        ({"low": 1, "high": 9, "step": 0.5}, ".step=0.5: must be whole where low and high are; or write low as 1.0"),
        ({"choices": [1]}, ".choices=[1]: must be at least two different values"),
        ({"choices": []}, ".choices=[]: must be at least two different values"),
        ({"choices": [1, 2], "low": 1}, ": has choices, so low, high, log and step have no meaning; leave them out"),
    ],
    ids=str,
)
def test_an_impossible_distribution_is_named(given, said):
    with pytest.raises(InputError) as refused:
        read_sweep({"name": "x", "space": {"rate": {"key": "a", **given}}})
    assert str(refused.value) == f"sweep.space.rate{said}"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            [f"sweep.space.rate.key={KEY[:-1]}"],
            f"sweep.space.rate.key: {KEY[:-1]}: no such key; did you mean 'learning_rate'?",
        ),
        (["sweep.space.rate.key=modle.x"], "sweep.space.rate.key: modle.x: no such key or group; did you mean 'model'?"),
        (
            ["+sweep.space.kind={key: model, choices: [multimodal, cross_atention]}"],
            "sweep.space.kind.key: model=cross_atention: no such option; did you mean 'cross_attention'?",
        ),
        (["seed_everything=1", "sweep.space.rate.key=seed_everything"], "sweep.space.rate.key=seed_everything: is searched, so leave out"),
        (["sweep.space.rate.key=stages.one_stage.data.captions_per_image"], "stages.*captions_per_image"),
        (["sweep.pruner.function=optuna.pruners.MedianPrune"], "sweep.pruner.function: 'optuna.pruners' has no function or class"),
        (["sweep.pruner.function=optuna.samplers.TPESampler"], "sweep.pruner.function=optuna.samplers.TPESampler: must be a BasePruner"),
        (["+sweep.sampler.arguments.starts=1"], "sweep.sampler.arguments.starts: TPESampler takes no such argument"),
        (["sweep.pruner.arguments.n_startup_trials=-1"], "sweep.pruner: MedianPruner cannot be made of"),
        (["run_dir=x"], "run_dir=x: a sweep's folder is run.output_dir/sweeps/NAME"),
        (["trainer.devices=2"], "trainer.devices=2: a trial of a sweep trains on one device"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_before_any_trial_starts(tmp_path, scenes_cache, capsys, more, said):
    assert run(words(scenes_cache, tmp_path, *more)) == 2
    out, error = capsys.readouterr()
    assert re.match(rf"error: {said if '.*' in said else re.escape(said)}", error.strip()) and "\n" not in error.strip()
    assert "=== trial" not in out and list(tmp_path.iterdir()) == []


def test_without_optuna_the_extra_is_named(tmp_path, scenes_cache, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert run(words(scenes_cache, tmp_path)) == 2
    assert capsys.readouterr().err.strip() == "error: a sweep needs Optuna 4 or newer, the extra `sweeps`: pip install 'optuna>=4'"
    assert list(tmp_path.iterdir()) == []


def test_every_sweep_that_ships_is_read_and_its_keys_exist():
    GlobalHydra.instance().clear()
    for path in sorted((Path(CONFIGS) / "sweep").glob("*.yaml")):
        overrides = ["+experiment=flickr_multistage", f"+sweep={path.stem}"]
        config = compose_plain(CONFIGS, overrides)
        sweep = read_sweep(config["sweep"])
        driver.check_space(sweep, overrides)
        assert sweep.name == path.stem and config["run"]["test"] is False
        assert config["deployment"] == {"name": "flickr", "bundle": False, "register": False}


def test_dimensions_become_the_distributions_that_they_say(tmp_path):
    space = {
        "whole": Dimension("a", 2, 8, step=2),
        "real": Dimension("b", 0.5, 2.0),
        "decades": Dimension("c", 1e-6, 1.0, log=True),
        "named": Dimension("d", choices=["x", "y"]),
    }
    plain = {name: {key: value for key, value in vars(one).items() if value is not None} for name, one in space.items()}
    study = SweepStudy(read_sweep({"name": "x", "num_trials": 40, "space": plain}), tmp_path)
    for _ in range(40):
        trial, _ = study.next_trial()
        study.tell(trial, "complete", 0.0)
    rows: list[TrialRow] = study.rows()
    assert {row.values["whole"] for row in rows} == {2, 4, 6, 8} and {row.values["named"] for row in rows} == {"x", "y"}
    assert all(0.5 <= row.values["real"] <= 2.0 for row in rows)
    assert 5 <= sum(row.values["decades"] < 1e-3 for row in rows) <= 35  # half of the logarithm, a thousandth of the interval
