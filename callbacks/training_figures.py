"""TrainingFigures: learning rate and gradient of each part, examples per second; a part that no gradient reaches is named."""

from __future__ import annotations

import logging
import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Optimizer

from insight.diagnostics import gradient_norms, towers, trained_parts
from insight.errors import InputError

log = logging.getLogger(__name__)


class TrainingFigures(Callback):
    """Logs ``train/learning_rate/<part>``, ``train/gradient_norm/<part>`` and ``train/<what>_per_second`` every ``log_every_n_steps``;
    the module's ``throughput(batch)`` says what is counted: pairs, tokens, pictures.

    A part of the model that should train and gets no gradient several times in a row is dead: a warning names it, once a stage.

    Args:
        dead_after: How many logged steps in a row without a gradient.
    """

    def __init__(self, dead_after: int = 3) -> None:
        if dead_after < 1:
            raise InputError(f"training_figures.init_args.dead_after={dead_after}: must be at least 1")
        self.dead_after = dead_after
        self.dead: set[str] = set()
        self._silent: dict[str, int] = {}
        self._parts: dict[str, list[torch.nn.Parameter]] = {}
        self._towers: set[str] = set()
        self._rates: dict[str, list[dict[str, Any]]] = {}
        self._counts: dict[str, int] = {}  # since the last log
        self._seconds = 0.0
        self._mark: float | None = None  # when the batch before ended

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._parts = trained_parts(pl_module.named_parameters())
        self._towers = towers(self._parts)
        groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
        members = [{id(parameter) for parameter in group["params"]} for group in groups]
        for part, parameters in self._parts.items():
            own = {id(parameter) for parameter in parameters}
            self._rates[part] = [group for group, ids in zip(groups, members, strict=True) if ids & own]

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        step = trainer.global_step
        if not trainer.is_global_zero or (step + 1) % trainer.log_every_n_steps:  # type: ignore[attr-defined]  # set where it is made
            return
        norms = gradient_norms(self._parts)
        values = torch.stack([norm.float() for norm in norms.values()]).tolist()  # one wait for the device, not one per part
        lengths = dict(zip(norms, values, strict=True))
        figures = {f"train/gradient_norm/{part}": length for part, length in lengths.items()}
        figures["train/gradient_norm"] = sum(length**2 for length in values) ** 0.5
        figures |= {f"train/learning_rate/{part}": max(group["lr"] for group in groups) for part, groups in self._rates.items()}
        if self._seconds > 0:
            figures |= {f"train/{what}_per_second": count * trainer.world_size / self._seconds for what, count in self._counts.items()}
            self._counts, self._seconds = {}, 0.0
        for logger in trainer.loggers:
            logger.log_metrics(figures, step)  # not through `self.log`, which costs ten times as much
        self._look_for_the_dead(lengths, step, pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        now = time.perf_counter()
        if self._mark is not None:
            self._seconds += now - self._mark
            for what, count in pl_module.throughput(batch).items():  # type: ignore[operator]
                self._counts[what] = self._counts.get(what, 0) + count
        self._mark = now

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._mark = None  # the time until the next batch is not training's

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._mark = None

    def _look_for_the_dead(self, lengths: dict[str, float], step: int, pl_module: LightningModule) -> None:
        for part in self._towers:
            self._silent[part] = 0 if lengths[part] > 0 else self._silent.get(part, 0) + 1
            if self._silent[part] >= self.dead_after and part not in self.dead:
                self.dead.add(part)
                log.warning(
                    "'%s' is dead: it should train in stage '%s', but no gradient has reached it at step %d and %d logged steps before. "
                    "Name a loss that uses it, or take it out of the stage's `train`",
                    part,
                    getattr(pl_module, "stage_name", ""),
                    step,
                    self.dead_after - 1,
                )
