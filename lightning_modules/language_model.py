"""The causal language model as a LightningModule: the task of texts. C windows, T tokens, V vocabulary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from insight.data.language import TextBatch, TextCodec
from insight.errors import InputError
from insight.export.bundle import Parts
from insight.gather import count_per_device
from insight.language_baselines import uniform_figures
from insight.language_metrics import LanguageFigures
from insight.losses import IGNORED
from insight.models.gpt2 import CONFIG, TOKENIZER, load_gpt2, locate, model_arguments, read_config
from insight.models.language_model import LanguageModel
from insight.nn.settings import PLAIN, BlockSettings
from lightning_modules.staged import NamedQuantities, Shown, StagedModule


def next_tokens(batch: TextBatch) -> Tensor:
    """(C, T - 1) int64: what is to be named at each place, ``IGNORED`` behind a text's end."""
    return batch.tokens[:, 1:].masked_fill(~batch.token_mask[:, 1:], IGNORED)


class LanguageQuantities(NamedQuantities):
    """Quantities of a language model."""

    def __init__(self, model: LanguageModel, batch: TextBatch) -> None:
        self._model, self._batch = model, batch

    @cached_property
    def next_logits(self) -> Tensor:
        """(C, T - 1, V), on this device."""
        return self._model(self._batch.tokens[:, :-1]).logits

    @cached_property
    def next_targets(self) -> Tensor:
        """(C, T - 1)"""
        return next_tokens(self._batch)

    @cached_property
    def next_count(self) -> Tensor:
        """(): named tokens of all devices divided by the number of devices."""
        return count_per_device(self.next_targets != IGNORED)


class TextModule(StagedModule):
    """A causal language model, its loss and its steps. Subclasses hand in the model."""

    quantities = LanguageQuantities
    shown = Shown(
        "perplexity (1 = everything foreseen), and bits per byte",
        {"perplexity": "per token", "perplexity_per_word": "per word", "bits_per_byte": "bits per byte"},
        {"test": "test/", "test, bigrams": "test/baseline/bigram/", "test, unigrams": "test/baseline/unigram/"},
    )
    example_word = "texts"
    data_needs = ("windows", "probe")
    progress = ("train/loss", "val/perplexity")
    input_files = ("tokenizer.json",)
    tracked = ("val/perplexity",)
    purpose = "says how probable a text is, and writes texts"
    usage = """model.log_probability(["a dog runs on the beach"])
from insight.continuations import Writing
model.write(Writing("a dog", num=3))"""
    model: LanguageModel

    def __init__(self, model: LanguageModel) -> None:
        super().__init__(model)
        self.val_figures, self.test_figures = LanguageFigures(), LanguageFigures()
        self._tables: tuple[Tensor, Tensor] | None = None  # of the tokenizer: words and bytes of each token

    # --- around the training ---
    def check_data(self, data: Any) -> None:
        codec: TextCodec = data.codec
        if codec.size > self.model.embedding.vocab_size:
            raise InputError(
                f"model.init_args.vocab_size={self.model.embedding.vocab_size}, but the tokenizer has {codec.size} entries: "
                "give the tokenizer that the model was trained with (data.init_args.tokenizer), or make the model as large"
            )
        if data.context_length > self.model.context_length:
            raise InputError(
                f"data.init_args.context_length={data.context_length} is longer than the model's {self.model.context_length} positions: "
                f"set it to {self.model.context_length} or less"
            )

    def save_inputs(self, run_dir: Path, data: Any) -> None:
        data.codec.save(run_dir / "tokenizer.json")

    def references(self, data: Any, split: str) -> dict[str, dict[str, float]]:
        """Chance level: every token as probable as any other."""
        return {"chance": uniform_figures([window.ids for window in data.windows(split)], data.codec)}

    # --- what a finished run leaves for others ---
    def parts(self, given: Mapping[str, Any], data: Any) -> Parts:
        """The example is the beginning of a validation text, as much as the context holds."""
        words, most = data.probe("val", 1).texts[0].split(), self.model.context_length - 1
        while len(words) > 1 and len(data.codec.ids([" ".join(words)])[0]) > most:
            words.pop()
        return super().parts(given, data)._replace(tokenizer=data.codec, text=" ".join(words))

    # --- steps ---
    def quantities_of(self, batch: TextBatch, generator: torch.Generator) -> LanguageQuantities:
        return LanguageQuantities(self.model, batch)

    def example_names(self, batch: TextBatch) -> Sequence[str]:
        return batch.names

    def throughput(self, batch: TextBatch) -> dict[str, int]:
        return {"tokens": batch.num_named}

    def _evaluate(self, batch: TextBatch, figures: LanguageFigures) -> None:
        values = LanguageQuantities(self.model, batch)
        if self._tables is None:
            codec: TextCodec = self.trainer.datamodule.codec  # type: ignore[attr-defined]
            words = codec.word_starts()
            words[codec.end] = 1
            self._tables = words.to(self.device), codec.byte_counts().to(self.device)
        named = values.next_targets[values.next_targets != IGNORED]
        words, sizes = self._tables
        figures.update(values.next_logits, values.next_targets, words[named].sum(), sizes[named].sum())

    def on_validation_epoch_start(self) -> None:
        self._tables = None  # the tokenizer may be another one

    def validation_step(self, batch: TextBatch, batch_idx: int) -> None:
        self._evaluate(batch, self.val_figures)
        if self.losses.bound:
            self.log_validation_loss(batch, batch_idx)

    def on_validation_epoch_end(self) -> None:
        if not self.trainer.sanity_checking:
            self.log_dict({f"val/{name}": value for name, value in self.val_figures.compute().items()})
        self.val_figures.reset()

    def on_test_epoch_start(self) -> None:
        self._tables = None

    def test_step(self, batch: TextBatch, batch_idx: int) -> None:
        self._evaluate(batch, self.test_figures)

    def on_test_epoch_end(self) -> None:
        self.log_dict({f"test/{name}": value for name, value in self.test_figures.compute().items()})
        self.test_figures.reset()


class LanguageModule(TextModule):
    """Trains a LanguageModel.

    Args:
        vocab_size: Rows of the token embedding; at least the tokenizer's size.
        context_length: Most tokens of a text.
        dim: Width.
        depth: Blocks.
        heads: Attention heads; divides ``dim``.
        dropout: Dropout in the blocks.
        block: How the blocks are made.
        tied: The rows of the token embedding are the classes of the output too.
    """

    def __init__(
        self,
        vocab_size: int,
        context_length: int = 48,
        dim: int = 128,
        depth: int = 4,
        heads: int = 4,
        dropout: float = 0.0,
        block: BlockSettings = PLAIN,
        tied: bool = True,
    ) -> None:
        super().__init__(LanguageModel(vocab_size, context_length, dim, depth, heads, dropout, block, tied))


class GPT2Module(TextModule):
    """Trains a LanguageModel that starts from a GPT-2 checkpoint; its sizes are the checkpoint's.

    Args:
        weights: A folder with ``config.json`` and ``model.safetensors``, or ``hf-hub:OWNER/MODEL``, e.g. ``hf-hub:openai-community/gpt2``.
        dropout: Dropout in the blocks.
    """

    def __init__(self, weights: str, dropout: float = 0.1) -> None:
        super().__init__(load_gpt2(weights, dropout))
        self._arguments = model_arguments(read_config(locate(weights) / CONFIG), dropout)
        path = locate(weights) / TOKENIZER
        self._tokenizer_path = path if path.exists() else None

    def parts(self, given: Mapping[str, Any], data: Any) -> Parts:
        return super().parts(given, data)._replace(arguments=self._arguments)

    def check_data(self, data: Any) -> None:
        """The checkpoint's tokenizer, where one lies beside it, must be that of the data: the same ids mean other words elsewhere."""
        super().check_data(data)
        if self._tokenizer_path is not None and TextCodec.load(self._tokenizer_path).to_json() != data.codec.to_json():
            raise InputError(f"the data's tokenizer is not that of the checkpoint: set data.init_args.tokenizer={self._tokenizer_path}")
