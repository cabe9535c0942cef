"""What every image-text module shares: losses by name, exact retrieval over the split, optimiser and schedule of the stage, logging."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from torch import Tensor

from insight.data.batch import ImageTextBatch, first_captions
from insight.errors import InputError, TrainingFailure
from insight.metrics import RetrievalMetrics, hard_negative_accuracy
from insight.models.multimodal import MultiModalTransformer
from insight.optim import build_optimizer, build_schedule
from insight.stages import LossTerm, Stage, bind_losses, derive_seed
from lightning_modules.quantities import Quantities

BoundLoss = tuple[Callable[..., Tensor], LossTerm, list[str]]


class Prediction(NamedTuple):
    """Embeddings of one batch."""

    filenames: tuple[str, ...]
    image_embedding: Tensor  # (B, E)
    texts: tuple[str, ...]
    text_embedding: Tensor  # (C, E)


class ImageTextModule(L.LightningModule):
    """A dual encoder, its losses and its steps. Subclasses hand in the model and say which quantities it can compute."""

    quantities: type[Quantities] = Quantities

    def __init__(self, model: MultiModalTransformer) -> None:
        super().__init__()
        self.model = model
        self.stage: Stage | None = None
        self.stage_name = ""
        self.stage_dir: Path | None = None
        self.stage_seed = 0
        self._losses: dict[str, BoundLoss] = {}
        self._previous: list[MultiModalTransformer] = []  # in a list: neither trained, nor saved, nor moved as a part of this module
        self.val_retrieval = RetrievalMetrics()
        self.test_retrieval = RetrievalMetrics()

    # --- stages ---
    def check_stage(self, name: str, stage: Stage) -> dict[str, BoundLoss]:
        """The stage's losses with their functions.

        Raises:
            InputError: a loss does not exist or asks for what this model cannot compute.
        """
        return bind_losses(stage.losses, self.quantities.names(), f"stages.{name}.losses")

    def begin_stage(self, name: str, stage: Stage, folder: Path, seed: int) -> None:
        """Called by StageScheduler when the weights are those with which the stage starts."""
        self._losses = self.check_stage(name, stage)
        self.train()  # the stage before has left its frozen parts in evaluation mode
        self.stage, self.stage_name, self.stage_dir, self.stage_seed = stage, name, folder, seed
        needs_previous = any(need.startswith("previous_") for _, _, needed in self._losses.values() for need in needed)
        self._previous = [copy.deepcopy(self.model).eval().requires_grad_(False)] if needs_previous else []

    def on_fit_start(self) -> None:
        for model in self._previous:
            model.to(self.device)

    # --- steps ---
    def quantities_of(self, batch: ImageTextBatch, generator: torch.Generator) -> Quantities:
        return self.quantities(self.model, batch, generator, self._before)

    @property
    def _before(self) -> MultiModalTransformer | None:
        """The model as the stage before left it, where a loss of this stage needs it."""
        return self._previous[0] if self._previous else None

    def loss_terms(self, batch: ImageTextBatch, seed: int, training: bool) -> dict[str, Tensor]:
        """Weighted terms by name. In evaluation there is no second view, so terms over two views are left out."""
        values = self.quantities_of(batch, torch.Generator().manual_seed(seed))
        return {
            name: term.weight * function(**{need: getattr(values, need) for need in needed}, **term.arguments)
            for name, (function, term, needed) in self._losses.items()
            if training or "view_embedding" not in needed
        }

    def training_step(self, batch: ImageTextBatch, batch_idx: int) -> Tensor:
        terms = self.loss_terms(batch, derive_seed(self.stage_seed, self.trainer.current_epoch, batch_idx), training=True)
        loss = torch.stack(list(terms.values())).sum()
        if not torch.isfinite(loss):
            listed = ", ".join(f"{name}={float(value.detach()):g}" for name, value in terms.items())
            raise TrainingFailure(
                f"the loss is not finite at step {self.trainer.global_step} of stage '{self.stage_name}' ({listed}); "
                f"pictures of this batch: {', '.join(batch.filenames)}. The checkpoints in {self.stage_dir} are from before this step. "
                "Look at these pictures, or lower the learning rate"
            )
        self.log_dict(
            {"train/loss": loss.detach(), **{f"train/loss/{name}": value.detach() for name, value in terms.items()}},
            batch_size=len(batch.filenames),
        )
        self.log("train/learning_rate", self.trainer.optimizers[0].param_groups[0]["lr"])
        self.log("train/scale", self.model.scale.detach())
        return loss

    def validation_step(self, batch: ImageTextBatch, batch_idx: int) -> None:
        image, text = self.model.encode_image(batch.image), self.model.encode_text(batch.tokens, batch.token_mask)
        caption_image_id = batch.image_id[batch.caption_row]
        self.val_retrieval.update(image.embedding, text.embedding, batch.image_id, batch.caption_id, caption_image_id)
        if self.trainer.world_size == 1 and self._losses:  # the shares of several devices differ in size: a loss over them is not defined
            served = self.trainer.datamodule.serving.captions_per_image  # type: ignore[attr-defined]
            part = batch if served == "all" else first_captions(batch, served)  # as many captions as in training
            terms = self.loss_terms(part, derive_seed(0, batch_idx), training=False)
            if terms:
                total = torch.stack(list(terms.values())).sum()
                values = {"val/loss": total, **{f"val/loss/{name}": value for name, value in terms.items()}}
                self.log_dict(values, on_epoch=True, batch_size=len(batch.filenames))

    def on_validation_epoch_end(self) -> None:
        if not self.trainer.sanity_checking:
            self.log_dict({f"val/{name}": value for name, value in self.val_retrieval.compute().items()})
        self.val_retrieval.reset()

    def on_test_epoch_start(self) -> None:
        self._test_rows: list[Prediction] = []

    def test_step(self, batch: ImageTextBatch, batch_idx: int) -> None:
        prediction = self.predict_step(batch, batch_idx)
        ids = (batch.image_id, batch.caption_id, batch.image_id[batch.caption_row])
        self.test_retrieval.update(prediction.image_embedding, prediction.text_embedding, *ids)
        self._test_rows.append(prediction)

    def on_test_epoch_end(self) -> None:
        self.log_dict({f"test/{name}": value for name, value in self.test_retrieval.compute().items()})
        self.test_retrieval.reset()
        self.log_dict(self.hard_negative_scores(self.score_pairs))

    def predict_step(self, batch: ImageTextBatch, batch_idx: int) -> Prediction:
        image, text = self.model.encode_image(batch.image), self.model.encode_text(batch.tokens, batch.token_mask)
        return Prediction(batch.filenames, image.embedding, batch.texts, text.embedding)

    def score_pairs(self, filenames: list[str], texts: list[str]) -> Tensor:
        """Cosine of each test picture with the text beside it: (pairs,)."""
        embeddings = {name: row for batch in self._test_rows for name, row in zip(batch.filenames, batch.image_embedding, strict=True)}
        image = torch.stack([embeddings[name] for name in filenames])
        return (image * self.encode_texts(texts)).sum(dim=-1)

    def encode_texts(self, texts: list[str]) -> Tensor:
        """Embeddings (texts, E) by the data module's own tokenizer."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        tokens, mask = data.tokenizer.encode(texts, self.model.text.context_length)
        parts = zip(tokens.to(self.device).split(256), mask.to(self.device).split(256), strict=True)
        return torch.cat([self.model.encode_text(*part).embedding for part in parts])

    def hard_negative_scores(self, score: Callable[[list[str], list[str]], Tensor]) -> dict[str, float]:
        """Fraction of hard negatives told apart, on attribute combinations seen in training and not; empty where the data have none.

        Args:
            score: ``(file names, texts) -> (pairs,)``; the higher, the better they fit.
        """
        rows = self.trainer.datamodule.hard_negatives("test")  # type: ignore[attr-defined]
        known = {name for batch in self._test_rows for name in batch.filenames}
        rows = [row for row in rows if row["filename"] in known]
        if not rows:
            return {}
        names = [row["filename"] for row in rows]
        right = score(names, [row["caption"] for row in rows])
        wrong = score(names, [row["negative"] for row in rows])
        seen = torch.tensor([row["seen"] for row in rows], device=right.device)
        return {
            f"test/hard_negative_accuracy_{name}": hard_negative_accuracy(right[chosen], wrong[chosen])
            for name, chosen in (("seen", seen), ("unseen", ~seen))
            if chosen.any()
        }

    # --- optimiser ---
    def configure_optimizers(self) -> Any:
        if self.stage is None:
            raise InputError("this module trains in stages: python train.py, or python -m lightning_modules.cli fit --stage NAME")
        key = f"stages.{self.stage_name}"
        optimizer = build_optimizer(self.named_parameters(), self.stage, key)
        schedule = build_schedule(self.stage, int(self.trainer.estimated_stepping_batches), key)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {
                "scheduler": torch.optim.lr_scheduler.LambdaLR(optimizer, [schedule] * len(optimizer.param_groups)),
                "interval": "step",
            },
        }
