"""WeightAverage: an exponential moving average of the weights is validated, kept as the best, and handed on."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging

from insight.errors import InputError


class WeightAverage(EMAWeightAveraging):
    """Lightning's average (``decay`` of it stays at every step), in place until the validation's checkpoint is saved: ``best.ckpt`` holds
    the weights whose figures it was chosen by. Put it last among the callbacks, so that those that look into the model see the average.

    Lightning itself puts the trained weights back before ``on_validation_end``, and a checkpoint of weights alone skips its hook.

    Args:
        decay: From 0 (no average) to below 1.

    Raises:
        InputError: ``decay`` is out of range.
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise InputError(f"weight_average.init_args.decay={decay}: must be at least 0 and below 1")
        super().__init__(decay=decay)
        self._in_place = False

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_epoch_start(trainer, pl_module)
        self._in_place = self._average_model is not None

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Not yet: see the class."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._give_back(pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._give_back(pl_module)
        super().on_train_epoch_end(trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._give_back(pl_module)

    def _give_back(self, pl_module: LightningModule) -> None:
        if self._in_place:
            self._swap_models(pl_module)
            self._in_place = False
