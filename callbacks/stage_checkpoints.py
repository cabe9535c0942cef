"""StageCheckpoints: last.ckpt to resume from, best.ckpt to hand on, final.ckpt; early stopping; a clean stop on Ctrl-C."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from insight.errors import InputError


class StageCheckpoints(Checkpoint):
    """Keeps a stage's checkpoints in its folder.

    ``last.ckpt`` is taken only where Lightning 2.6 resumes without losing anything: at the end of a batch that is neither the epoch's
    last, nor followed by a validation, nor in the middle of an accumulation; and at the end of an epoch, after its validation
    (Lightning #18060, #19815, #19549). ``best.ckpt`` and ``final.ckpt`` hold weights and the tokenizer only.
    All are written beside their place and renamed, so a full disk or a kill leaves the previous one whole.

    Args:
        folder: The stage's folder.
        monitor: Metric that chooses the best; None: the last epoch is the best.
        mode: Whether ``max`` or ``min`` is best.
        patience: Stop after so many validations without a better one; None: never.
        every_n_steps: Optimiser steps between two saves within an epoch.
        stop: Set by the signal handler; the fit stops at the next safe point, saved.
    """

    def __init__(
        self,
        folder: str | Path,
        monitor: str | None = None,
        mode: str = "max",
        patience: int | None = None,
        every_n_steps: int = 50,
        stop: threading.Event | None = None,
    ) -> None:
        self.folder, self.monitor, self.mode, self.patience, self.every_n_steps = Path(folder), monitor, mode, patience, every_n_steps
        self.stop = stop or threading.Event()
        self.best_score: float | None = None
        self.best_epoch: int | None = None
        self.best_metrics: dict[str, float] = {}
        self.waited = 0
        self._last_saved = -1

    def state_dict(self) -> dict[str, Any]:
        return {"best_score": self.best_score, "best_epoch": self.best_epoch, "best_metrics": self.best_metrics, "waited": self.waited}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_score, self.best_epoch, self.waited = state_dict["best_score"], state_dict["best_epoch"], state_dict["waited"]
        self.best_metrics = state_dict["best_metrics"]

    @property
    def out_of_patience(self) -> bool:
        return self.patience is not None and self.waited >= self.patience

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._last_saved = trainer.global_step if (self.folder / "last.ckpt").exists() else -1
        if self.out_of_patience:  # killed between the decision to stop and the stage's end
            trainer.should_stop = True

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        due = trainer.global_step - max(self._last_saved, 0) >= self.every_n_steps
        stop_now = self.stop.is_set() and trainer.world_size == 1  # several processes stop together, where all of them save
        if not (due or stop_now) or trainer.is_last_batch:
            return
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        interval = trainer.val_check_batch
        if trainer.enable_validation and interval not in (None, float("inf")) and (batch_idx + 1) % int(interval) == 0:
            return
        self._save_last(trainer)
        self._stop_if_asked(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
        if self.monitor is None:
            self.best_metrics = metrics
            return
        if self.monitor not in trainer.callback_metrics:
            known = ", ".join(sorted(name for name in trainer.callback_metrics if name.startswith("val/")))
            raise InputError(f"monitor '{self.monitor}' was not logged by the validation; known: {known}")
        score = float(trainer.callback_metrics[self.monitor])
        better = self.best_score is None or (score > self.best_score if self.mode == "max" else score < self.best_score)
        if better:
            self.best_score, self.best_epoch, self.best_metrics, self.waited = score, trainer.current_epoch, metrics, 0
            trainer.save_checkpoint(self.folder / "best.ckpt", weights_only=True)
        else:
            self.waited += 1
        if self.out_of_patience:
            trainer.should_stop = True

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save_last(trainer)
        self._stop_if_asked(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.save_checkpoint(self.folder / "final.ckpt", weights_only=True)
        if self.monitor is None and trainer.is_global_zero:
            temporary = self.folder / "best.ckpt.tmp"
            shutil.copyfile(self.folder / "final.ckpt", temporary)
            os.replace(temporary, self.folder / "best.ckpt")
        if self.monitor is None:
            self.best_epoch = trainer.current_epoch - 1
        trainer.strategy.barrier()  # the next stage reads it on every process

    def _save_last(self, trainer: Trainer) -> None:
        if trainer.global_step != self._last_saved:
            trainer.save_checkpoint(self.folder / "last.ckpt")
            self._last_saved = trainer.global_step

    def _stop_if_asked(self, trainer: Trainer) -> None:
        if trainer.strategy.broadcast(self.stop.is_set()):  # rank zero decides for all
            raise KeyboardInterrupt
