"""Visual question answering: a question reads the picture, and a head chooses among a fixed list of answers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from insight.data.batch import ImageTextBatch
from insight.errors import InputError
from insight.export.bundle import Parts
from insight.export.card import table
from insight.models.cross_attention import CrossAttentionMultiModalTransformer
from insight.question_baselines import BlindAnswers, accuracy_by_kind
from lightning_modules.staged import NamedQuantities, Shown, StagedModule

ANSWERS_FILE = "answers.json"


class QuestionQuantities(NamedQuantities):
    """C questions, A answers."""

    def __init__(self, model: CrossAttentionMultiModalTransformer, batch: ImageTextBatch) -> None:
        self._model, self._batch = model, batch

    @cached_property
    def answer_logits(self) -> Tensor:
        """(C, A)"""
        batch = self._batch
        question, image = self._model.encode_text(batch.tokens, batch.token_mask), self._model.encode_image(batch.image)
        return self._model.answer(question.tokens, batch.token_mask, image.tokens, image_row_C=batch.caption_row)

    @cached_property
    def answer_targets(self) -> Tensor:
        """(C,)"""
        assert self._batch.answer is not None, "check_data saw that the data have answers"
        return self._batch.answer


class VisualQuestionModule(StagedModule):
    """Trains the towers, the fusion and the answer head of a CrossAttentionMultiModalTransformer.

    Args:
        vocab_size: Rows of the token embedding; at least the tokenizer's size.
        num_answers: Answers to choose from: as many as the data have.
        kinds: Kinds of questions, each with its own accuracy: those of the data, in their order.
        image_size: Side of the square picture, in pixels.
        patch_size: Side of a patch, in pixels; divides ``image_size``.
        context_length: Most tokens of a question.
        dim: Width of both towers and of the fusion.
        image_depth: Blocks of the image tower.
        text_depth: Blocks of the text tower.
        heads: Attention heads; divides ``dim``.
        dropout: Dropout in the blocks.
        fusion_depth: Blocks in which the question reads the picture.
    """

    quantities = QuestionQuantities
    shown = Shown(
        "accuracy (fraction of questions)",
        {"accuracy": "accuracy"},
        {
            "test": "test/",
            "test, blind: answer of the kind": "test/baseline/blind_kind/",
            "test, blind: answer of the question": "test/baseline/blind_question/",
        },
    )
    example_word = "pictures"
    data_needs = ("answers", "kinds", "questions")
    progress = ("train/loss", "val/accuracy")
    input_files = ("tokenizer.json",)
    result_files = (ANSWERS_FILE,)
    tracked = ("val/accuracy",)
    purpose = "answers questions about pictures, from a fixed list of answers"
    usage = 'model.labels[int(model.answer(["picture.jpg"], ["what colour is the circle"])[0].argmax())]'
    model: CrossAttentionMultiModalTransformer

    def __init__(
        self,
        vocab_size: int,
        num_answers: int,
        kinds: list[str],
        image_size: int = 64,
        patch_size: int = 8,
        context_length: int = 24,
        dim: int = 128,
        image_depth: int = 4,
        text_depth: int = 2,
        heads: int = 4,
        dropout: float = 0.0,
        fusion_depth: int = 2,
    ) -> None:
        super().__init__(
            CrossAttentionMultiModalTransformer(
                vocab_size,
                image_size,
                patch_size,
                context_length,
                dim,
                image_depth,
                text_depth,
                heads,
                embed_dim=dim,
                dropout=dropout,
                fusion_depth=fusion_depth,
                num_answers=num_answers,
            )
        )
        if num_answers < 2:
            raise InputError(f"model.init_args.num_answers={num_answers}: must be at least 2")
        self.num_answers, self.kinds = num_answers, kinds
        self.accuracy = nn.ModuleDict({split: self._accuracies() for split in ("val", "test")})

    def _accuracies(self) -> nn.ModuleDict:
        """One of all questions, one of each kind."""
        return nn.ModuleDict(
            {
                name: MulticlassAccuracy(self.num_answers, average="micro")
                for name in ("accuracy", *(f"accuracy_{kind}" for kind in self.kinds))
            }
        )

    # --- around the training ---
    def check_data(self, data: Any) -> None:
        for name, own, theirs in (
            ("num_answers", self.num_answers, len(data.answers)),
            ("kinds", self.kinds, list(data.kinds)),
        ):
            if own != theirs:
                raise InputError(f"model.init_args.{name}={own}, but the data have {theirs}: the two must be equal")
        if data.tokenizer.size > self.model.text.vocab_size:
            raise InputError(
                f"model.init_args.vocab_size={self.model.text.vocab_size}, but the tokenizer has {data.tokenizer.size} entries"
            )

    def save_inputs(self, run_dir: Path, data: Any) -> None:
        data.tokenizer.save(run_dir / "tokenizer.json")

    def save_results(self, run_dir: Path, data: Any) -> None:
        """Every test question with its answer and the model's."""
        (run_dir / ANSWERS_FILE).write_text(json.dumps(self._test_rows, ensure_ascii=False, indent=0), encoding="utf-8")

    # --- what a finished run leaves for others ---
    def parts(self, given: Mapping[str, Any], data: Any) -> Parts:
        found = super().parts(given, data)
        arguments, text = {**found.arguments, "embed_dim": self.model.embed_dim}, data.questions("val")[0].question
        return found._replace(arguments=arguments, tokenizer=data.tokenizer, text=text, labels=tuple(data.answers))

    def failures(self, run_dir: Path) -> str:
        rows = json.loads((run_dir / ANSWERS_FILE).read_text(encoding="utf-8"))
        wrong = [one for one in rows if one["answer"] != one["said"]]
        if not wrong:
            return "Every question of the test split got its answer."
        first: dict[str, dict[str, str]] = {}
        for one in wrong:
            first.setdefault(one["kind"], one)
        columns = ["kind", "question", "filename", "answer", "said"]
        listed = table(columns, [[one[name] for name in columns] for one in first.values()])
        return f"{len(wrong):,} of {len(rows):,} questions of the test split; the first of each kind:\n\n{listed}"

    def remarks(self, test: dict[str, float]) -> list[str]:
        """Accuracy of each kind, and what can be had without a look."""
        lines = []
        for kind in self.kinds:
            columns = {
                "model": "test/",
                "blind, by kind": "test/baseline/blind_kind/",
                "blind, by question": "test/baseline/blind_question/",
            }
            named = {label: f"{prefix}accuracy_{kind}" for label, prefix in columns.items()}
            listed = "  ".join(f"{label} {test[name]:.3f}" for label, name in named.items() if name in test)
            if listed:
                lines.append(f"{kind:<10}{listed}")
        return lines

    # --- steps ---
    def quantities_of(self, batch: ImageTextBatch, generator: torch.Generator) -> QuestionQuantities:
        return QuestionQuantities(self.model, batch)

    def example_names(self, batch: ImageTextBatch) -> Sequence[str]:
        return batch.filenames

    def throughput(self, batch: ImageTextBatch) -> dict[str, int]:
        return {"questions": len(batch.texts)}

    def validation_step(self, batch: ImageTextBatch, batch_idx: int) -> None:
        self.log_validation_loss(batch, batch_idx)
        self._count("val", batch)

    def on_validation_epoch_end(self) -> None:
        self._log("val")

    def on_test_epoch_start(self) -> None:
        self._test_rows: list[dict[str, str]] = []

    def test_step(self, batch: ImageTextBatch, batch_idx: int) -> None:
        answers, kinds = self.trainer.datamodule.answers, self.kinds  # type: ignore[attr-defined]
        chosen_C = self._count("test", batch)
        assert batch.answer is not None and batch.kind is not None, "_count has read them"
        columns = (batch.caption_row.tolist(), batch.kind.tolist(), batch.texts, batch.answer.tolist(), chosen_C.tolist())
        for row, kind, text, right, chosen in zip(*columns, strict=True):
            facts = {"filename": batch.filenames[row], "kind": kinds[kind], "question": text}
            self._test_rows.append({**facts, "answer": answers[right], "said": answers[chosen]})

    def on_test_epoch_end(self) -> None:
        self._log("test")
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        blind, asked = BlindAnswers.fit(data.questions("train")), data.questions("test")
        for name, answers in (("blind_kind", blind.by_kind(asked)), ("blind_question", blind.by_question(asked))):
            self.log_dict({f"test/baseline/{name}/{what}": value for what, value in accuracy_by_kind(answers, asked).items()})

    def predict_step(self, batch: ImageTextBatch, batch_idx: int) -> tuple[ImageTextBatch, Tensor]:
        return batch, self.quantities_of(batch, torch.Generator()).answer_logits.argmax(dim=1)

    def save_predictions(self, rows: list[tuple[ImageTextBatch, Tensor]], folder: Path) -> str:
        answers = self.trainer.datamodule.answers  # type: ignore[attr-defined]
        found = [
            {"filename": batch.filenames[row], "question": text, "said": answers[chosen]}
            for batch, chosen_C in rows
            for row, text, chosen in zip(batch.caption_row.tolist(), batch.texts, chosen_C.tolist(), strict=True)
        ]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ANSWERS_FILE).write_text(json.dumps(found, ensure_ascii=False, indent=0), encoding="utf-8")
        return f"answers: {folder / ANSWERS_FILE}"

    def _count(self, split: str, batch: ImageTextBatch) -> Tensor:
        """Count the batch's answers; returns those that the model gives, (C,)."""
        values = self.quantities_of(batch, torch.Generator())
        chosen_C = values.answer_logits.argmax(dim=1)
        metrics: Any = self.accuracy[split]
        metrics["accuracy"].update(chosen_C, values.answer_targets)
        assert batch.kind is not None, "data with answers have kinds"
        for number, kind in enumerate(self.kinds):
            own_C = torch.eq(batch.kind, number)
            if own_C.any():
                metrics[f"accuracy_{kind}"].update(chosen_C[own_C], values.answer_targets[own_C])
        return chosen_C

    def _log(self, split: str) -> None:
        metrics: Any = self.accuracy[split]
        if not self.trainer.sanity_checking:  # all of them on every process: computing waits for the others
            self.log_dict({f"{split}/{name}": metric.compute() for name, metric in metrics.items()})
        for metric in metrics.values():
            metric.reset()
