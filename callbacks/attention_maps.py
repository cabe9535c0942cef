"""AttentionMaps: what the model looks at, for the same few validation pairs in every validation run."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng

import insight
from insight.data.batch import ImageTextBatch
from insight.errors import InputError
from insight.interpret.capture import capture, examples_of, shown_layers
from insight.interpret.maps import Example, MapFacts, save_maps

log = logging.getLogger(__name__)

MAX_PENDING = 4  # validations whose pictures wait to be drawn; beyond that the training waits for the oldest
DRAWING_SECONDS = 120  # a drawing that takes longer has failed


class Probe(NamedTuple):
    """The fixed pairs: row r of the pictures with row r of the tokens."""

    batch: ImageTextBatch
    examples: tuple[Example, ...]
    shown: tuple[str, ...]
    folder: Path


class AttentionMaps(Callback):
    """Writes raw maps to ``STAGE/maps`` and pictures to ``STAGE/figures``, and hands both to the loggers.

    The training thread only runs the few pairs through the model and copies the arrays; another thread writes them and has a process of
    its own draw them (matplotlib in a thread would hold the interpreter's lock against the training). The share of the validation's wall
    time that this takes is logged as ``insight/capture_fraction``. Nothing of the training changes: no random number is drawn, outputs
    with and without a recording are bit-identical. Rank zero only; not in the sanity check; only within ``fit``.
    If something fails, the validation's checkpoint is saved first; the error is raised at the next training step or at the end.

    Args:
        num_examples: Validation pairs, a picture and one caption each.
        layers: Image layers by module path, e.g. ``image.blocks.3``; null = the last one. Rollout is over all of them in any case.
        every_n_validations: Draw in the first and then in every n-th validation of a stage.
        max_pictures: Pictures kept in a stage's folder: with those of too many validations, the second-oldest validation's
            (raw maps too) are deleted, so that the first stays to compare with. What a logger was given stays there.
        seed: Chooses the pairs.
        directory: Where to write outside of a stage.

    Raises:
        InputError: a number below one, an unknown layer, no folder to write to, a data module without ``probe``.
    """

    def __init__(
        self,
        num_examples: int = 4,
        layers: list[str] | None = None,
        every_n_validations: int = 1,
        max_pictures: int = 40,
        seed: int = 0,
        directory: str | None = None,
    ) -> None:
        for name, value in (("num_examples", num_examples), ("every_n_validations", every_n_validations), ("max_pictures", max_pictures)):
            if value < 1:
                raise InputError(f"attention_maps.init_args.{name}={value}: must be at least 1 (to have no maps, leave the callback out)")
        self.num_examples, self.layers, self.every_n_validations = num_examples, layers, every_n_validations
        self.max_pictures, self.seed, self.directory = max_pictures, seed, directory
        self.capture_seconds: list[float] = []  # of each validation of this fit, on the training thread
        self._validations = 0
        self._validation_started = 0.0
        self._probe: Probe | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._pending: deque[Future[list[Path]]] = deque()
        self._failure: Exception | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"validations": self._validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._validations = state_dict["validations"]

    # --- hooks ---
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        shown = shown_layers(pl_module.model, self.layers)  # type: ignore[arg-type]
        folder = getattr(pl_module, "stage_dir", None) or self.directory
        if folder is None:
            raise InputError("attention_maps: there is no stage folder to write to; give attention_maps.init_args.directory")
        if not hasattr(trainer.datamodule, "probe"):  # type: ignore[attr-defined]
            raise InputError(
                "attention_maps: the data module has no probe(split, num, seed); use a Flickr30kDataModule or leave the callback out"
            )
        self.capture_seconds = []
        if trainer.is_global_zero:
            self._probe = self._make_probe(trainer.datamodule, shown, Path(folder))  # type: ignore[attr-defined]
            self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="attention_maps")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validation_started = time.perf_counter()

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._probe is None or trainer.sanity_checking:
            return
        self._validations += 1
        if (self._validations - 1) % self.every_n_validations:
            return
        started = time.perf_counter()
        try:
            self._capture(trainer, pl_module, self._probe)
        except Exception as error:  # noqa: BLE001  kept, and raised at the next step: this validation's checkpoint is saved in between
            self._failure = self._failure or error
        seconds = time.perf_counter() - started
        self.capture_seconds.append(seconds)
        fraction = seconds / max(started - self._validation_started, 1e-9)
        pl_module.log("insight/capture_fraction", fraction, rank_zero_only=True)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._hand_over(trainer, everything=False)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        try:
            self._hand_over(trainer, everything=True)
        finally:
            self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        wait(self._pending, timeout=DRAWING_SECONDS)
        try:
            self._hand_over(trainer, everything=False)
        except Exception as error:  # noqa: BLE001  the exception under way is the one to be seen
            log.warning("attention maps: %s", error)
        finally:
            self._close()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._close()

    # --- work ---
    def _make_probe(self, datamodule: Any, shown: tuple[str, ...], folder: Path) -> Probe:
        with isolate_rng(include_cuda=False):
            batch = datamodule.probe("val", self.num_examples, self.seed)
        context_length = batch.tokens.shape[1]
        words = [datamodule.tokenizer.words(text, context_length) for text in batch.texts]
        return Probe(batch, examples_of(batch, words), shown, folder)

    def _capture(self, trainer: Trainer, pl_module: LightningModule, probe: Probe) -> None:
        model: Any = pl_module.model
        batch, device, dtype = probe.batch, pl_module.device, next(model.parameters()).dtype
        image = batch.image[batch.caption_row].to(device, dtype)
        with trainer.precision_plugin.forward_context():
            arrays = capture(model, image, batch.tokens.to(device), batch.token_mask.to(device))
        stage = getattr(pl_module, "stage_name", "")
        facts = MapFacts(stage, trainer.current_epoch + 1, trainer.global_step, model.image.grid_size, probe.shown, probe.examples)
        pictures = len(probe.shown) + any(name.startswith("words/") for name in arrays)
        if len(self._pending) >= MAX_PENDING:
            wait([self._pending[0]])
            self._hand_over(trainer, everything=False)
        assert self._pool is not None, "on_fit_start opened it"
        keep = max(1, self.max_pictures // pictures)
        self._pending.append(self._pool.submit(write_and_draw, probe.folder, arrays, facts, keep))

    def _hand_over(self, trainer: Trainer, everything: bool) -> None:
        """Give finished files to the loggers; raise what went wrong."""
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure
        while self._pending and (everything or self._pending[0].done()):
            for path in self._pending.popleft().result():
                for logger in trainer.loggers:
                    if hasattr(logger, "log_artifact") and path.exists():
                        logger.log_artifact(path, path.parent.name)

    def _close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        self._pool, self._probe, self._failure = None, None, None
        self._pending.clear()


def write_and_draw(folder: Path, arrays: dict[str, np.ndarray], facts: MapFacts, keep: int) -> list[Path]:
    """Write the maps, draw them in a process of its own, delete what is too much. Returns the new files."""
    stem = f"epoch{facts.epoch:04d}-step{facts.step:07d}"
    figures = folder / "figures"
    maps = save_maps(folder / "maps" / f"{stem}.safetensors", arrays, facts)
    project = str(Path(insight.__file__).parent.parent)
    python_path = os.pathsep.join(filter(None, [project, os.environ.get("PYTHONPATH")]))
    drawn = subprocess.run(
        [sys.executable, "-m", "insight.interpret.draw", str(maps[0]), "--out", str(figures)],
        env={**os.environ, "PYTHONPATH": python_path},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DRAWING_SECONDS,
        start_new_session=True,  # Ctrl-C stops the training, not the last picture
    )
    if drawn.returncode:
        raise RuntimeError(f"{maps[0]}: the maps are kept, but drawing them failed: {drawn.stderr.strip()[-2000:]}")
    thin_out(folder, keep)
    return [*maps, *sorted(figures.glob(f"{stem}-*.png"))]


def thin_out(folder: Path, keep: int) -> None:
    """Keep the maps and pictures of ``keep`` validations: the first, and the newest."""
    stems = sorted(path.stem for path in (folder / "maps").glob("epoch*.json"))
    while len(stems) > keep:
        stem = stems.pop(1 if keep > 1 else 0)
        for path in [*(folder / "maps").glob(f"{stem}.*"), *(folder / "figures").glob(f"{stem}-*.png")]:
            path.unlink(missing_ok=True)
