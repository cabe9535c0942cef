"""Texts as batches of token windows, for a language model. A subclass says where its documents come from."""

from __future__ import annotations

import hashlib
import json
import logging
import random
from abc import abstractmethod
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from datamodules.captions import SPLITS
from datamodules.loading import EpochBatches, ResumableLoader, SampleKey, evaluation_loader
from insight.data.language import TextBatch, TextCodec, windows
from insight.errors import InputError

logger = logging.getLogger(__name__)


class Document(NamedTuple):
    name: str
    text: str


class Window(NamedTuple):
    """A piece of a document as tokens."""

    row: int  # in its split
    name: str  # of the document
    ids: list[int]


class Windows(Dataset):
    """The windows of one split; in training they are asked for by (index, seed), of which the seed has nothing to decide."""

    def __init__(self, rows: list[Window]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: int | SampleKey) -> Window:
        return self.rows[key if isinstance(key, int) else key[0]]


class TextDataModule(LightningDataModule):
    """Documents of three splits, cut into windows of tokens.

    Args:
        context_length: Most tokens of a window; a longer document becomes several.
        vocab_size: Most entries of the tokenizer that is trained on the training texts.
        tokenizer: A tokenizer file to use instead of training one: RUN/tokenizer.json, or that of a GPT-2 checkpoint.
        batch_size: Windows per step, over all devices.
        eval_batch_size: Windows per step of evaluation, per device.
        num_workers: Processes that prepare batches. The batches are the same for every number.
        seed: Of the batches outside a stage, and of splits by lot.
    """

    generated = False
    title = "texts"
    codec: TextCodec

    def __init__(
        self,
        context_length: int = 64,
        vocab_size: int = 4000,
        tokenizer: str | None = None,
        batch_size: int = 64,
        eval_batch_size: int = 128,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, number, least in (("eval_batch_size", eval_batch_size, 1), ("num_workers", num_workers, 0)):
            if number < least:
                raise InputError(f"data.init_args.{name}={number}: must be at least {least}")
        self.context_length, self.vocab_size = context_length, vocab_size
        self.own_batch_size, self.eval_batch_size, self.num_workers, self.seed = batch_size, eval_batch_size, num_workers, seed
        self._tokenizer_path = tokenizer
        self._codec_given: TextCodec | None = None  # of a checkpoint
        self._documents: dict[str, list[Document]] = {}
        self._windows: dict[str, list[Window]] = {}
        self.configure_stage(seed)

    def configure_stage(self, stage_seed: int, batch_size: int | None = None) -> None:
        """How the next training loader serves; None: as the constructor was told.

        Raises:
            InputError: ``batch_size`` is below 1.
        """
        self.stage_seed, self.batch_size = stage_seed, self.own_batch_size if batch_size is None else batch_size
        if self.batch_size < 1:
            raise InputError(f"batch_size={self.batch_size}: must be at least 1")

    # --- of the data set ---
    @abstractmethod
    def read(self) -> dict[str, list[Document]]:
        """The documents of every split. Called once.

        Raises:
            InputError: there are none.
        """

    @abstractmethod
    def place(self) -> str:
        """Where they come from, for the first line of a run."""

    # --- preparation ---
    def documents(self, split: str) -> list[Document]:
        if split not in SPLITS:
            raise InputError(f"split '{split}': must be one of {', '.join(SPLITS)}")
        if not self._documents:
            self._documents = self.read()
        return self._documents[split]

    def prepare_data(self) -> None:
        self.documents("train")

    def setup(self, stage: str | None = None) -> None:
        if not self._windows:
            self._make_windows()

    def _make_windows(self) -> None:
        """With the tokenizer that there is, or with one trained on the training split."""
        if self._codec_given is not None:
            self.codec = self._codec_given
        elif self._tokenizer_path is not None:
            self.codec = TextCodec.load(self._tokenizer_path)
        else:
            self.codec = TextCodec.train([document.text for document in self.documents("train")], self.vocab_size)
        for split in SPLITS:
            documents = self.documents(split)
            encoded = self.codec.ids([document.text for document in documents])
            pieces = [
                (document.name, piece)
                for document, ids in zip(documents, encoded, strict=True)
                for piece in windows(ids, self.codec, self.context_length)
            ]
            self._windows[split] = [Window(row, name, piece) for row, (name, piece) in enumerate(pieces)]

    def windows(self, split: str) -> list[Window]:
        self.setup()
        if split not in SPLITS:
            raise InputError(f"split '{split}': must be one of {', '.join(SPLITS)}")
        return self._windows[split]

    def collate(self, rows: list[Window]) -> TextBatch:
        """Padded at the end to the longest."""
        longest = max(len(row.ids) for row in rows)
        tokens_CT = torch.full((len(rows), longest), self.codec.pad)
        mask_CT = torch.zeros(len(rows), longest, dtype=torch.bool)
        for place, row in enumerate(rows):
            tokens_CT[place, : len(row.ids)] = torch.tensor(row.ids)
            mask_CT[place, : len(row.ids)] = True
        texts = tuple(self.codec.decode(row.ids) for row in rows)
        text_id, names = torch.tensor([one.row for one in rows]), tuple(one.name for one in rows)
        return TextBatch(tokens_CT, mask_CT, text_id, texts, names, sum(len(row.ids) - 1 for row in rows))

    # --- for the engine ---
    def _ranks(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)

    def _position(self) -> tuple[int, int]:
        """(epoch, next batch) of the training that runs."""
        if self.trainer is None:
            return 0, 0
        return self.trainer.current_epoch, self.trainer.fit_loop.batch_idx + 1

    def train_dataloader(self) -> DataLoader:
        rows = Windows(self.windows("train"))
        batches = EpochBatches(len(rows), self.batch_size, self.stage_seed, *self._ranks())
        return ResumableLoader(rows, batches, self._position, self.collate, self.num_workers, torch.cuda.is_available())

    def _evaluation(self, split: str) -> DataLoader:
        """Every process its own windows, none twice: nothing in the evaluation of a language model waits for other processes."""
        rows, (rank, world) = Windows(self.windows(split)), self._ranks()
        share = list(range(rank, len(rows), world))
        return evaluation_loader(rows, share, self.eval_batch_size, self.collate, self.num_workers, torch.cuda.is_available())

    def val_dataloader(self) -> DataLoader:
        return self._evaluation("val")

    def test_dataloader(self) -> DataLoader:
        return self._evaluation("test")

    def state_dict(self) -> dict[str, Any]:
        return {"tokenizer": self.codec.to_json(), "fingerprint": self.fingerprint()} if self._windows else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Use the checkpoint's tokenizer, here and in what was prepared before."""
        if "tokenizer" not in state_dict:
            return
        self._codec_given = TextCodec.from_json(state_dict["tokenizer"])
        if self._windows and state_dict["fingerprint"] != self.fingerprint():
            logger.warning("the data are not those that the checkpoint was trained on: %s", self.describe())
        if self._windows and state_dict["tokenizer"] != self.codec.to_json():
            self._make_windows()
        self.codec = self._codec_given

    # --- for people and callbacks ---
    def fingerprint(self) -> str:
        """SHA-256 over names and texts of every split."""
        digest = hashlib.sha256()
        for split in SPLITS:
            for document in sorted(self.documents(split)):
                digest.update(json.dumps([split, *document]).encode())
        return digest.hexdigest()

    def describe(self) -> str:
        """One line on what is read."""
        counts = "/".join(f"{len(self.documents(split)):,}" for split in SPLITS)
        kind = "generated data: " if self.generated else ""
        return f"{kind}{self.title} at {self.place()}: {counts} texts to train, validate and test"

    def splits(self) -> dict[str, list[str]]:
        return {split: [document.name for document in self.documents(split)] for split in SPLITS}

    def probe(self, split: str = "val", num: int = 4, seed: int = 0) -> TextBatch:
        """A few documents' first windows, the same for the same data and seed."""
        first: dict[str, Window] = {}
        for window in self.windows(split):
            first.setdefault(window.name, window)
        names = sorted(first)
        random.Random(seed).shuffle(names)
        return self.collate([first[name] for name in names[:num]])
