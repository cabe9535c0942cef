"""The smallest task that the stage engine can train: a line through points. Neither pictures nor texts."""

from __future__ import annotations

import json
from functools import cached_property
from typing import NamedTuple

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datamodules.loading import EpochBatches, ResumableLoader, evaluation_loader
from lightning_modules.staged import NamedQuantities, Shown, StagedModule

SPLITS = {"train": 24, "val": 8, "test": 8}


class Points(NamedTuple):
    x: Tensor  # (B, 2)
    y: Tensor  # (B,)
    names: tuple[str, ...]


def squared_error(guess: Tensor, y: Tensor) -> Tensor:
    return F.mse_loss(guess, y)


class ToyQuantities(NamedQuantities):
    def __init__(self, model, batch):
        self._model, self._batch = model, batch

    @cached_property
    def guess(self):
        return self._model(self._batch.x)[:, 0]

    @cached_property
    def y(self):
        return self._batch.y


class ToyModule(StagedModule):
    quantities = ToyQuantities
    shown = Shown("mean squared error", {"loss": "error"}, {"test": "test/"})
    example_word = "points"
    result_files = ("errors.json",)

    def __init__(self, width: int = 4) -> None:
        super().__init__(nn.Sequential(nn.Linear(2, width), nn.Dropout(0.1), nn.Linear(width, 1)))

    def quantities_of(self, batch, generator):
        return ToyQuantities(self.model, batch)

    def example_names(self, batch):
        return batch.names

    def validation_step(self, batch, batch_idx):
        self.log_validation_loss(batch, batch_idx)

    def test_step(self, batch, batch_idx):
        self.log("test/loss", squared_error(self.model(batch.x)[:, 0], batch.y), batch_size=len(batch.names))

    def save_results(self, run_dir, data):
        (run_dir / "errors.json").write_text(json.dumps({"points": len(data.splits()["test"])}))

    def references(self, data, split):
        return {"mean of y": {"loss": float(data.points(split).y.var(unbiased=False))}}

    def remarks(self, test):
        return ["a remark"]


class ToyData(L.LightningDataModule):
    generated = True

    def __init__(self, batch_size: int = 8, noise: float = 0.1) -> None:
        super().__init__()
        self.batch_size, self.noise = batch_size, noise
        self.configure_stage(0)

    def configure_stage(self, stage_seed: int, batch_size: int | None = None) -> None:
        self.stage_seed, self.served = stage_seed, batch_size or self.batch_size

    def describe(self):
        return "points by lot"

    def fingerprint(self):
        return f"points {self.noise}"

    def splits(self):
        return {split: [f"{split}{row}" for row in range(count)] for split, count in SPLITS.items()}

    def points(self, split):
        lot = torch.Generator().manual_seed(list(SPLITS).index(split))
        x = torch.randn(SPLITS[split], 2, generator=lot)
        noise = self.noise * torch.randn(len(x), generator=lot)
        return Points(x, x @ torch.tensor([1.0, -2.0]) + noise, tuple(self.splits()[split]))

    def state_dict(self):
        return {"fingerprint": self.fingerprint()}

    def rows(self, split):
        return list(zip(*self.points(split), strict=True))

    def train_dataloader(self):
        batches = EpochBatches(SPLITS["train"], self.served, self.stage_seed)
        return ResumableLoader(Keyed(self.rows("train")), batches, self.position, collate)

    def position(self):
        return self.trainer.current_epoch, self.trainer.fit_loop.batch_idx + 1

    def val_dataloader(self):
        return evaluation_loader(self.rows("val"), list(range(SPLITS["val"])), 8, collate)

    def test_dataloader(self):
        return evaluation_loader(self.rows("test"), list(range(SPLITS["test"])), 8, collate)


class Keyed(torch.utils.data.Dataset):
    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, key):
        return self.rows[key[0]]


def collate(rows):
    x, y, names = zip(*rows, strict=True)
    return Points(torch.stack(x), torch.stack(y), names)
