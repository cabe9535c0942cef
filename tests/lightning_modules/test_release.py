"""What a finished run leaves for others: a bundle that equals its best weights, a card that equals its summary, a registered version."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient

from insight.data.text import Tokenizer
from insight.errors import InputError
from insight.export.bundle import load
from insight.export.card import SECTIONS, missing_sections
from insight.query_ranks import read_ranks, worst
from lightning_modules.drive import run_stages
from lightning_modules.engine_cli import build
from lightning_modules.front import run_composed
from tracking import registry
from tracking.records import Journal
from tracking.store import open_client

ONE_EPOCH = {"epochs": 1}


@pytest.fixture
def released(tiny_config, tmp_path, migrated_store) -> dict:
    """A run of one short stage, tracked, with attention maps; what it leaves is on."""
    tiny_config["stages"] = {"cross_modal": {**tiny_config["stages"]["cross_modal"], **ONE_EPOCH}}
    tiny_config["deployment"] = {"name": "tiny"}
    store = tmp_path / "mlflow.db"
    store.write_bytes(migrated_store.read_bytes())
    tiny_config["tracking"] = {"enabled": True, "experiment": "tests", "tracking_uri": f"sqlite:///{store}"}
    return tiny_config


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("kept")


@pytest.fixture
def finished(released, kept) -> tuple[Path, MlflowClient]:
    """One such run for all tests that only read it: its folder, its store."""
    run_dir, store = kept / "run", kept / "mlflow.db"
    if not store.exists():
        store.write_bytes(Path(released["tracking"]["tracking_uri"].removeprefix("sqlite:///")).read_bytes())
        maps = {"class_path": "callbacks.attention_maps.AttentionMaps", "init_args": {"num_examples": 2}}
        config = {**released, "run_dir": str(run_dir), "callbacks": {"attention_maps": maps}}
        config["tracking"] = {**released["tracking"], "tracking_uri": f"sqlite:///{store}"}
        assert run_stages(build(config)) == 0
    return run_dir, open_client(f"sqlite:///{store}")


def test_the_registered_version_says_what_the_runs_best_weights_say(finished):
    run_dir, client = finished
    model = registry.load("models:/tiny/1", client.tracking_uri)
    weights = torch.load(run_dir / "01-cross_modal" / "best.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(value, weights[f"model.{name}"]) for name, value in model.model.state_dict().items())
    tokens, mask = Tokenizer.load(run_dir / "tokenizer.json").encode(["a red circle"], 24)
    assert torch.equal(model.encode_texts(["a red circle"]), model.model.encode_text(tokens, mask).embedding)
    assert model.config["stages"]["cross_modal"]["epochs"] == 1
    assert model.data["splits"] == {"train": 40, "val": 12, "test": 12} and model.data["description"].startswith("generated data")


def test_the_version_knows_its_run_its_data_and_the_digests(finished):
    run_dir, client = finished
    version = client.get_model_version("tiny", "1")
    run = client.get_run(version.run_id)
    assert run.info.run_name == run_dir.name and run.info.status == "FINISHED"
    assert version.tags == {
        "bundle.sha256": load(run_dir / "bundle").sha256,
        "ranks.sha256": read_ranks(run_dir)[1],
        "data.fingerprint": run.data.tags["data.fingerprint"],
        "run": run_dir.name,
    }
    assert "test/text_to_image_recall_at_10" in version.description
    names = {file.path for file in client.list_artifacts(version.run_id, "bundle/card")}
    assert {"bundle/card/model_card.md", "bundle/card/curves-01-cross_modal.png"} <= names


def test_the_card_has_every_section_and_the_figures_of_the_summary(finished):
    run_dir, _ = finished
    assert missing_sections(run_dir / "bundle" / "card") == ["Robustness and faithfulness (not measured)"]
    text = (run_dir / "bundle" / "card" / "model_card.md").read_text()
    test = json.loads((run_dir / "summary.json").read_text())["test"]
    shown = dict(re.findall(r"\| (test/\w+) \| ([\d.]+) \|", text))
    assert len(shown) > 15 and shown == {name: f"{test[name]:.3f}" for name in shown}
    for miss in worst(read_ranks(run_dir)[0], "text_to_image", 5):
        assert f"| {miss.rank} | {miss.query} | {miss.found} | {miss.right} |" in text
    drawn = {path.read_bytes() for path in (run_dir / "01-cross_modal" / "figures").glob("*.png")}
    shown_pictures = list((run_dir / "bundle" / "card").glob("attention-*.png"))
    assert shown_pictures and {path.read_bytes() for path in shown_pictures} <= drawn
    assert "journal" not in text and len(Journal(run_dir / "tracking" / "01-cross_modal").contents().points["train/loss"]) == 5


def test_a_run_that_was_not_tested_is_registered_and_its_card_says_so(released):
    released["run"]["test"] = False
    assert run_stages(build(released)) == 0
    bundle = Path(released["run_dir"]) / "bundle"
    lacking = [SECTIONS[3], SECTIONS[4], SECTIONS[5], SECTIONS[6]]  # no test, and no attention maps in this config
    assert missing_sections(bundle / "card") == [f"{title} (not measured)" for title in lacking]
    assert load(bundle).example_error() < 1e-6
    assert open_client(released["tracking"]["tracking_uri"]).get_model_version("tiny", "1").tags["ranks.sha256"] == ""


@pytest.mark.parametrize(
    ("deployment", "left"), [({"bundle": True, "register": False}, True), ({"bundle": False, "register": False}, False)]
)
def test_a_run_that_says_so_is_not_registered(released, deployment, left):
    released["deployment"] = deployment
    assert run_stages(build(released)) == 0
    assert (Path(released["run_dir"]) / "bundle").exists() == left
    assert not open_client(released["tracking"]["tracking_uri"]).search_registered_models()


def test_a_trial_of_a_sweep_is_not_registered(released):
    run_dir, released["run_dir"] = released["run_dir"], None
    assert run_composed(released, [], full_error=True, trial_dir=run_dir) == 0
    assert (Path(run_dir) / "bundle").exists()
    assert not open_client(released["tracking"]["tracking_uri"]).search_registered_models()


def test_a_run_that_is_killed_while_it_writes_its_bundle_writes_it_again(released, monkeypatch):
    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("lightning_modules.release.write_card", killed)
        assert run_stages(build(released)) == 130
    assert not (Path(released["run_dir"]) / "summary.json").exists()
    assert run_stages(build(released)) == 0
    client = open_client(released["tracking"]["tracking_uri"])
    assert [int(one.version) for one in client.search_model_versions("name = 'tiny'")] == [1]


@pytest.mark.parametrize(
    ("deployment", "said"),
    [
        ({"bundle": False}, "deployment.register=true needs deployment.bundle=true"),
        ({"name": "a/b"}, "deployment.name: 'a/b' is no name for a registered model"),
        ({"registr": True}, "deployment.registr: no such key; did you mean 'register'"),
        ({"bundle": "perhaps"}, "deployment.bundle.*perhaps"),
    ],
)
def test_a_mistake_in_the_deployment_is_found_before_anything_is_trained(released, deployment, said):
    released["deployment"] = deployment
    with pytest.raises(InputError, match=said):
        run_stages(build(released))
    assert not Path(released["run_dir"]).exists()
