"""ReportObjective: tells a sweep the figure of every validation, and ends the trial when the sweep says so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from insight.errors import InputError, Pruned

STAGE_STEPS = 1000  # of the first validation of a stage above that of the stage before: trials are compared at the same place


class ReportObjective(Callback):
    """Reports ``metric`` after every validation of a fit.

    Args:
        metric: Name of the figure, e.g. ``val/mean_recall``.
        stages: Names of the stages in the order in which they run.
        report: ``(step, value) -> go on?``; the step is 1000 times the stage's place plus the number of the validation in it, both from 0.
            A validation that is repeated after a kill is reported a second time, with the same step and value.
    """

    def __init__(self, metric: str, stages: list[str], report: Callable[[int, float], bool]) -> None:
        self.metric, self.stages, self.report = metric, stages, report
        self.validations = 0

    def state_dict(self) -> dict[str, Any]:
        return {"validations": self.validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.validations = state_dict["validations"]

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        if self.metric not in trainer.callback_metrics:
            known = ", ".join(sorted(name for name in trainer.callback_metrics if name.startswith("val/")))
            raise InputError(f"sweep.metric='{self.metric}' was not logged by the validation; known: {known}")
        step = STAGE_STEPS * self.stages.index(str(pl_module.stage_name)) + self.validations
        self.validations += 1
        value = float(trainer.callback_metrics[self.metric])
        if not self.report(step, value):
            raise Pruned(f"{self.metric} {value:.4g} after validation {self.validations} of stage {pl_module.stage_name}")
