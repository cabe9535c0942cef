"""The captioner: a cross-attention model with a decoder, whose captions are scored in every validation and written down in the test."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed

from insight.baselines import words_of
from insight.caption_baselines import Captioner, FrequentCaption, NearestCaption
from insight.caption_metrics import caption_scores, cider_d
from insight.captions import write_captions
from insight.data.batch import ImageTextBatch
from insight.errors import InputError
from insight.export.card import TaskFacts, figures_table, table
from insight.export.retrieval_card import WORST
from insight.gather import world_size
from insight.interpret.localisation import PhraseScores
from insight.interpret.maps import MapFacts
from insight.interpret.probe import Probe
from insight.interpret.written import arrays_of_writing, judge_writing, probe_of_written
from insight.objective import BoundLoss
from insight.stages import Stage
from lightning_modules.base import BASELINES
from lightning_modules.cross_attention import CrossAttentionModule
from lightning_modules.retrievals import RETRIEVAL_FILES
from lightning_modules.staged import Shown

CAPTIONS, SHEET, WORDS = "captions.json", "captions.png", "captions_words.png"
SHOWN = 4  # pictures whose words are drawn beside what was read for each
METRICS = {"caption_bleu_4": "BLEU-4", "caption_cider_d": "CIDEr-D", "caption_rouge_l": "ROUGE-L"}
RECALLS = {"image_to_text_recall_at_1": "image to text R@1", "text_to_image_recall_at_1": "text to image R@1"}


class Written(NamedTuple):
    """One picture's caption."""

    image_id: int
    filename: str
    generated: str
    references: tuple[str, ...]


class CaptioningModule(CrossAttentionModule):
    """Everything that CrossAttentionModule does, and captions by BLEU-4, CIDEr-D and ROUGE-L.

    Args:
        vocab_size: Rows of the token embedding; at least the tokenizer's size.
        image_size: Side of the square picture, in pixels.
        patch_size: Side of a patch, in pixels; divides ``image_size``.
        context_length: Most tokens of a caption.
        dim: Width of both towers, of the fusion and of the decoder.
        image_depth: Blocks of the image tower.
        text_depth: Blocks of the text tower.
        heads: Attention heads; divides ``dim``.
        embed_dim: Width of the common embedding.
        dropout: Dropout in the blocks.
        fusion_depth: Blocks in which text reads the image.
        rerank_top_k: Candidates of each query that the matching head re-orders in the test; 0 = no re-ranking.
        fuse_every: In training the fusion reads every n-th picture of a batch; 1 = all.
        decoder_depth: Blocks of the decoder, at least 1.
        beams: Candidates of the search for a caption; 1 = greedy.
        val_captions: Pictures of the validation split that get a caption, the first ones on each device.
        caption_every: Captions are scored every so many epochs, and after the last.
    """

    shown = Shown(
        "captions and recall",
        METRICS | RECALLS,
        {
            "test": "test/",
            "test, nearest caption by colours": "test/baseline/nearest_caption/",
            "test, most frequent caption": "test/baseline/frequent_caption/",
            "test, re-ranked": "test/reranked_",
            **{f"test, {name.replace('_', ' ')}": f"test/baseline/{name}/" for name in BASELINES},
        },
    )
    progress = ("train/loss", "val/caption_cider_d", "val/image_to_text_recall_at_10")
    result_files = (*RETRIEVAL_FILES, CAPTIONS, SHEET, WORDS)
    tracked = ("val/caption_cider_d", "val/image_to_text_recall_at_10")
    purpose = "writes captions of pictures, and compares pictures with captions"
    usage = 'model.write(["picture.jpg"], beams=3)'

    def __init__(
        self,
        vocab_size: int,
        image_size: int = 64,
        patch_size: int = 8,
        context_length: int = 32,
        dim: int = 128,
        image_depth: int = 4,
        text_depth: int = 4,
        heads: int = 4,
        embed_dim: int = 128,
        dropout: float = 0.0,
        fusion_depth: int = 2,
        rerank_top_k: int = 16,
        fuse_every: int = 1,
        decoder_depth: int = 2,
        beams: int = 1,
        val_captions: int = 100,
        caption_every: int = 1,
    ) -> None:
        for name, value in (
            ("decoder_depth", decoder_depth),
            ("beams", beams),
            ("val_captions", val_captions),
            ("caption_every", caption_every),
        ):
            if value < 1:
                raise InputError(f"model.init_args.{name}={value}: must be at least 1")
        super().__init__(
            vocab_size,
            image_size,
            patch_size,
            context_length,
            dim,
            image_depth,
            text_depth,
            heads,
            embed_dim,
            dropout,
            fusion_depth,
            rerank_top_k,
            fuse_every,
            decoder_depth=decoder_depth,
        )
        self.beams, self.val_captions, self.caption_every = beams, val_captions, caption_every
        self._written: list[Written] = []
        self._judged: list[PhraseScores] = []

    def check_stage(self, name: str, stage: Stage) -> dict[str, BoundLoss]:
        if self.caption_every > 1 and (stage.monitor or "").startswith("val/caption_"):
            raise InputError(f"stages.{name}.monitor={stage.monitor} is not there after every epoch: set model.init_args.caption_every=1")
        return super().check_stage(name, stage)

    # --- steps ---
    def write(self, batch: ImageTextBatch) -> list[Written]:
        """A caption for each picture, by the data module's own tokenizer."""
        tokenizer = self.trainer.datamodule.tokenizer  # type: ignore[attr-defined]
        texts = write_captions(self.model, tokenizer, self.model.encode_image(batch.image).tokens, self.beams)
        references: list[list[str]] = [[] for _ in texts]
        for row, text in zip(batch.caption_row.tolist(), batch.texts, strict=True):
            references[row].append(text)
        columns = zip(batch.image_id.tolist(), batch.filenames, texts, map(tuple, references), strict=True)
        return [Written(*one) for one in columns]

    def on_validation_epoch_start(self) -> None:
        self._written = []

    def validation_step(self, batch: ImageTextBatch, batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        epoch = self.trainer.current_epoch + 1
        due = epoch % self.caption_every == 0 or epoch == self.trainer.max_epochs
        if due and len(self._written) < self.val_captions:
            self._written += self.write(batch)[: self.val_captions - len(self._written)]

    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()
        written = from_all_devices(self._written)
        if written and not self.trainer.sanity_checking:
            self.log_dict({f"val/{name}": value for name, value in figures_of(written).items()})

    def on_test_epoch_start(self) -> None:
        super().on_test_epoch_start()
        self._written, self._judged = [], []
        self._first: Probe | None = None  # captions of the first pictures, to be drawn

    def test_step(self, batch: ImageTextBatch, batch_idx: int) -> None:
        super().test_step(batch, batch_idx)
        written = self.write(batch)
        self._written += written
        tokenizer = self.trainer.datamodule.tokenizer  # type: ignore[attr-defined]
        probe = probe_of_written(batch, [one.generated for one in written], tokenizer, self.model.text.context_length)
        judged = None if probe is None else judge_writing(self.model, probe)
        self._judged += [] if judged is None else [judged]
        if self._first is None and probe is not None:
            self._first = probe

    def on_test_epoch_end(self) -> None:
        super().on_test_epoch_end()
        self.log_dict({f"test/{name}": value for name, value in figures_of(self._written).items()})
        if self._judged:  # some phrase that people marked was written
            scores = PhraseScores(*map(np.concatenate, zip(*self._judged, strict=True)))
            self.log_dict({f"insight/writing/{name}": value for name, value in scores.means().items() if not math.isnan(value)})
            self.log("insight/writing/phrases", float(len(scores.pointing)))
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        train_images, train_captions = data.pairs("train")
        images = data.pairs("test")[0][[one.image_id for one in self._written]]
        baselines: dict[str, Captioner] = {
            "nearest_caption": NearestCaption.fit(train_images, train_captions),
            "frequent_caption": FrequentCaption.fit(train_images, train_captions),
        }
        for name, baseline in baselines.items():
            copied = [one._replace(generated=text) for one, text in zip(self._written, baseline.write(images), strict=True)]
            self.log_dict({f"test/baseline/{name}/{what}": value for what, value in figures_of(copied).items()})

    # --- what a finished run leaves for others ---
    def card(self, run_dir: Path, data: Any, test: dict[str, float]) -> TaskFacts:
        """The captions' figures, then the recalls."""
        facts = super().card(run_dir, data, test)
        if not test:
            return facts
        captions = figures_table(
            {name: value for name, value in test.items() if "caption_" in name}, METRICS, self.shown.tests, self.references(data, "test")
        )
        return dataclasses.replace(facts, results=f"{captions}\n\n{facts.results}")

    def failures(self, run_dir: Path) -> str:
        kept = json.loads((run_dir / CAPTIONS).read_text(encoding="utf-8"))["captions"]
        lowest = sorted(kept, key=lambda one: one["cider_d"])[:WORST]
        rows = [[one["cider_d"], one["filename"], one["generated"], one["references"][0]] for one in lowest]
        written = table(["CIDEr-D", "picture", "written", "somebody's caption"], rows)
        return f"The captions with the lowest CIDEr-D:\n\n{written}\n\n{super().failures(run_dir)}"

    # --- what a run keeps ---
    def save_results(self, run_dir: Path, data: Any) -> None:
        """Beside the retrievals, every test picture's caption as JSON, and the first ones as a sheet."""
        super().save_results(run_dir, data)
        from insight.interpret.draw_captions import MOST, Captioned, draw_captions  # loads matplotlib

        scores = cider_d(
            [words_of(one.generated) for one in self._written], [[words_of(text) for text in one.references] for one in self._written]
        )
        rows = [
            {"filename": one.filename, "generated": one.generated, "references": one.references, "cider_d": round(score, 4)}
            for one, score in zip(self._written, scores.tolist(), strict=True)
        ]
        (run_dir / CAPTIONS).write_text(json.dumps({"beams": self.beams, "captions": rows}, ensure_ascii=False, indent=1), encoding="utf-8")
        images = data.pairs("test")[0]
        entries = [
            Captioned(images[one.image_id].permute(1, 2, 0).numpy(), one.filename, one.generated, one.references, score)
            for one, score in zip(self._written[:MOST], scores.tolist(), strict=False)
        ]
        note = f"{len(rows)} test pictures, the first {len(entries)}; {'greedy' if self.beams == 1 else f'{self.beams} beams'}"
        draw_captions(entries, "Captions of test pictures", note).save(run_dir / SHEET)
        if self._first is None:
            draw_captions([], "No caption has a word", note).save(run_dir / WORDS)
        else:
            self._draw_words(self._first, run_dir)

    def _draw_words(self, probe: Probe, run_dir: Path) -> None:
        from insight.interpret.draw import draw_word_sheet  # loads matplotlib

        name, arrays = arrays_of_writing(self.model, probe)
        examples = probe.examples()[:SHOWN]
        facts = MapFacts(self.stage_name, self.trainer.current_epoch, self.trainer.global_step, self.model.image.grid_size, (), examples)
        draw_word_sheet(arrays, facts, name).save(run_dir / WORDS)


def figures_of(written: list[Written]) -> dict[str, float]:
    """By metric name, without the split."""
    scores = caption_scores([one.generated for one in written], [one.references for one in written])
    return {f"caption_{name}": value for name, value in scores.items()}


def from_all_devices(written: list[Written]) -> list[Written]:
    """Of all processes, each picture once."""
    if world_size() == 1:
        return written
    found: list[list[Written]] = [[] for _ in range(world_size())]
    torch.distributed.all_gather_object(found, written)
    return list({one.image_id: one for part in found for one in part}.values())
