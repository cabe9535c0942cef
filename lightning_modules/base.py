"""What every image-text module shares: exact retrieval over the split, hard negatives, and what a run keeps and shows of them."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from insight.data.batch import ImageTextBatch, first_captions
from insight.errors import InputError
from insight.export.bundle import Parts
from insight.export.card import TaskFacts
from insight.export.retrieval_card import retrieval_failures, retrieval_results
from insight.metrics import RetrievalMetrics, chance_recall, hard_negative_accuracy
from insight.models.multimodal import MultiModalTransformer
from insight.models.tower import ImageTower
from insight.query_ranks import read_ranks
from insight.stages import Stage
from lightning_modules.quantities import Quantities
from lightning_modules.retrievals import RETRIEVAL_FILES, Prediction, save_predictions, save_retrievals
from lightning_modules.staged import NamedQuantities, Shown, StagedModule

RECALLS = ("image_to_text_recall_at_1", "image_to_text_recall_at_10", "text_to_image_recall_at_1", "text_to_image_recall_at_10")
BASELINES = ("colour_histogram", "blind_prior")
OF_BOXES = frozenset({"region_similarity", "fused_region_logits"})  # quantities that are nothing where no phrase has a box

logger = logging.getLogger(__name__)


class ImageTextModule(StagedModule):
    """A dual encoder, its losses and its steps. Subclasses hand in the model and say which quantities it can compute."""

    quantities: ClassVar[type[NamedQuantities]] = Quantities
    shown = Shown(
        "recall (fraction of queries)",
        {name: name.replace("_recall_at_", " R@").replace("_", " ") for name in RECALLS},
        {
            "test": "test/",
            "test, re-ranked": "test/reranked_",
            **{f"test, {name.replace('_', ' ')}": f"test/baseline/{name}/" for name in BASELINES},
        },
    )
    example_word = "pictures"
    training_only = frozenset({"view_embedding"})  # evaluation has no second view
    data_needs = ("probe", "pairs", "hard_negatives", "caption_counts", "num_boxed_phrases")
    progress = ("train/loss", "val/image_to_text_recall_at_10", "val/text_to_image_recall_at_10")
    input_files = ("tokenizer.json",)
    result_files: ClassVar[tuple[str, ...]] = RETRIEVAL_FILES
    tracked: ClassVar[tuple[str, ...]] = ("val/mean_recall", "val/image_to_text_recall_at_10", "val/text_to_image_recall_at_10")
    purpose: ClassVar[str] = "compares pictures with captions"
    usage: ClassVar[str] = 'model.similarity(["picture.jpg"], ["a dog runs on the beach"])'
    model: MultiModalTransformer

    def __init__(self, model: MultiModalTransformer) -> None:
        super().__init__(model)
        self.val_retrieval = RetrievalMetrics()
        self.test_retrieval = RetrievalMetrics()

    # --- around the training ---
    def check_data(self, data: Any) -> None:
        self.model.check_tokenizer(data.tokenizer)

    def begin_stage(self, name: str, stage: Stage, folder: Path, seed: int) -> None:
        super().begin_stage(name, stage, folder, seed)
        boxes: int = self.trainer.datamodule.num_boxed_phrases()  # type: ignore[attr-defined]
        self.data_lack = frozenset() if boxes else OF_BOXES
        left_out = [term for term, (_, _, needed) in self.losses.bound.items() if self.data_lack & set(needed)]
        if left_out and len(left_out) == len(self.losses.bound):
            raise InputError(f"stages.{name}.losses: all of them ({', '.join(left_out)}) need boxes of phrases, and these data have none")
        if left_out:
            logger.warning(
                "stages.%s.losses: %s needs boxes of phrases, and these data have none, so it is left out; Flickr30k Entities "
                "(the folders Annotations and Sentences) beside the pictures would give them",
                name,
                ", ".join(left_out),
            )

    def setup(self, stage: str) -> None:
        """Where the image tower is locked, or only evaluated, the data may serve its features instead of pictures."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        tower = self.model.image
        if isinstance(tower, ImageTower) and hasattr(data, "serve_features"):
            trains = stage == "fit" and any(parameter.requires_grad for parameter in tower.parameters())
            regions = self.model.reads_regions or bool(OF_BOXES & self.losses.needs)
            data.serve_features(None if trains else tower, regions)

    def save_inputs(self, run_dir: Path, data: Any) -> None:
        data.tokenizer.save(run_dir / "tokenizer.json")

    def save_results(self, run_dir: Path, data: Any) -> None:
        save_retrievals(self.test_retrieval.seen, data, run_dir)

    def save_predictions(self, rows: list[Prediction], folder: Path) -> str:
        save_predictions(rows, folder)
        return f"embeddings: {folder / 'embeddings.safetensors'}, their names beside them"

    def references(self, data: Any, split: str) -> dict[str, dict[str, float]]:
        """The recalls that a random order would reach."""
        counts = data.caption_counts(split)
        return {"chance": chance_recall(len(counts), counts)}

    def remarks(self, test: dict[str, float]) -> list[str]:
        """Hard negatives told apart, where the data have some."""
        if "test/hard_negative_accuracy_seen" not in test:
            return []
        columns = {"model": "test/", "re-ranked": "test/reranked_"}
        columns |= {name.replace("_", " "): f"test/baseline/{name}/" for name in BASELINES}
        lines = []
        for kind in ("seen", "unseen"):
            named = {label: f"{prefix}hard_negative_accuracy_{kind}" for label, prefix in columns.items()}
            listed = "  ".join(f"{label} {test[name]:.3f}" for label, name in named.items() if name in test)
            lines.append(f"hard negatives, {kind} combinations (chance .5): {listed}")
        return lines

    # --- what a finished run leaves for others ---
    def parts(self, given: Mapping[str, Any], data: Any) -> Parts:
        return super().parts(given, data)._replace(tokenizer=data.tokenizer, text=data.probe("val", 1).texts[0])

    def card(self, run_dir: Path, data: Any, test: dict[str, float]) -> TaskFacts:
        """Recalls with their intervals, and the worst queries."""
        facts = super().card(run_dir, data, test)
        return dataclasses.replace(facts, results=retrieval_results(read_ranks(run_dir)[0], test)) if test else facts

    def failures(self, run_dir: Path) -> str:
        return retrieval_failures(read_ranks(run_dir)[0])

    # --- steps ---
    def quantities_of(self, batch: ImageTextBatch, generator: torch.Generator) -> Quantities:
        return Quantities(self.model, batch, generator, self._before)

    def example_names(self, batch: ImageTextBatch) -> Sequence[str]:
        return batch.filenames

    def throughput(self, batch: ImageTextBatch) -> dict[str, int]:
        return {"pairs": len(batch.caption_id)}

    def step_figures(self) -> dict[str, Tensor]:
        return {"train/scale": self.model.scale.detach()}

    def validation_step(self, batch: ImageTextBatch, batch_idx: int) -> None:
        image, text = self.model.encode_image(batch.image), self.model.encode_text(batch.tokens, batch.token_mask)
        caption_image_id = batch.image_id[batch.caption_row]
        self.val_retrieval.update(image.embedding, text.embedding, batch.image_id, batch.caption_id, caption_image_id)
        if self.losses.bound:
            served = self.trainer.datamodule.serving.captions_per_image  # type: ignore[attr-defined]
            part = batch if served == "all" else first_captions(batch, served)  # as many captions as in training
            self.log_validation_loss(part, batch_idx)

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
