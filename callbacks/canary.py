"""Canary: before the first training on an accelerator, check that it computes what the CPU computes."""

from __future__ import annotations

import datetime
import json
import logging
import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from insight.doctor import as_json, device_name, failures, run_checks
from insight.doctor_model import default_model
from insight.errors import InputError
from insight.models.multimodal import MultiModalTransformer

log = logging.getLogger(__name__)


class Canary(Callback):
    """Runs the doctor's checks at the first fit on a device, in the run's precision and with the run's model.

    A pass is remembered in ``CACHE_DIR/doctor-DEVICE-TORCH.json`` for this device, torch release, precision and model, a failure never.
    The result is written to ``RUN/doctor.json`` and handed to every logger that keeps artifacts.

    Args:
        cache_dir: Folder of the record.
        strict: Whether a failed check stops the run; False only warns.
    """

    def __init__(self, cache_dir: str = "outputs/cache", strict: bool = True) -> None:
        self.cache_dir = Path(cache_dir)
        self.strict = strict

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        failed: list[str] = []
        if trainer.is_global_zero:
            result, failed = self._examine(trainer.strategy.root_device, precision_dtype(str(trainer.precision)), pl_module)
            _hand_over(result, trainer, pl_module)
        failed = trainer.strategy.broadcast(failed)  # all processes stop, or none
        if not failed:
            return
        message = "this device computes wrongly:\n  " + "\n  ".join(failed)
        if self.strict:
            raise InputError(f"{message}\nto train nevertheless: callbacks.canary.init_args.strict=false")
        if trainer.is_global_zero:
            log.warning(message)

    def _examine(self, device: torch.device, dtype: torch.dtype, pl_module: LightningModule) -> tuple[dict[str, Any], list[str]]:
        """The record (old or new), and one line per failure."""
        model = getattr(pl_module, "model", None)
        model = model if isinstance(model, MultiModalTransformer) else default_model()
        path = self.cache_dir / f"doctor-{device.type}-{torch.__version__.split('+')[0]}.json"
        key = f"{device_name(device)}, {dtype}, {describe(model)}"
        records = read_records(path)
        if key in records:
            return records[key], []
        results = run_checks(device, dtype, lambda: model)
        record = {**as_json(results, device, dtype), "checked_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")}
        failed = failures(results)
        if not failed:
            write_atomically(path, {**records, key: record})
        return record, failed


def precision_dtype(precision: str) -> torch.dtype:
    """What Lightning's ``precision`` computes in: ``bf16-mixed`` -> bfloat16, ``16-true`` -> float16, everything else float32."""
    if precision.startswith("bf16"):
        return torch.bfloat16
    return torch.float16 if precision.startswith("16") else torch.float32


def describe(model: torch.nn.Module) -> str:
    """Class and size, e.g. ``MultiModalTransformer of 1200000 parameters``: what decides which kernels a training step runs."""
    return f"{type(model).__name__} of {sum(parameter.numel() for parameter in model.parameters())} parameters"


def read_records(path: Path) -> dict[str, Any]:
    """Past passes by key; empty where there is no file, or one that is no record."""
    try:
        records = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return records if isinstance(records, dict) else {}


def write_atomically(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(content, indent=1))
    os.replace(temporary, path)


def _hand_over(result: dict[str, Any], trainer: Trainer, pl_module: LightningModule) -> None:
    stage_dir = getattr(pl_module, "stage_dir", None)
    if stage_dir is None:
        return
    path = Path(stage_dir).parent / "doctor.json"
    write_atomically(path, result)
    for logger in trainer.loggers:
        if hasattr(logger, "log_artifact"):
            logger.log_artifact(path)
