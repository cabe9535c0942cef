"""Promotion: an alias moves only when the gates hold, is set last, and can be given back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED

import tracking.promote
from insight.errors import InputError
from insight.stages import Call
from tracking.gates import bind_gates
from tracking.promote import CONFIGS, main, promote, read_gates, rollback
from tracking.store import open_client

RECALL = {"recall": Call("tracking.gates.recall_not_below_holder", {"metric": "test/text_to_image_recall_at_10"})}
SIZE = {"size": Call("tracking.gates.size", {"at_most_mb": 100})}  # holds for all of them
FAST = "gates.latency.arguments.at_most_ms=100000"  # how quick this machine is must not matter


def aliases(client: MlflowClient) -> dict[str, int]:
    return {name: int(version) for name, version in client.get_registered_model("flickr").aliases.items()}


def tags(client: MlflowClient, version: int) -> dict[str, str]:
    return client.get_model_version("flickr", str(version)).tags


@pytest.fixture
def client(released) -> MlflowClient:
    return released.client


@pytest.fixture
def ask(released, capsys):
    """The command line; gives (exit code, what it said, its errors)."""

    def _ask(*words: str) -> tuple[int, str, str]:
        code = main(["flickr", *words, "--tracking-uri", released.store])
        said = capsys.readouterr()
        assert "Traceback" not in said.out + said.err
        return code, said.out, said.err

    return _ask


def test_a_version_is_promoted_refused_forced_and_rolled_back(released, client, ask):
    code, said, _ = ask("--version", "1", "--to", "staging", FAST)
    assert code == 0 and aliases(client) == {"staging": 1}
    assert "which nobody holds now" in said and "| card | holds | 8 sections | all 8 | - |" in said and "goes to version 1." in said

    code, said, _ = ask("--version", "2", "--to", "staging", FAST)
    assert code == 3 and aliases(client) == {"staging": 1}
    assert (
        "| text_to_image_not_below | fails | 0.333, difference -0.500 (" in said and "| 0.833 | test/text_to_image_recall_at_10 |" in said
    )
    assert "Refused by: image_to_text_not_below, text_to_image_not_below." in said and "@staging does not go to version 2." in said
    assert tags(client, 2)["promotion.staging"].startswith("refused at")
    assert tags(client, 2)["promotion.staging.failed"] == "image_to_text_not_below, text_to_image_not_below"

    code, said, _ = ask("--version", "2", "--to", "staging", FAST, "--force", "the demo needs it")
    assert code == 0 and aliases(client) == {"staging": 2} and "Forced: the demo needs it" in said
    assert tags(client, 2)["promotion.staging.forced"] == "the demo needs it"
    assert tags(client, 2)["promotion.staging"].startswith("forced at") and tags(client, 2)["promotion.staging.replaces"] == "1"

    code, said, _ = ask("--to", "staging", "--rollback")
    assert code == 0 and aliases(client) == {"staging": 1} and "is version 1 again, not 2" in said
    code, _, error = ask("--to", "staging", "--rollback")
    assert code == 2 and "version 1, which replaced none" in error

    run_id = released.releases[1].run_id
    reports = sorted(file.path for file in client.list_artifacts(run_id, "promotions") if file.path.endswith(".json"))
    kept = json.loads(Path(client.download_artifacts(run_id, reports[-1])).read_text())
    assert kept["verdicts"]["size"]["state"] == "holds" and (kept["holder"], kept["version"]) == (1, 2)
    assert kept["forced"] == "the demo needs it" and kept["granted"]


def test_prod_sets_the_champion_and_says_what_is_absent(client, ask):
    code, said, _ = ask("--version", "3", "--to", "prod", FAST, "gates.robustness.arguments.required=true")
    assert code == 3 and "Refused by: robustness." in said and aliases(client) == {}
    code, said, _ = ask("--version", "3", "--to", "prod", FAST)
    assert code == 0 and aliases(client) == {"champion": 3}
    assert "| robustness | absent | - |" in said and "Not measured, so neither for nor against: faithfulness, robustness." in said


def test_figures_are_read_from_the_run_and_from_its_last_stage(client):
    gates = {
        "faithfulness": Call("tracking.gates.figure_within", {"metric": "insight/rollout/deletion", "at_most": 0.3}),
        "robustness": Call("tracking.gates.figure_within", {"metric": "insight/robustness/blur", "at_least": 0.5}),
    }
    verdicts = promote(client, "flickr", 1, "dev", gates).verdicts
    assert [(one.state, one.figure) for one in verdicts.values()] == [("holds", "0.250"), ("holds", "0.750")]


def test_a_version_without_a_test_is_not_promoted(client):
    report = promote(client, "flickr", 4, "dev", RECALL)
    assert report.failed == ["recall"] and "keeps no ranks" in report.verdicts["recall"].note and aliases(client) == {}


def test_ranks_that_were_changed_after_registration_are_refused(release, released, store):
    changed, own = release(ranks=[1, 2, 3]), open_client(store)
    for name in ("ranks.safetensors", "ranks.json"):
        own.log_artifact(changed.run_id, str(released.releases[2].run_dir / name))
    with pytest.raises(InputError, match="models:/flickr/1: the ranks of its test were changed"):
        promote(own, "flickr", 1, "dev", RECALL)


@pytest.mark.parametrize("step", ["log_text", "set_model_version_tag", "set_registered_model_alias"])
def test_a_promotion_that_is_interrupted_leaves_the_old_alias(client, monkeypatch, step):
    promote(client, "flickr", 1, "staging", RECALL)

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(client, step, interrupt)
        with pytest.raises(KeyboardInterrupt):
            promote(client, "flickr", 3, "staging", RECALL)
    assert aliases(client) == {"staging": 1}
    with pytest.raises(InputError, match="version 1, which replaced none"):
        rollback(client, "flickr", "staging")
    assert promote(client, "flickr", 3, "staging", RECALL).granted and aliases(client) == {"staging": 3}


def test_an_alias_that_moved_while_the_gates_ran_is_not_taken(client, monkeypatch):
    promote(client, "flickr", 1, "staging", RECALL)

    def meanwhile(*words: object) -> None:
        client.set_registered_model_alias("flickr", "staging", "2")

    monkeypatch.setattr(tracking.promote, "record", meanwhile)
    with pytest.raises(InputError, match="went to another version while the gates ran"):
        promote(client, "flickr", 3, "staging", RECALL)
    assert aliases(client) == {"staging": 2}


def test_rollback_goes_back_step_by_step_and_not_to_what_is_gone(client):
    with pytest.raises(InputError, match="no alias 'dev': there is nothing to roll back"):
        rollback(client, "flickr", "dev")
    for number in (1, 2, 3):
        promote(client, "flickr", number, "dev", SIZE)
    assert rollback(client, "flickr", "dev") == (3, 2) and rollback(client, "flickr", "dev") == (2, 1)
    promote(client, "flickr", 3, "dev", SIZE)
    client.delete_model_version("flickr", "1")
    with pytest.raises(InputError, match="no version 1; it has 2, 3, 4"):
        rollback(client, "flickr", "dev")
    assert aliases(client) == {"dev": 3}


def test_promoting_the_holder_again_changes_nothing(client):
    for _ in range(2):
        assert promote(client, "flickr", 1, "dev", RECALL).granted
    assert tags(client, 1)["promotion.dev.replaces"] == ""


def test_a_registry_without_rights_is_one_line(client, ask, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise MlflowException("no", error_code=PERMISSION_DENIED)

    monkeypatch.setattr(MlflowClient, "set_registered_model_alias", refuse)
    code, _, error = ask("--version", "1", "--to", "dev")
    assert code == 2 and "does not let you change the version of 'flickr'" in error and aliases(client) == {}


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--version", "9", "--to", "dev"], 2, "model 'flickr' has no version 9; it has 1, 2, 3, 4"),
        (["--version", "1", "--to", "dev", "--force", " "], 2, "--force needs a reason"),
        (["--to", "dev"], 2, "give either --version N or --rollback"),
        (["--version", "1", "--to", "dev", "--rollback"], 2, "give either --version N or --rollback"),
        (["--version", "1", "--to", "dev", "gates.latency.arguments.at_most_ms=1"], 2, "latency"),
        (["--version", "1", "--to", "dev", "+gates.example_reproduced.arguments.atmost=1"], 2, "did you mean 'at_most'"),
        (["--version", "1", "--to", "dev", "model=multimodal"], 2, "'model=multimodal': only gates can be changed here"),
        (["--version", "1", "--to", "dev", "+gates.mine.limit=1"], 2, "gates.mine: must have function and arguments, not limit"),
    ],
)
def test_a_mistake_at_the_command_line_is_one_line(ask, words, code, said):
    found, _, error = ask(*words)
    assert found == code and said in error and error.count("\n") == 1


def test_an_unknown_model_and_an_unknown_environment_are_named(store, capsys):
    assert main(["flikr", "--version", "1", "--to", "dev", "--tracking-uri", store]) == 2
    assert "no registered model 'flikr'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["flickr", "--version", "1", "--to", "production", "--tracking-uri", store])
    assert "invalid choice: 'production'" in capsys.readouterr().err


def test_a_store_that_cannot_be_reached_exits_1(capsys):
    assert main(["flickr", "--version", "1", "--to", "dev", "--tracking-uri", "http://127.0.0.1:9"]) == 1
    assert "no alias was changed" in capsys.readouterr().err


@pytest.mark.parametrize("environment", sorted(path.stem for path in (CONFIGS / "gates").glob("*.yaml")))
def test_the_gates_that_ship_exist_with_their_arguments(environment):
    gates = read_gates(environment)
    assert set(bind_gates(gates)) == set(gates) >= {"example_reproduced", "data_fingerprint"}


def test_each_environment_asks_for_all_that_the_one_before_asks_for():
    dev, staging, prod = (read_gates(name) for name in ("dev", "staging", "prod"))
    assert (
        dev.keys() < staging.keys() < prod.keys() and prod["latency"].arguments["at_most_ms"] < staging["latency"].arguments["at_most_ms"]
    )
