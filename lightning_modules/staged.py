"""What every module that trains in stages shares, whatever its task: losses by name, the checked step, optimiser and schedule.

A task is a subclass of ``StagedModule``; the places that it fills in are marked there. What the driver asks of any data module is
``StagedData``.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import lightning as L
import torch
from torch import Tensor, nn

from insight.errors import InputError, TrainingFailure
from insight.export.building import plain_arguments
from insight.export.bundle import Parts
from insight.export.card import NOT_MEASURED, NOT_TESTED, TaskFacts, figures_table
from insight.gather import alone
from insight.objective import BoundLoss, Objective
from insight.optim import build_optimizer, build_schedule
from insight.stages import Stage, bind_losses, derive_seed


@runtime_checkable
class StagedData(Protocol):
    """What the driver asks of a LightningDataModule. ``configure_stage`` takes the stage's seed and, by name, those fields of
    ``insight.stages.StageData`` that mean something for these data; the others are refused by name.

    In training, batches must be a pure function of (stage seed, epoch), so that a killed run goes on to the same weights:
    ``datamodules/loading.py``. ``state_dict`` holds the ``fingerprint`` and what the weights cannot be used without (a tokenizer).
    """

    generated: bool  # a program makes the data, which the first line of a run then says

    def describe(self) -> str:
        """One line on what is read; needs no files where the data are generated."""
        ...

    def fingerprint(self) -> str:
        """Changes with the data, not with the place where they lie."""
        ...

    def splits(self) -> dict[str, list[str]]:
        """Names of the examples by split, as kept in RUN/splits.json."""
        ...


class NamedQuantities:
    """What a loss may ask for by the name of a parameter: the public cached properties, computed once, and only when asked."""

    @classmethod
    def names(cls) -> set[str]:
        """Every quantity that a loss may name."""
        return {name for kind in cls.__mro__ for name, value in vars(kind).items() if isinstance(value, cached_property) and name[0] != "_"}


class Shown(NamedTuple):
    """What the table at the end of a run shows.

    ``metrics`` are names without their split: ``perplexity`` stands for ``val/perplexity`` and, in the test, for ``test/perplexity``.
    """

    title: str
    metrics: dict[str, str]  # name -> heading of the column
    tests: dict[str, str]  # label of a row -> what stands before the names: ``test/``, ``test/baseline/unigram/``


class StagedModule(L.LightningModule):
    """A model, its losses and its steps, in the stages of a plan.

    A subclass defines ``quantities_of``, ``validation_step``, ``test_step`` and what is marked "of the task" below.
    """

    # --- of the task: plain facts ---
    quantities: ClassVar[type[NamedQuantities]]
    shown: ClassVar[Shown]
    example_word: ClassVar[str] = "examples"  # what a batch is made of, in messages
    training_only: ClassVar[frozenset[str]] = frozenset()  # quantities that an evaluation batch lacks: their terms are left out there
    data_lack: frozenset[str] = frozenset()  # quantities that no batch of these data has: a stage leaves their terms out, and says so
    data_needs: ClassVar[tuple[str, ...]] = ()  # what the data module must offer beyond StagedData
    progress: ClassVar[tuple[str, ...]] = ("train/loss", "val/loss")  # metrics beside the bar
    input_files: ClassVar[tuple[str, ...]] = ()  # that ``save_inputs`` writes into the run's folder
    result_files: ClassVar[tuple[str, ...]] = ()  # that ``save_results`` writes
    tracked: ClassVar[tuple[str, ...]] = ("val/loss",)  # metrics on the model card, the most important first
    purpose: ClassVar[str] = ""  # what the model does, on its card
    usage: ClassVar[str] = ""  # Python on its card that uses ``model``, a loaded bundle

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model
        self.stage: Stage | None = None
        self.stage_name = ""
        self.stage_dir: Path | None = None
        self.stage_seed = 0
        self.total_steps = 1  # of the stage
        self.losses = Objective({}, model)
        self._previous: list[Any] = []  # in a list: neither trained, nor saved, nor moved as a part of this module

    @property
    def settled(self) -> dict[str, Any]:
        """Arguments that the constructor has found out itself (a checkpoint's sizes), for the config that the run keeps: with them the
        model is built once more when what they were read from has gone."""
        return {}

    # --- of the task: steps ---
    @abstractmethod
    def quantities_of(self, batch: Any, generator: torch.Generator) -> NamedQuantities:
        """Of one batch. ``generator``: on the CPU, for what is drawn; equal on all devices."""

    @abstractmethod
    def example_names(self, batch: Any) -> Sequence[str]:
        """Of the batch's examples: what a failure names, and by whose number means are weighted."""

    def throughput(self, batch: Any) -> dict[str, int]:
        """What ``train/<what>_per_second`` counts in a batch."""
        return {"examples": len(self.example_names(batch))}

    def step_figures(self) -> dict[str, Tensor]:
        """What else is logged at every training step, by metric name."""
        return {}

    # --- of the task: around the training ---
    def check_data(self, data: Any) -> None:
        """Called when the data are set up, before anything is trained.

        Raises:
            InputError: the model cannot read them.
        """

    def save_inputs(self, run_dir: Path, data: Any) -> None:
        """Write ``input_files``, before training."""

    def save_results(self, run_dir: Path, data: Any) -> None:
        """Write ``result_files``, after the test."""

    def save_predictions(self, rows: list[Any], folder: Path) -> str:
        """Write what ``predict_step`` returned for every batch. Returns the line that says where it is. Beside every ``predict_step``."""
        raise NotImplementedError

    def references(self, data: Any, split: str) -> dict[str, dict[str, float]]:
        """Rows of the table to compare with, e.g. chance level: label -> value by name in ``shown.metrics``."""
        return {}

    def remarks(self, test: dict[str, float]) -> list[str]:
        """Lines below the table, from the test's figures."""
        return []

    # --- of the task: what a finished run leaves for others ---
    def parts(self, given: Mapping[str, Any], data: Any) -> Parts:
        """What the model is used with outside of a run. ``given``: the config's ``model.init_args``."""
        return Parts(plain_arguments(type(self.model), given))

    def card(self, run_dir: Path, data: Any, test: dict[str, float]) -> TaskFacts:
        """What is of this task on the model card. ``test``: figures by name; empty where there was no test."""
        beside = self.references(data, "test") if test else {}
        results = figures_table(test, self.shown.metrics, self.shown.tests, beside)
        failures = self.failures(run_dir) if test else NOT_TESTED
        return TaskFacts(self.purpose, self.example_word, self.tracked, self.shown.title, results, failures, self.usage)

    def failures(self, run_dir: Path) -> str:
        """Where the test went wrong, as Markdown, from ``result_files``."""
        return f"{NOT_MEASURED}: the test of this task keeps no list of them."

    # --- stages ---
    def check_stage(self, name: str, stage: Stage) -> dict[str, BoundLoss]:
        """The stage's losses with their functions.

        Raises:
            InputError: a loss does not exist or asks for what this model cannot compute.
        """
        return bind_losses(stage.losses, self.quantities.names(), f"stages.{name}.losses")

    def begin_stage(self, name: str, stage: Stage, folder: Path, seed: int) -> None:
        """Called by StageScheduler when the weights are those with which the stage starts."""
        self.losses = Objective(self.check_stage(name, stage), self.model, stage.balance, f"stages.{name}")
        self.train()  # the stage before has left its frozen parts in evaluation mode
        self.stage, self.stage_name, self.stage_dir, self.stage_seed = stage, name, folder, seed
        needs_previous = any(need.startswith("previous_") for need in self.losses.needs)
        self._previous = [copy.deepcopy(self.model).eval().requires_grad_(False)] if needs_previous else []

    def on_fit_start(self) -> None:
        for model in self._previous:
            model.to(self.device)

    @property
    def _before(self) -> Any | None:
        """The model as the stage before left it, where a loss of this stage needs it."""
        return self._previous[0] if self._previous else None

    # --- steps ---
    def loss_terms(self, batch: Any, seed: int, training: bool) -> dict[str, Tensor]:
        """Weighted terms by name. In evaluation, terms over what is there only in training are left out."""
        values = self.quantities_of(batch, torch.Generator().manual_seed(seed))
        lacking = self.data_lack if training else self.data_lack | self.training_only
        return self.losses.terms(values, self.stage_progress if training else 1.0, lacking)

    @property
    def stage_progress(self) -> float:
        """Part of the stage's steps that is done, from 0 to 1."""
        return min(1.0, self.trainer.global_step / self.total_steps)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        terms = self.loss_terms(batch, derive_seed(self.stage_seed, self.trainer.current_epoch, batch_idx), training=True)
        loss = self.losses.total(terms)
        names = self.example_names(batch)
        if not torch.isfinite(loss):
            listed = ", ".join(f"{name}={float(value.detach()):g}" for name, value in terms.items())
            raise TrainingFailure(
                f"the loss is not finite at step {self.trainer.global_step} of stage '{self.stage_name}' ({listed}); "
                f"{self.example_word} of this batch: {', '.join(names)}. The checkpoints in {self.stage_dir} are from before this step. "
                f"Look at these {self.example_word}, or lower the learning rate"
            )
        self.log_dict(
            {"train/loss": loss.detach(), **{f"train/loss/{name}": value.detach() for name, value in terms.items()}}, batch_size=len(names)
        )
        self.log_dict({f"train/loss_weight/{name}": weight for name, weight in self.losses.changing_weights(self.stage_progress).items()})
        self.log("train/learning_rate", self.trainer.optimizers[0].param_groups[0]["lr"])
        for name, value in self.step_figures().items():
            self.log(name, value)
        return loss

    def log_validation_loss(self, batch: Any, batch_idx: int) -> None:
        """``val/loss`` and its terms, with lots that are the same in every validation. Several devices each take the loss of their own
        batches, whose sizes differ; the mean is over the examples of all of them."""
        with alone():
            terms = self.loss_terms(batch, derive_seed(0, batch_idx), training=False)
            values = {"val/loss": self.losses.total(terms), **{f"val/loss/{name}": value for name, value in terms.items()}} if terms else {}
        self.log_dict(values, on_epoch=True, batch_size=len(self.example_names(batch)), sync_dist=self.trainer.world_size > 1)

    # --- optimiser ---
    def configure_optimizers(self) -> Any:
        if self.stage is None:
            raise InputError("this module trains in stages: python train.py, or python -m lightning_modules.cli fit --stage NAME")
        key = f"stages.{self.stage_name}"
        optimizer = build_optimizer(self.named_parameters(), self.stage, key)
        self.total_steps = max(1, int(self.trainer.estimated_stepping_batches))
        schedule = build_schedule(self.stage, self.total_steps, key)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {
                "scheduler": torch.optim.lr_scheduler.LambdaLR(optimizer, [schedule] * len(optimizer.param_groups)),
                "interval": "step",
            },
        }
