"""A run repeated from what MLflow holds ends bitwise where it ended; what is not as it was is said before it starts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from insight.errors import InputError
from lightning_modules.drive import run_stages
from lightning_modules.engine_cli import build
from lightning_modules.front import run_composed
from lightning_modules.overrides import CONFIGS, compose_plain
from tracking import facts
from tracking.past import PastRun, find_run
from tracking.reproduce import judge
from tracking.store import open_client

GIT = facts.GitFacts(commit="c" * 40, branch="main", dirty=True, diff="+one line\n", note="")
ENVIRONMENT = {"machine": {"cpu_count": 2, "python": "3.11"}, "packages": {"torch": "2.14.1", "zipp": "1.0", "gone": "1"}}
STAGES = ("single_modality", "end_to_end")


@pytest.fixture(autouse=True)
def _known_facts(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(facts, "git_facts", lambda folder: GIT)
    monkeypatch.setattr(facts, "environment", lambda: ENVIRONMENT)


@pytest.fixture(scope="module")
def place(tmp_path_factory, migrated_store) -> Path:
    folder = tmp_path_factory.mktemp("reproduce")
    shutil.copy(migrated_store, folder / "mlflow.db")
    return folder


@pytest.fixture
def made(tiny_config, place) -> tuple[str, Path]:
    """The MLflow id of a run of two stages, and its folder: one for all tests."""
    store = f"sqlite:///{place}/mlflow.db"
    tiny_config |= {"run_dir": str(place / "made"), "tracking": {"tracking_uri": store}}
    tiny_config["run"]["output_dir"] = str(place / "outputs")
    tiny_config["stages"] = {name: {**tiny_config["stages"][name], "epochs": 1} for name in STAGES}
    if not (place / "made").exists():
        assert run_stages(build(tiny_config)) == 0
    (run,) = open_client(store).search_runs(["1"], "attributes.run_name = 'made'")
    return run.info.run_id, place / "made"


def words(reference: str, place: Path, tmp_path: Path, scenes_cache: Path, *more: str) -> list[str]:
    where = [f"tracking.tracking_uri=sqlite:///{place}/mlflow.db", f"paths.outputs={tmp_path}/outputs", f"paths.cache={scenes_cache}"]
    return [f"reproduce={reference}", *where, f"run_dir={tmp_path}/again", *more]


def again(overrides: list[str]) -> int:
    return run_composed(compose_plain(CONFIGS, overrides), overrides)


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    found = {}
    for path in sorted(run_dir.glob("*/*.ckpt")):
        state = torch.load(path, weights_only=True)["state_dict"]
        found |= {f"{path.parent.name}/{path.name}/{name}": value for name, value in state.items()}
    return found


def test_a_run_repeated_by_its_id_ends_with_bitwise_equal_weights(made, place, tmp_path, scenes_cache, capsys):
    run_id, folder = made
    first = weights(folder)
    assert again(words(run_id, place, tmp_path, scenes_cache)) == 0
    second = weights(tmp_path / "again")
    assert first.keys() == second.keys() and len(first) > 100
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    said = capsys.readouterr().out
    before, _, after = said.partition("stage 1/2")
    assert f"reproducing run {run_id} (made)\n  commit, changes, packages, machine and config are as they were\n" in before
    assert "reproduced: all weights are bitwise equal after each of 2 stages; all" in after
    client = open_client(f"sqlite:///{place}/mlflow.db")
    (repeated,) = client.search_runs(["1"], f"tags.reproduces = '{run_id}'")
    assert repeated.data.tags["reproduced"] == "true" and repeated.info.status == "FINISHED"
    assert "reproduction.json" in {file.path for file in client.list_artifacts(repeated.info.run_id)}
    assert (tmp_path / "outputs" / "latest").resolve() == tmp_path / "again"


def test_what_is_not_as_it_was_is_listed_before_the_start(made, place, tmp_path, scenes_cache, capsys, monkeypatch):
    run_id, _ = made
    monkeypatch.setattr(facts, "git_facts", lambda folder: GIT._replace(commit="d" * 40, diff=""))
    packages = {"torch": "2.15.0", "zipp": "2.0", "new": "3"}
    monkeypatch.setattr(facts, "environment", lambda: {"machine": {"cpu_count": 4, "python": "3.11"}, "packages": packages})
    monkeypatch.setattr("lightning_modules.reproduce.run_stages", lambda cli: 70)  # what comes before the training
    assert again(words(run_id, place, tmp_path, scenes_cache)) == 70
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    begin = lines.index(f"reproducing run {run_id} (made)")
    assert lines[begin + 1 : begin + 8] == [
        f"commit: {'c' * 40} -> {'d' * 40}",
        "changes that are not committed: 1 lines (git.diff of the run) -> none",
        "package torch: 2.14.1 -> 2.15.0",  # what the weights go through comes first
        "package gone: 1 -> absent",
        "package new: absent -> 3",
        "package zipp: 1.0 -> 2.0",
        "machine cpu_count: 2 -> 4",
    ]
    assert "what differs may change the weights" in lines[begin + 8]


def test_other_data_is_refused_before_the_start(made, place, tmp_path, scenes_cache, capsys, monkeypatch):
    run_id, folder = made
    monkeypatch.setattr("datamodules.scenes.ScenesDataModule.fingerprint", lambda self: "f" * 64)
    assert again(words(run_id, place, tmp_path, scenes_cache)) == 2
    error = capsys.readouterr().err
    assert f"run {run_id} cannot be reproduced: data: fingerprint" in error and "f" * 16 in error and "scenes v1" in error
    assert not (tmp_path / "again").exists()
    assert again(words(str(folder), place, tmp_path, scenes_cache)) == 2  # a folder serves as well as an id
    assert "cannot be reproduced: data" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("reference", "more", "said"),
    [
        (
            "0123456789abcdef",
            [],
            "reproduce=0123456789abcdef: no run of this id in sqlite:///{place}/mlflow.db; the newest there: ",
        ),
        (
            "{run_id}",
            ["seed_everything=3"],
            "reproduce={run_id} takes the run's own config; leave out seed_everything=3, or start another run",
        ),
        ("{stage_id}", [], "reproduce={stage_id}: is one stage of a run; give the run's own id, {run_id}"),
        ("no/where", [], "reproduce=no/where: there is no such folder"),
        ("{place}", [], "{place}: holds no config.yaml; give the folder of a run"),
        ("{run_id}", ["env=prod"], "tracking.token_env=MLFLOW_TRACKING_TOKEN: this environment variable is not set"),
    ],
    ids=["unknown id", "another key", "a stage", "no folder", "no run's folder", "no secret"],
)
def test_a_mistake_is_one_line_that_names_it(made, place, tmp_path, scenes_cache, capsys, monkeypatch, reference, more, said):
    monkeypatch.delenv("MLFLOW_TRACKING_TOKEN", raising=False)
    client = open_client(f"sqlite:///{place}/mlflow.db")
    (stage,) = client.search_runs(["1"], f"tags.`mlflow.parentRunId` = '{made[0]}' and attributes.run_name = '01-single_modality'")
    names = {"run_id": made[0], "stage_id": stage.info.run_id, "place": place}
    assert again(words(reference.format(**names), place, tmp_path, scenes_cache, *more)) == 2
    error = capsys.readouterr().err.strip()
    assert said.format(**names) in error and "\n" not in error


def test_a_config_that_this_code_does_not_take_names_the_commit_that_did(made, place, tmp_path, scenes_cache, capsys):
    _, folder = made
    shutil.copytree(folder, tmp_path / "old")
    text = (tmp_path / "old" / "config.yaml").read_text()
    (tmp_path / "old" / "config.yaml").write_text(text.replace("    embed_dim:", "    embed_width:"))
    assert again(words(str(tmp_path / "old"), place, tmp_path, scenes_cache)) == 2
    said = capsys.readouterr().err
    assert "model.init_args.embed_width: no such key; did you mean 'embed_dim'?" in said and f"it was made with commit {'c' * 40}" in said


def summary(*weights: str, **test: float) -> dict[str, Any]:
    return {"stages": [{"name": f"stage{number}", "weights": one} for number, one in enumerate(weights)], "test": test}


@pytest.mark.parametrize(
    ("then", "now", "equal", "said"),
    [
        (
            summary("a", "b", x=1.0),
            summary("a", "b", x=1.0),
            True,
            "bitwise equal after each of 2 stages; all 1 figures of the test are equal",
        ),
        (
            summary("a", "b", x=1.0, y=2.0),
            summary("a", "c", x=1.0, y=2.5),
            False,
            "from stage 'stage1' on; 1 of 2 .* most of all y: 2 -> 2.5",
        ),
        (summary("a"), summary("b"), False, "from stage 'stage0' on"),
        ({}, summary("b"), False, r"the run has no summary.json \(KILLED\): there is nothing to compare with"),
    ],
)
def test_the_verdict_names_the_first_stage_and_the_largest_figure_that_differ(tmp_path, then, now, equal, said):
    if then:
        (tmp_path / "summary.json").write_text(json.dumps(then))
    verdict = judge(PastRun("made", None, tmp_path, "KILLED", {}, {}), now)
    assert verdict.equal is equal
    with pytest.raises(InputError, match=said):
        raise InputError(verdict.text)


def test_a_run_is_the_same_by_its_id_and_by_its_folder(made, place, tmp_path):
    store = f"sqlite:///{place}/mlflow.db"
    by_id, by_folder = find_run(made[0], store, tmp_path), find_run(str(made[1]), store, tmp_path)
    assert by_id.run_id == by_folder.run_id == made[0] and by_id.config == by_folder.config and by_id.name == by_folder.name
    assert by_id.status == by_folder.status == "FINISHED" and by_id.environment == by_folder.environment == ENVIRONMENT
    assert by_id.diff == by_folder.diff == GIT.diff
    assert by_folder.tags.items() <= by_id.tags.items()
    assert by_id.read_json("summary.json") == by_folder.read_json("summary.json") != {}
    assert by_id.curves.keys() == by_folder.curves.keys() == {"01-single_modality", "02-end_to_end"}
    for stage, curves in by_folder.curves.items():
        for name, points in curves.items():
            assert sorted(set(by_id.curves[stage][name])) == points
