"""StageProgress: a bar per stage where somebody watches, a line per epoch where the output goes to a file."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar


class StageProgress(TQDMProgressBar):
    """Args:
    title: e.g. ``stage 2/3 cross_modal``.
    metrics: Names of the figures to show.
    """

    def __init__(self, title: str, metrics: Iterable[str]) -> None:
        self.watched = sys.stderr.isatty()
        super().__init__(refresh_rate=5 if self.watched else 0, leave=False)
        self.title, self.metrics = title, frozenset(metrics)

    def init_train_tqdm(self) -> Any:
        bar = super().init_train_tqdm()
        bar.set_description(self.title)
        return bar

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        super().on_train_epoch_start(trainer)
        self.train_progress_bar.set_description(f"{self.title}, epoch {trainer.current_epoch + 1}/{trainer.max_epochs}")

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        return {name: f"{float(value):.3f}" for name, value in trainer.callback_metrics.items() if name in self.metrics}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        if trainer.is_global_zero:
            figures = "  ".join(f"{name} {value}" for name, value in sorted(self.get_metrics(trainer, pl_module).items()))
            line = f"  {self.title}  epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  {figures}"
            if self.watched:
                self.print(line)
            else:  # no bar to print above of
                sys.stdout.write(line + "\n")
                sys.stdout.flush()
