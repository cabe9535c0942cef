"""A vision transformer that names the class of a picture, as a LightningModule. B pictures, K classes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from insight.classification import majority_accuracy
from insight.data.batch import LabelledBatch
from insight.data.mixing import Mixing
from insight.errors import InputError
from insight.export.bundle import Parts
from insight.export.card import table
from insight.models.classifier import ImageClassifier
from insight.nn.pool import Pooling
from insight.nn.settings import PLAIN, BlockSettings
from insight.towers.vision_weights import load_vision_transformer, read_source
from lightning_modules.staged import NamedQuantities, Shown, StagedModule

TOP = (1, 5)
PREDICTIONS = "predictions.json"
WORST = 5  # pictures on the card


class ClassifierQuantities(NamedQuantities):
    """Of one batch. ``generator``: of what is mixed with what; None: the pictures stay as they are."""

    def __init__(self, model: ImageClassifier, batch: LabelledBatch, mixing: Mixing, generator: torch.Generator | None) -> None:
        self._model, self._batch, self._mixing, self._generator = model, batch, mixing, generator

    @cached_property
    def _mixed(self) -> tuple[Tensor, Tensor]:
        if self._generator is None:
            return self._batch.image, self._mixing.plain(self._batch.label)
        return self._mixing.mix(self._batch.image, self._batch.label, self._generator)

    @cached_property
    def class_logits(self) -> Tensor:
        """(B, K)"""
        return self._model(self._mixed[0]).logits

    @cached_property
    def class_targets(self) -> Tensor:
        """(B, K): share of each class in the picture; rows sum to 1."""
        return self._mixed[1]


class Classified(NamedTuple):
    """What is predicted of one batch."""

    filenames: tuple[str, ...]
    probabilities: Tensor  # (B, K)


class ClassifierModule(StagedModule):
    """Trains an ImageClassifier.

    Args:
        num_classes: Of the data.
        image_size: Side of the square picture, in pixels.
        patch_size: Side of a patch, in pixels; divides ``image_size``.
        dim: Width.
        depth: Blocks.
        heads: Attention heads; divides ``dim``.
        dropout: Dropout in the blocks.
        block: How the blocks are made; ``drop_path`` is stochastic depth.
        pool: What stands for the whole picture.
        patch_dropout: Fraction of the patches that training leaves out at random.
        mixup: Alpha of MixUp; 0 = none.
        cutmix: Alpha of CutMix; 0 = none. With both each batch gets one of them.
        weights: First weights of the tower: a file of torchvision's, timm's or this project's, ``hf-hub:OWNER/MODEL``, or a name of
            torchvision's weights; null: random.
        weights_head: Take the head from ``weights`` too; its classes must then be the data's.
        weights_mean: Mean of the colours (RGB over 0..1) that a file of ``weights`` was trained on, e.g. 0.5 for many of timm's; null: what
            the hub or torchvision says, else ImageNet's.
        weights_std: Standard deviation of them.
    """

    quantities = ClassifierQuantities
    shown = Shown("accuracy", {f"accuracy_top_{k}": f"top-{k} accuracy" for k in TOP}, {"test": "test/"})
    example_word = "pictures"
    data_needs = ("class_names", "labels", "probe")
    progress = ("train/loss", "val/accuracy_top_1")
    result_files = (PREDICTIONS,)
    tracked = ("val/accuracy_top_1",)
    purpose = "names the class of a picture"
    usage = 'model.name(["picture.jpg"]), model.classify(["picture.jpg"])'
    model: ImageClassifier

    def __init__(
        self,
        num_classes: int,
        image_size: int = 64,
        patch_size: int = 8,
        dim: int = 128,
        depth: int = 4,
        heads: int = 4,
        dropout: float = 0.0,
        block: BlockSettings = PLAIN,
        pool: Pooling = "first",
        patch_dropout: float = 0.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        weights: str | None = None,
        weights_head: bool = False,
        weights_mean: tuple[float, float, float] | None = None,
        weights_std: tuple[float, float, float] | None = None,
    ) -> None:
        if num_classes < 2:
            raise InputError(f"model.init_args.num_classes={num_classes}: there must be at least two")
        model = ImageClassifier(num_classes, image_size, patch_size, dim, depth, heads, dropout, block, pool, patch_dropout)
        if weights is not None:
            head = model.head if weights_head else None
            load_vision_transformer(model.image, read_source(weights), head, weights_mean, weights_std)
        super().__init__(model)
        self.num_classes, self.mixing = num_classes, Mixing(num_classes, mixup, cutmix)
        self.val_accuracy, self.test_accuracy = accuracies(num_classes), accuracies(num_classes)

    # --- around the training ---
    def check_data(self, data: Any) -> None:
        if len(data.class_names()) != self.num_classes:
            raise InputError(
                f"model.init_args.num_classes={self.num_classes}, but the data have {len(data.class_names())} classes: "
                f"set model.init_args.num_classes={len(data.class_names())}"
            )

    def references(self, data: Any, split: str) -> dict[str, dict[str, float]]:
        """Guessing, and naming the classes that are most frequent in training."""
        known = [k for k in TOP if k < self.num_classes]
        train, labels = data.labels("train"), data.labels(split)
        return {
            "chance": {f"accuracy_top_{k}": k / self.num_classes for k in known},
            "most frequent class": {f"accuracy_top_{k}": majority_accuracy(train, labels, self.num_classes, k) for k in known},
        }

    def save_results(self, run_dir: Path, data: Any) -> None:
        """Of every test picture its class and what was named, with the probability."""
        labels = dict(zip(data.splits()["test"], data.labels("test"), strict=True))
        rows = [
            {
                "filename": name,
                "class": data.class_names()[labels[name]],
                "named": data.class_names()[int(one.argmax())],
                "probability": float(one.max()),
            }
            for part in self._test_rows
            for name, one in zip(part.filenames, part.probabilities.cpu(), strict=True)
        ]
        (run_dir / PREDICTIONS).write_text(json.dumps(rows, indent=0), encoding="utf-8")

    # --- what a finished run leaves for others ---
    def parts(self, given: Mapping[str, Any], data: Any) -> Parts:
        return super().parts(given, data)._replace(labels=tuple(data.class_names()))

    def failures(self, run_dir: Path) -> str:
        rows = json.loads((run_dir / PREDICTIONS).read_text(encoding="utf-8"))
        wrong = sorted((one for one in rows if one["class"] != one["named"]), key=lambda one: -one["probability"])
        if not wrong:
            return "Every picture of the test split got its class."
        surest = [[one["filename"], one["class"], one["named"], f"{one['probability']:.3f}"] for one in wrong[:WORST]]
        return f"{len(wrong):,} of {len(rows):,} pictures of the test split; the surest of them:\n\n" + table(
            ["picture", "class", "named", "probability"], surest
        )

    def save_predictions(self, rows: list[Classified], folder: Path) -> str:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "probabilities.json"
        named = {name: one.tolist() for row in rows for name, one in zip(row.filenames, row.probabilities.cpu(), strict=True)}
        path.write_text(json.dumps(named), encoding="utf-8")
        return f"probabilities of the classes by file name: {path}"

    # --- steps ---
    def quantities_of(self, batch: LabelledBatch, generator: torch.Generator) -> ClassifierQuantities:
        return ClassifierQuantities(self.model, batch, self.mixing, generator if self.training else None)

    def example_names(self, batch: LabelledBatch) -> Sequence[str]:
        return batch.filenames

    def throughput(self, batch: LabelledBatch) -> dict[str, int]:
        return {"pictures": len(batch.filenames)}

    def validation_step(self, batch: LabelledBatch, batch_idx: int) -> None:
        logits_BK = self.model(batch.image).logits
        self.val_accuracy.update(logits_BK[batch.counted], batch.label[batch.counted])
        if self.losses.bound:
            self.log_validation_loss(batch, batch_idx)

    def on_validation_epoch_end(self) -> None:
        if not self.trainer.sanity_checking:
            self.log_dict({f"val/{name}": value for name, value in self.val_accuracy.compute().items()})
        self.val_accuracy.reset()

    def on_test_epoch_start(self) -> None:
        self._test_rows: list[Classified] = []

    def test_step(self, batch: LabelledBatch, batch_idx: int) -> None:
        predicted = self.predict_step(batch, batch_idx)
        self.test_accuracy.update(predicted.probabilities[batch.counted], batch.label[batch.counted])
        self._test_rows.append(predicted)

    def on_test_epoch_end(self) -> None:
        self.log_dict({f"test/{name}": value for name, value in self.test_accuracy.compute().items()})
        self.test_accuracy.reset()

    def predict_step(self, batch: LabelledBatch, batch_idx: int) -> Classified:
        return Classified(batch.filenames, self.model(batch.image).logits.float().softmax(dim=-1))


def accuracies(num_classes: int) -> MetricCollection:
    """By metric name; only those that can be wrong. Every picture counts the same."""
    return MetricCollection(
        {f"accuracy_top_{k}": MulticlassAccuracy(num_classes, top_k=k, average="micro") for k in TOP if k < num_classes}
    )
