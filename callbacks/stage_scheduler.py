"""StageScheduler: owns the plan, applies a stage, carries what a resume needs, and keeps the ledger of what is done."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from insight.errors import InputError
from insight.rng import rng_state, set_rng_state
from insight.stages import Stage, StagePlan, derive_seed, matching

logger = logging.getLogger(__name__)
LOSSES = "losses."  # what belongs to the losses of the stage


def write_json(path: Path, value: Any) -> None:
    """Atomically: a reader sees the old file or the new one, also after a crash."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "w") as file:
        json.dump(value, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


class StageScheduler(Callback):
    """Drives a run through its stages: one fresh Trainer and one call of ``fit`` for each.

    Args:
        plan: The stages.
        run_dir: The run's folder; ``stages.json`` in it says what is done.

    Raises:
        InputError: the folder's ledger belongs to another plan.
    """

    def __init__(self, plan: StagePlan, run_dir: str | Path) -> None:
        self.plan = plan
        self.run_dir = Path(run_dir)
        self.ledger_path = self.run_dir / "stages.json"
        self._restored_rng: list[dict[str, Any]] | None = None
        self._validation_rng: dict[str, Any] | None = None
        self._finished: dict[str, Any] | None = None
        if self.ledger_path.exists():
            self.ledger = json.loads(self.ledger_path.read_text())
            if self.ledger["plan"] != plan.digest:
                raise InputError(f"{self.ledger_path} was made by another plan: choose another run_dir")
        else:
            self.ledger = {"plan": plan.digest, "stages": plan.names, "done": []}

    # --- for the driver ---
    @property
    def index(self) -> int:
        return len(self.ledger["done"])

    @property
    def done(self) -> bool:
        return self.index >= len(self.plan.stages)

    @property
    def name(self) -> str:
        return self.plan.names[self.index]

    @property
    def stage(self) -> Stage:
        return self.plan.stages[self.name]

    @property
    def seed(self) -> int:
        """Seed of the present stage: the same whether the run was killed before or not."""
        return derive_seed(self.plan.seed, self.index, self.name)

    def folder(self, index: int | None = None) -> Path:
        index = self.index if index is None else index
        return self.run_dir / f"{index + 1:02d}-{self.plan.names[index]}"

    def resume_path(self) -> Path | None:
        """The checkpoint from which the present stage goes on, or None at its start."""
        path = self.folder() / "last.ckpt"
        return path if path.exists() else None

    def handoff_path(self) -> Path | None:
        """The best checkpoint of the stage before, from which the present one starts."""
        return self.run_dir / self.ledger["done"][-1]["best"] if self.ledger["done"] else None

    def commit(self, facts: dict[str, Any]) -> None:
        """Move to the next stage: the one place where the ledger is written. ``facts`` are kept with it."""
        if self._finished is None:
            raise RuntimeError(f"stage {self.name} did not finish")
        self.ledger["done"].append({**self._finished, **facts})
        self._finished = None
        if getattr(rank_zero_only, "rank", 0) == 0:
            write_json(self.ledger_path, self.ledger)

    # --- for Lightning ---
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        key = f"stages.{self.name}"
        pl_module.begin_stage(self.name, self.stage, self.folder(), self.seed)  # type: ignore[operator]
        names, own = dict(pl_module.named_parameters()), []
        for name, parameter in pl_module.named_parameters():
            if name.startswith(LOSSES) and parameter.requires_grad:
                own.append(name)
            elif name.startswith(LOSSES):  # a loss decides itself what in it can train
                del names[name]
        trained = matching([*self.stage.train, *own], names, f"{key}.train")
        for name, parameter in names.items():
            parameter.requires_grad_(name in trained)
        self._finished = self._restored_rng = None  # a restore comes after this, or not at all

    def state_dict(self) -> dict[str, Any]:
        """Identity of the stage and the random state of every process (called on every rank)."""
        states: list[dict[str, Any]] = [rng_state()]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            gathered: list[Any] = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(gathered, states[0])
            states = gathered
        return {"plan": self.plan.digest, "index": self.index, "rng": states}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if (state_dict["plan"], state_dict["index"]) != (self.plan.digest, self.index):
            raise InputError(f"{self.resume_path()} belongs to another plan or stage: choose another run_dir")
        self._restored_rng = state_dict["rng"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for name, module in pl_module.named_modules():  # a frozen part keeps still: no dropout, no running statistics
            parameters = list(module.parameters())
            if f"{name}.".startswith(LOSSES):  # a queue without parameters moves
                continue
            if parameters and not any(parameter.requires_grad for parameter in parameters):
                module.eval()
        # after the sanity check, after the loaders were made, after the restore: nothing draws between here and the first batch
        if self._restored_rng is None:
            seed_everything(self.seed + trainer.global_rank, workers=False, verbose=False)  # dropout differs between processes
            return
        if len(self._restored_rng) != trainer.world_size:
            raise InputError(
                f"{self.resume_path()} was written by {len(self._restored_rng)} processes, this run has {trainer.world_size}: "
                f"resume with trainer.devices={len(self._restored_rng)}"
            )
        set_rng_state(self._restored_rng[trainer.global_rank])
        self._restored_rng = None
        for log in trainer.loggers:
            if hasattr(log, "rewind"):  # points after the checkpoint were logged before the kill, and will be logged again
                log.rewind(trainer.global_step)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validation_rng = rng_state()  # how often one validates must not change the training (Lightning #16827)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._validation_rng is not None:
            set_rng_state(self._validation_rng)
            self._validation_rng = None

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # only a fit that came to its own end gets here: neither an exception nor a signal does. (Not on_train_end: Lightning leaves it
        # out when a run was killed between its last epoch and its end, and there is nothing left to train.)
        self._finished = {"name": self.name, "epochs": trainer.current_epoch, "steps": trainer.global_step}
