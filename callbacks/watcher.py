"""What callbacks share that look at the model after validations: the same few pairs, errors that wait, files that are made beside the
training."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from abc import abstractmethod
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, ClassVar

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng

import insight
from insight.data.batch import ImageTextBatch
from insight.errors import InputError

log = logging.getLogger(__name__)

MAX_PENDING = 4  # pieces of work that wait; beyond that the training waits for the oldest
PATIENCE_SECONDS = 120  # for work under way when the training breaks off
DRAWING_SECONDS = 1200  # on a machine that is busy with much else


class Background:
    """One thread beside the training. What it made is handed to the loggers on the training thread, where its errors are raised too."""

    def __init__(self, name: str) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self._pending: deque[Future[list[Path]]] = deque()

    def submit(self, trainer: Trainer, work: Callable[..., list[Path]], *arguments: Any) -> None:
        """``work`` returns the files that it has written."""
        if len(self._pending) >= MAX_PENDING:
            wait([self._pending[0]])
            self.hand_over(trainer, everything=False)
        self._pending.append(self._pool.submit(work, *arguments))

    def hand_over(self, trainer: Trainer, everything: bool) -> None:
        """Give finished files to the loggers; with ``everything``, wait for the others."""
        while self._pending and (everything or self._pending[0].done()):
            give_to_loggers(trainer, self._pending.popleft().result())

    def settle(self) -> None:
        """Wait a while for what is under way."""
        wait(self._pending, timeout=PATIENCE_SECONDS)

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._pending.clear()


class Watcher(Callback):
    """Looks at the same few validation pairs in the validations of a fit. Nothing of the training changes by it.

    Rank zero only; not in the sanity check; only within ``fit``. If something fails, the validation's checkpoint is saved first; the error
    is raised at the next training step, or at the end, when the last checkpoints are saved.

    Args:
        num_examples: Validation pairs, a picture and one caption each.
        seed: Chooses the pairs.
        directory: Where to write outside of a stage.
    """

    name: ClassVar[str]  # of the entry in configs/callbacks, for messages

    def __init__(self, num_examples: int, seed: int, directory: str | None) -> None:
        self.check_positive(num_examples=num_examples)
        self.num_examples, self.seed, self.directory = num_examples, seed, directory
        self._validations = 0
        self._validation_started = 0.0
        self._background: Background | None = None  # open on the process that watches, within a fit
        self._failure: Exception | None = None

    # --- what a subclass says ---
    def check(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """On every process, before the first step: raise what is wrong with the settings."""

    @abstractmethod
    def begin(self, trainer: Trainer, pl_module: LightningModule, batch: ImageTextBatch, folder: Path) -> None:
        """``batch``: the pairs; ``folder``: the stage's."""

    @abstractmethod
    def watch(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """In a validation; ``self._validations`` counts it already."""

    def finish(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After the last validation of a fit that came to its own end."""

    def release(self) -> None:
        """Let go of what ``begin`` has made."""

    # --- for subclasses ---
    @property
    def watching(self) -> Background:
        assert self._background is not None, "on_fit_start opened it"
        return self._background

    def validation_seconds(self) -> float:
        """Since this validation began."""
        return max(time.perf_counter() - self._validation_started, 1e-9)

    def check_positive(self, **numbers: int) -> None:
        for name, value in numbers.items():
            if value < 1:
                raise InputError(f"{self.name}.init_args.{name}={value}: must be at least 1 (to have none, leave the callback out)")

    # --- hooks ---
    def state_dict(self) -> dict[str, Any]:
        return {"validations": self._validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._validations = state_dict["validations"]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.check(trainer, pl_module)
        folder = getattr(pl_module, "stage_dir", None) or self.directory
        if folder is None:
            raise InputError(f"{self.name}: there is no stage folder to write to; give {self.name}.init_args.directory")
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if not hasattr(data, "probe"):
            raise InputError(
                f"{self.name}: the data module has no probe(split, num, seed); use a Flickr30kDataModule or leave the callback out"
            )
        if trainer.is_global_zero:
            with isolate_rng(include_cuda=False):
                batch = data.probe("val", self.num_examples, self.seed)
            self._background = Background(self.name)
            self.begin(trainer, pl_module, batch, Path(folder))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validation_started = time.perf_counter()

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._background is None or trainer.sanity_checking:
            return
        self._validations += 1
        try:
            self.watch(trainer, pl_module)
        except Exception as error:  # noqa: BLE001  kept, and raised at the next step: this validation's checkpoint is saved in between
            self._failure = self._failure or error

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._raise_or_hand_over(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        try:
            if self._background is not None and self._failure is None:
                self.finish(trainer, pl_module)
                self._background.hand_over(trainer, everything=True)
        except Exception as error:  # noqa: BLE001  kept, and raised in teardown: the last checkpoints are saved in between
            self._failure = error
        finally:
            self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        try:
            if self._background is not None:
                self._background.settle()
            self._raise_or_hand_over(trainer)
        except Exception as error:  # noqa: BLE001  the exception under way is the one to be seen
            log.warning("%s: %s", self.name, error)
        finally:
            self._close()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        failure, self._failure = self._failure, None
        self._close()
        if failure is not None:
            raise failure

    def _raise_or_hand_over(self, trainer: Trainer) -> None:
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure
        if self._background is not None:
            self._background.hand_over(trainer, everything=False)

    def _close(self) -> None:
        if self._background is not None:
            self._background.close()
        self._background = None
        self.release()


def give_to_loggers(trainer: Trainer, paths: list[Path]) -> None:
    """Every file to every logger that keeps files, under the name of its folder."""
    for path in paths:
        for logger in trainer.loggers:
            if hasattr(logger, "log_artifact") and path.exists():
                logger.log_artifact(path, path.parent.name)


def draw_aside(maps: Path, figures: Path) -> list[Path]:
    """Draw a file of maps in a process of its own. Returns the pictures.

    Raises:
        RuntimeError: it could not be drawn; says why.
    """
    project = str(Path(insight.__file__).parent.parent)
    python_path = os.pathsep.join(filter(None, [project, os.environ.get("PYTHONPATH")]))
    drawn = subprocess.run(
        [sys.executable, "-m", "insight.interpret.draw", str(maps), "--out", str(figures)],
        env={**os.environ, "PYTHONPATH": python_path},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DRAWING_SECONDS,
        start_new_session=True,  # Ctrl-C stops the training, not the last picture
    )
    if drawn.returncode:
        raise RuntimeError(f"{maps}: the maps are kept, but drawing them failed: {drawn.stderr.strip()[-2000:]}")
    return sorted(figures.glob(f"{maps.stem}-*.png"))
