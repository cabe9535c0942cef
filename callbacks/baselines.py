"""Baselines: beside every test result, what colours alone and what captions alone reach on the same pictures."""

from __future__ import annotations

import logging
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from insight.baselines import Baseline, BlindPrior, ColourHistogram, Negative, evaluate_baseline

log = logging.getLogger(__name__)


class Baselines(Callback):
    """Fit both baselines on the training split and log their figures on the test split as ``test/baseline/<name>/<what>``."""

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]  # Trainer sets it, its class does not declare it
        if not data.splits()["train"]:
            log.info("no baselines: these data have no training split to fit them on")
            return
        train_images, train_captions = data.pairs("train")
        images, captions = data.pairs("test")
        rows = {filename: row for row, filename in enumerate(data.splits()["test"])}
        found = data.hard_negatives("test")
        negatives = [Negative(rows[one["filename"]], one["caption"], one["negative"], one["seen"]) for one in found]
        baselines: dict[str, Baseline] = {
            "colour_histogram": ColourHistogram.fit(train_images, train_captions),
            "blind_prior": BlindPrior.fit(train_images, train_captions),
        }
        for name, baseline in baselines.items():
            figures = evaluate_baseline(baseline, images, captions, negatives)
            pl_module.log_dict({f"test/baseline/{name}/{what}": value for what, value in figures.items()}, rank_zero_only=True)
