"""NegativeFigures: how many of a training batch's negatives are none."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from insight.data.batch import ImageTextBatch
from insight.diagnostics import false_negative_rate
from insight.errors import InputError


class NegativeFigures(Callback):
    """Logs ``train/false_negative_rate`` every ``log_every_n_steps``: of the pairs of captions of different pictures that the batch pushes
    apart, the part that says the same. Of the first process's share of the batch.

    Args:
        overlap: Common words as a part of all words of the two captions, from which on they say the same; 1 = the same words.
    """

    def __init__(self, overlap: float = 0.8) -> None:
        if not 0 < overlap <= 1:
            raise InputError(f"negative_figures.init_args.overlap={overlap}: must be above 0 and at most 1")
        self.overlap = overlap

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        step = trainer.global_step
        due = (step + 1) % trainer.log_every_n_steps == 0  # type: ignore[attr-defined]  # set where it is made
        if not due or not trainer.is_global_zero or not isinstance(batch, ImageTextBatch):
            return
        rate = false_negative_rate(batch.texts, batch.image_id[batch.caption_row].tolist(), self.overlap)
        for logger in trainer.loggers:
            logger.log_metrics({"train/false_negative_rate": rate}, step)
