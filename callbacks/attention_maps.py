"""AttentionMaps: what the model looks at, for the same few validation pairs in every validation run."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from lightning.pytorch import LightningModule, Trainer

from callbacks.watcher import Watcher, draw_aside
from insight.data.batch import ImageTextBatch, LabelledBatch
from insight.interpret.capture import capture, capture_classes, examples_of, labelled_examples, shown_layers
from insight.interpret.checks import newest_checks, sheet_verdicts
from insight.interpret.maps import Example, MapFacts, save_maps
from insight.interpret.tables import MAPS


class Pairs(NamedTuple):
    """The fixed pairs: row r of the pictures with row r of the tokens, or with its class."""

    batch: ImageTextBatch | LabelledBatch
    examples: tuple[Example, ...]  # of captions; what is said of a class changes with every validation
    shown: tuple[str, ...]
    folder: Path


class AttentionMaps(Watcher):
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

    name = "attention_maps"

    def __init__(
        self,
        num_examples: int = 4,
        layers: list[str] | None = None,
        every_n_validations: int = 1,
        max_pictures: int = 40,
        seed: int = 0,
        directory: str | None = None,
    ) -> None:
        super().__init__(num_examples, seed, directory)
        self.check_positive(every_n_validations=every_n_validations, max_pictures=max_pictures)
        self.layers, self.every_n_validations, self.max_pictures = layers, every_n_validations, max_pictures
        self.capture_seconds: list[float] = []  # of each validation of this fit, on the training thread
        self._pairs: Pairs | None = None

    def check(self, trainer: Trainer, pl_module: LightningModule) -> None:
        shown_layers(pl_module.model, self.layers)  # type: ignore[arg-type]

    def begin(self, trainer: Trainer, pl_module: LightningModule, batch: ImageTextBatch | LabelledBatch, folder: Path) -> None:
        examples: tuple[Example, ...] = ()
        if isinstance(batch, ImageTextBatch):
            context_length = batch.tokens.shape[1]
            tokenizer: Any = trainer.datamodule.tokenizer  # type: ignore[attr-defined]
            examples = examples_of(batch, [tokenizer.words(text, context_length) for text in batch.texts])
        self._pairs = Pairs(batch, examples, shown_layers(pl_module.model, self.layers), folder)  # type: ignore[arg-type]
        self.capture_seconds = []

    def watch(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if (self._validations - 1) % self.every_n_validations:
            return
        assert self._pairs is not None, "begin() made them"
        validating, started = self.validation_seconds(), time.perf_counter()
        try:
            self._capture(trainer, pl_module, self._pairs)
        finally:
            self.capture_seconds.append(time.perf_counter() - started)
            pl_module.log("insight/capture_fraction", self.capture_seconds[-1] / validating, rank_zero_only=True)

    def release(self) -> None:
        self._pairs = None

    def _capture(self, trainer: Trainer, pl_module: LightningModule, pairs: Pairs) -> None:
        model: Any = pl_module.model
        batch, examples, device, dtype = pairs.batch, pairs.examples, pl_module.device, next(model.parameters()).dtype
        with trainer.precision_plugin.forward_context():
            if isinstance(batch, LabelledBatch):
                arrays, probability_BK = capture_classes(model, batch.image.to(device, dtype))
                examples = labelled_examples(batch, trainer.datamodule.class_names(), probability_BK)  # type: ignore[attr-defined]
            else:
                image = batch.image[batch.caption_row].to(device, dtype)
                arrays = capture(model, image, batch.tokens.to(device), batch.token_mask.to(device))
        stage = getattr(pl_module, "stage_name", "")
        when = stage, trainer.current_epoch + 1, trainer.global_step
        facts = MapFacts(*when, model.image.grid_size, pairs.shown, examples, verdicts=sheet_verdicts(newest_checks(pairs.folder.parent)))
        pictures = len(pairs.shown) + any(name.startswith("words/") for name in arrays)
        if not pictures:  # encoders of other libraries, and a text tower without blocks
            return
        keep = max(1, self.max_pictures // pictures)
        self.watching.submit(trainer, write_and_draw, pairs.folder, arrays, facts, keep)


def write_and_draw(folder: Path, arrays: dict[str, np.ndarray], facts: MapFacts, keep: int) -> list[Path]:
    """Write the maps, draw them in a process of its own, delete what is too much. Returns the new files."""
    stem = f"epoch{facts.epoch:04d}-step{facts.step:07d}"
    maps = save_maps(folder / MAPS / f"{stem}.safetensors", arrays, facts)
    drawn = draw_aside(maps[0], folder / "figures")
    thin_out(folder, keep)
    return [*maps, *drawn]


def thin_out(folder: Path, keep: int) -> None:
    """Keep the maps and pictures of ``keep`` validations: the first, and the newest."""
    stems = sorted(path.stem for path in (folder / MAPS).glob("epoch*.json"))
    while len(stems) > keep:
        stem = stems.pop(1 if keep > 1 else 0)
        for path in [*(folder / MAPS).glob(f"{stem}.*"), *(folder / "figures").glob(f"{stem}-*.png")]:
            path.unlink(missing_ok=True)
