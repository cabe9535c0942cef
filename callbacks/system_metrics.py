"""SystemMetrics: processor, memory and accelerator, every few seconds, under MLflow's own names."""

from __future__ import annotations

import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from insight.errors import InputError
from insight.system import SystemSampler


class SystemMetrics(Callback):
    """Logs what ``insight.system.SystemSampler`` says of this machine (rank zero's), at the step that the training has reached.

    Args:
        every_n_seconds: Between two samples; the last is taken when a stage ends.
    """

    def __init__(self, every_n_seconds: float = 10.0) -> None:
        if every_n_seconds <= 0:
            raise InputError(f"system_metrics.init_args.every_n_seconds={every_n_seconds}: must be above 0")
        self.every_n_seconds = every_n_seconds
        self._sampler: SystemSampler | None = None
        self._due = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero and trainer.loggers:
            self._sampler = SystemSampler(trainer.strategy.root_device)
            self._due = time.monotonic() + self.every_n_seconds

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self._sampler is not None and time.monotonic() >= self._due:
            self._log(trainer, self._sampler)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._sampler is not None:
            self._log(trainer, self._sampler)

    def _log(self, trainer: Trainer, sampler: SystemSampler) -> None:
        figures = sampler.sample()
        for logger in trainer.loggers:
            logger.log_metrics(figures, max(0, trainer.global_step - 1))
        self._due = time.monotonic() + self.every_n_seconds
