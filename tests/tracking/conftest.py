"""An empty SQLite store for each test, and none from outside."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from mlflow import MlflowClient
from safetensors.torch import save_file

from insight.data.text import Tokenizer
from insight.export.bundle import Parts, save
from insight.export.card import SECTIONS
from insight.models.multimodal import MultiModalTransformer
from insight.query_ranks import FILES, read_ranks
from tracking.registration import Registration
from tracking.run import TrackedRun
from tracking.store import open_client


@pytest.fixture(autouse=True)
def _no_store_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE", raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")


@pytest.fixture
def store(tmp_path: Path, migrated_store: Path) -> str:
    """The address of an empty SQLite store."""
    (tmp_path / "out").mkdir()
    shutil.copy(migrated_store, tmp_path / "out" / "mlflow.db")
    return f"sqlite:///{tmp_path / 'out' / 'mlflow.db'}"


@pytest.fixture
def client(store: str) -> MlflowClient:
    return open_client(store)


@pytest.fixture
def points(client: MlflowClient) -> Callable[[str, str], list[tuple[int, float]]]:
    """(run id, metric) -> the stored (step, value), by step."""
    return lambda run_id, name: sorted((metric.step, metric.value) for metric in client.get_metric_history(run_id, name))


# --- released models ---
GOOD, BAD, BETTER = [1] * 50 + [20] * 10, [1] * 20 + [20] * 40, [1] * 60  # ranks of as many queries


class Release(NamedTuple):
    run_dir: Path
    run_id: str
    address: str | None


class Released(NamedTuple):
    """Versions 1 GOOD, 2 BAD, 3 BETTER and 4, which was not tested, of the model flickr; each test has its own copy of the store."""

    store: str
    client: MlflowClient
    releases: list[Release]


def make_release(
    run_dir: Path,
    tracking_uri: str,
    ranks: Sequence[int] | None = BETTER,
    metrics: Mapping[str, float] | None = None,
    register: bool = True,
) -> Release:
    """A tracked run as the driver leaves it: bundle, ranks, figures, and the request to be registered; carried out unless told not to."""
    run = TrackedRun(run_dir, "tests", tracking_uri=tracking_uri, drain_seconds=20)
    run.start({"seed": 3}, tags={"data.fingerprint": "f" * 64})
    stage = run.stage_logger(0, "only")
    stage.log_metrics({"insight/rollout/deletion": 0.25, "train/loss": 1.0}, 0)
    run.finish_stage(stage, "FINISHED")
    run.log_metrics(metrics or {})
    (run_dir / "card").mkdir()
    card = "# Model card\n\n" + "\n\n".join(f"## {title}\n\nsomething" for title in SECTIONS[:6] + SECTIONS[7:])
    (run_dir / "card" / "model_card.md").write_text(card)
    sizes = {"vocab_size": 300, "image_size": 16, "patch_size": 8, "context_length": 12, "dim": 16, "heads": 2, "embed_dim": 8}
    arguments = {**sizes, "image_depth": 1, "text_depth": 1}
    torch.manual_seed(sum(map(ord, run_dir.name)))
    model, tokenizer = MultiModalTransformer(**arguments), Tokenizer.train(["a red circle"], 300)
    data = {"fingerprint": "f" * 64, "splits": {"train": 4}, "description": "tiny"}
    bundle = save(run_dir / "bundle", model, Parts(arguments, tokenizer, "a red circle"), {"seed": 3}, data, run_dir / "card")
    run.log_artifact(bundle.folder)
    tags = {"bundle.sha256": bundle.sha256}
    if ranks is not None:
        write_ranks(run_dir, ranks)
        for file in FILES:
            run.log_artifact(run_dir / file)
        tags["ranks.sha256"] = read_ranks(run_dir)[1]
    run.register(Registration("flickr", tags, "a test"))
    (run_dir / "summary.json").write_text("{}")
    run.finish("FINISHED")
    return Release(run_dir, run.run_id or "", run.deliver_registration() if register else None)


@pytest.fixture
def release(tmp_path: Path, store: str) -> Callable[..., Release]:
    """``make_release`` into the test's empty store."""

    def _release(tracking_uri: str = store, **changes: Any) -> Release:
        return make_release(tmp_path / f"RUN-{len(list(tmp_path.glob('RUN-*')))}", tracking_uri, **changes)

    return _release


@pytest.fixture(scope="session")
def _released(tmp_path_factory: pytest.TempPathFactory, migrated_store: Path) -> tuple[Path, list[Release]]:
    folder = tmp_path_factory.mktemp("released")
    shutil.copy(migrated_store, folder / "mlflow.db")
    store = f"sqlite:///{folder / 'mlflow.db'}"
    first = make_release(folder / "RUN-1", store, GOOD, {"insight/robustness/blur": 0.75})
    return folder / "mlflow.db", [
        first,
        *(make_release(folder / f"RUN-{n}", store, ranks) for n, ranks in ((2, BAD), (3, BETTER), (4, None))),
    ]


@pytest.fixture
def released(tmp_path: Path, _released: tuple[Path, list[Release]]) -> Released:
    database, releases = _released
    store = f"sqlite:///{shutil.copy(database, tmp_path / 'released.db')}"
    return Released(store, open_client(store), releases)


def write_ranks(folder: Path, ranks: Sequence[int]) -> None:
    """As many pictures as ranks, one caption each; both directions have the same ranks."""
    names = [f"{number}.jpg" for number in range(len(ranks))]
    rank, best = torch.tensor(ranks), torch.arange(len(ranks))[:, None]
    directions = ("image_to_text", "text_to_image")
    tensors = {f"test/{one}": rank.clone() for one in directions} | {f"test/{one}_best": best.clone() for one in directions}
    save_file(tensors, folder / "ranks.safetensors")
    captions = [f"{name}#0" for name in names]
    (folder / "ranks.json").write_text(json.dumps({"test/image_to_text": names, "test/text_to_image": captions, "texts": captions}))
