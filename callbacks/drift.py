"""Drift: a warning when explanations move while accuracy stays, or when an attention head dies or collapses."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from callbacks.watcher import Watcher, give_to_loggers
from insight.data.batch import ImageTextBatch
from insight.interpret.drift import (
    FILE,
    MAP_STABILITY,
    Entry,
    Limits,
    Look,
    append_entry,
    as_state,
    from_state,
    look,
    stability,
    warnings_of,
)
from insight.interpret.families import family_of
from insight.interpret.scorecard import ScoredMethod, check_methods, family_for
from insight.metric_names import check_metric_name

log = logging.getLogger(__name__)


class Drift(Watcher):
    """Compares every validation with the one before it, for the same few validation pairs; see ``insight/interpret/drift.py``.

    A warning names the method, or layer and head, and the figures. ``STAGE/drift.json`` has every validation; the metrics are
    ``insight/<method>/map_stability_v1`` and ``insight/drift_warnings``. Nothing of the training changes: no random number is drawn.
    Rank zero only; not in the sanity check; only within ``fit``. If something fails, the validation's checkpoint is saved first; the error
    is raised at the next training step or at the end.

    Args:
        methods: Whose maps are compared, by name. All heads of the model are looked at in any case.
        num_examples: Validation pairs, a picture and one caption each.
        metric: Accuracy: what must have stayed for moving maps to be worth a warning.
        limits: When a change is worth a warning.
        seed: Chooses the pairs.
        directory: Where to write outside of a stage.

    Raises:
        InputError: an unknown method, setting or metric, one that the model lacks, a number out of range, no folder to write to, a data
            module without ``probe``.
    """

    name = "drift"

    def __init__(
        self,
        methods: dict[str, ScoredMethod],
        num_examples: int = 8,
        metric: str = "val/mean_recall",
        limits: Limits = Limits(),  # noqa: B008  frozen
        seed: int = 0,
        directory: str | None = None,
    ) -> None:
        super().__init__(num_examples, seed, directory)
        check_metric_name(metric)
        self.methods, self.metric, self.limits = methods, metric, limits
        self._before: Look | None = None
        self._batch: ImageTextBatch | None = None
        self._path = Path()

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "before": None if self._before is None else as_state(self._before)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        before = state_dict["before"]
        self._before = None if before is None else from_state(before)

    def check(self, trainer: Trainer, pl_module: LightningModule) -> None:
        check_methods(self.methods, pl_module.model, "drift.init_args.methods")  # type: ignore[arg-type]

    def begin(self, trainer: Trainer, pl_module: LightningModule, batch: ImageTextBatch, folder: Path) -> None:
        self._batch, self._path = batch, folder / FILE

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Too early: the metric of this validation is not known yet."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_epoch_end(trainer, pl_module)

    def watch(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self._batch is not None, "begin() made it"
        model: Any = pl_module.model
        methods = {name: (family_for(model, method), method.call) for name, method in self.methods.items()}
        accuracy = trainer.callback_metrics.get(self.metric)
        when = trainer.current_epoch + 1, trainer.global_step
        now = look(family_of(model), self._batch, methods, *when, None if accuracy is None else float(accuracy))
        steady = {} if self._before is None else stability(now, self._before)
        warned = [] if self._before is None else warnings_of(now, self._before, self.limits, self.metric)
        for one in warned:
            log.warning("%s, epoch %d: %s", getattr(pl_module, "stage_name", "") or "training", now.epoch, one.message)
        append_entry(self._path, self.metric, Entry(*when, now.accuracy, steady, now.heads, tuple(warned)))
        figures = {f"insight/{name}/{MAP_STABILITY}": rho for name, rho in steady.items()} | {"insight/drift_warnings": float(len(warned))}
        for logger in trainer.loggers:
            logger.log_metrics(figures, step=trainer.global_step)
        self._before = now

    def finish(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._path.is_file():
            give_to_loggers(trainer, [self._path])

    def release(self) -> None:
        self._batch = None
