"""The checks run once per device, release, precision and model; a failure stops the run and is never remembered."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.loggers.logger import DummyLogger
from torch import Tensor
from torch.utils.data import DataLoader

import callbacks.canary
from callbacks.canary import Canary, precision_dtype
from insight.errors import InputError
from insight.models.multimodal import MultiModalTransformer


class Module(L.LightningModule):
    def __init__(self, stage_dir: Path | None) -> None:
        super().__init__()
        self.model = MultiModalTransformer(30, image_size=16, context_length=5, dim=16, image_depth=1, text_depth=1, heads=2, embed_dim=8)
        self.stage_dir = stage_dir

    def training_step(self, batch: Tensor) -> Tensor:
        return self.model.encode_image(batch).embedding.sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


class ArtifactLogger(DummyLogger):
    def __init__(self) -> None:
        super().__init__()
        self.artifacts: list[Path] = []

    def log_artifact(self, local_path: Path, artifact_path: str | None = None) -> None:
        self.artifacts.append(local_path)


def fit(canary: Canary, folder: Path | None, logger: DummyLogger | None = None, precision: str = "32-true") -> Module:
    torch.manual_seed(0)
    module = Module(None if folder is None else folder / "01-stage")
    trainer = L.Trainer(
        accelerator="cpu",
        precision=precision,
        max_steps=1,
        logger=logger or False,
        callbacks=[canary],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    trainer.fit(module, DataLoader(torch.randn(2, 3, 16, 16), batch_size=2))
    return module


@pytest.fixture
def count_runs(monkeypatch) -> list[torch.dtype]:
    runs: list[torch.dtype] = []
    run_checks = callbacks.canary.run_checks

    def counted(device, dtype, model_factory):
        runs.append(dtype)
        return run_checks(device, dtype, model_factory)

    monkeypatch.setattr(callbacks.canary, "run_checks", counted)
    return runs


def test_a_pass_is_recorded_in_the_run_and_handed_to_the_logger(tmp_path):
    logger = ArtifactLogger()
    fit(Canary(str(tmp_path / "cache")), tmp_path, logger)
    record = json.loads((tmp_path / "doctor.json").read_text())
    assert record["passed"] and record["device"] == "cpu" and record["torch"] == torch.__version__
    assert record["checks"][-1]["name"] == "training step of MultiModalTransformer"  # the module's own model took the step
    assert logger.artifacts == [tmp_path / "doctor.json"]


def test_checks_run_again_only_for_another_precision(tmp_path, count_runs):
    cache = str(tmp_path / "cache")
    fit(Canary(cache), tmp_path / "first")
    fit(Canary(cache), tmp_path / "second")
    assert count_runs == [torch.float32]
    assert (tmp_path / "first" / "doctor.json").read_text() == (tmp_path / "second" / "doctor.json").read_text()
    fit(Canary(cache), tmp_path / "third", precision="bf16-mixed")
    assert count_runs == [torch.float32, torch.bfloat16]
    release = torch.__version__.split("+")[0]
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [f"doctor-cpu-{release}.json"]


def test_training_with_the_canary_is_bitwise_training_without_it(tmp_path, monkeypatch):
    with_canary = fit(Canary(str(tmp_path)), None)
    monkeypatch.setattr(Canary, "on_fit_start", lambda self, trainer, pl_module: None)
    without = fit(Canary(str(tmp_path)), None)
    pairs = zip(with_canary.parameters(), without.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_a_failed_check_stops_the_run_names_the_operator_and_is_not_remembered(tmp_path, monkeypatch, count_runs):
    gelu = F.gelu
    monkeypatch.setattr(F, "gelu", lambda x, approximate="none": gelu(x, approximate=approximate) * 1.02)
    canary = Canary(str(tmp_path / "cache"))
    for _ in range(2):
        with pytest.raises(InputError, match=r"gelu \(GELU\): error 0.02.*trainer=cpu") as stopped:
            fit(canary, tmp_path)
    assert "callbacks.canary.init_args.strict=false" in str(stopped.value)
    assert len(count_runs) == 2
    assert json.loads((tmp_path / "doctor.json").read_text())["passed"] is False


def test_a_failed_check_only_warns_where_asked_to(tmp_path, monkeypatch, caplog):
    gelu = F.gelu
    monkeypatch.setattr(F, "gelu", lambda x, approximate="none": gelu(x, approximate=approximate) * 1.02)
    with caplog.at_level(logging.WARNING, logger="callbacks.canary"):
        fit(Canary(str(tmp_path / "cache"), strict=False), tmp_path)
    assert "gelu (GELU)" in caplog.text


def test_a_record_that_cannot_be_read_is_made_anew(tmp_path, count_runs):
    path = tmp_path / f"doctor-cpu-{torch.__version__.split('+')[0]}.json"
    path.write_text("{ half a rec")
    fit(Canary(str(tmp_path)), None)
    assert len(count_runs) == 1 and len(json.loads(path.read_text())) == 1


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("32-true", torch.float32), ("bf16-mixed", torch.bfloat16), ("bf16-true", torch.bfloat16), ("16-mixed", torch.float16)],
)
def test_the_run_is_checked_in_its_own_precision(precision, dtype):
    assert precision_dtype(precision) == dtype
