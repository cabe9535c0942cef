"""EmbeddingFigures: alignment, modality gap, uniformity and effective rank after every validation; a collapse is named."""

from __future__ import annotations

import logging
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from insight.diagnostics import collapsed, embedding_figures
from insight.errors import InputError

log = logging.getLogger(__name__)


class EmbeddingFigures(Callback):
    """Logs ``val/alignment``, ``val/modality_gap``, ``val/uniformity_<tower>`` and ``val/effective_rank_<tower>`` of validation pairs, a
    caption each.

    Embeddings that are nearly one point, or differ in one direction only, have collapsed. Many a training passes through that in its
    first steps, so it counts in two validations in a row or when the stage ends: then a warning names the tower, once a stage.

    Args:
        num_pairs: How many pairs, the first of the split.
    """

    def __init__(self, num_pairs: int = 512) -> None:
        if num_pairs < 2:
            raise InputError(f"embedding_figures.init_args.num_pairs={num_pairs}: must be at least 2")
        self.num_pairs = num_pairs
        self._lasting: dict[str, int] = {}  # tower -> validations in a row in which it was collapsed
        self._what: dict[str, str] = {}
        self._warned: set[str] = set()

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        retrieval: Any = getattr(pl_module, "val_retrieval", None)
        if trainer.sanity_checking or not trainer.is_global_zero or retrieval is None:
            return
        image_NE, text_NE = retrieval.pairs(self.num_pairs)
        if len(image_NE) < 2:
            return
        figures = embedding_figures(image_NE, text_NE)
        pl_module.log_dict({f"val/{name}": value for name, value in figures.items()}, rank_zero_only=True)
        self._what = collapsed(figures, len(image_NE), image_NE.shape[1])
        self._lasting = {tower: self._lasting.get(tower, 0) + 1 for tower in self._what}
        self._warn(trainer, pl_module, {tower for tower, times in self._lasting.items() if times > 1})

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._warn(trainer, pl_module, set(self._what))

    def _warn(self, trainer: Trainer, pl_module: LightningModule, towers: set[str]) -> None:
        for tower in sorted(towers - self._warned):
            self._warned.add(tower)
            log.warning(
                "collapse of the %s tower in stage '%s' after %d steps: %s. Its retrieval can be no better than chance",
                tower,
                getattr(pl_module, "stage_name", ""),
                trainer.global_step,
                self._what[tower],
            )
