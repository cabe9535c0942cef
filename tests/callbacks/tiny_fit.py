"""A fit that takes less than a second, for callbacks that look into a model: pictures of four patches, captions with marked phrases."""

from __future__ import annotations

import random
from pathlib import Path

import lightning as L
import numpy as np
import torch
from lightning.pytorch.loggers.logger import DummyLogger
from torch.utils.data import DataLoader

from insight.data.batch import ImageTextBatch, Phrase
from insight.data.text import Tokenizer

TEXTS = tuple(f"a dog {row}" for row in range(8))
CONTEXT = 6
TOKENIZER = Tokenizer.train(TEXTS, 300)
TOWERS = {"image_size": 16, "patch_size": 8, "dim": 8, "image_depth": 2, "text_depth": 1, "heads": 2}
SHAPE = {"vocab_size": TOKENIZER.size, "context_length": CONTEXT, **TOWERS}
FIRST, SECOND = ((0.1, 0.1, 0.5, 0.5),), ((0.6, 0.6, 0.9, 0.9),)  # boxes around one patch each


def pairs_batch(rows) -> ImageTextBatch:
    rows = list(rows)
    texts = tuple(TEXTS[row] for row in rows)
    tokens, mask = TOKENIZER.encode(texts, CONTEXT)
    image = torch.stack([torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(row)) for row in rows])
    phrases = [
        phrase
        for place in range(len(rows))
        for phrase in (Phrase(place, "a dog", 0, 5, f"{place}a", FIRST), Phrase(place, texts[place][6:], 6, 7, f"{place}b", SECOND))
    ]
    ids = torch.tensor(rows)
    names = tuple(f"{row}.jpg" for row in rows)
    return ImageTextBatch(image, None, tokens, mask, torch.arange(len(rows)), ids, ids, texts, names, tuple(phrases))


class Pairs(L.LightningDataModule):
    tokenizer, context_length = TOKENIZER, CONTEXT

    def __init__(self):
        super().__init__()
        self.asked = []
        everything = pairs_batch(range(8))
        self.rows = list(zip(everything.image, everything.tokens, strict=True))

    def probe(self, split, num, seed):
        self.asked.append((split, num, seed))
        torch.rand(3), random.random(), np.random.rand()  # careless: the callback must shield the training from it
        return pairs_batch(range(min(num, 8)))

    def splits(self):
        return {"val": [f"{row}.jpg" for row in range(8)]}

    def examples(self, split, names):
        return pairs_batch(int(name.removesuffix(".jpg")) for name in names)

    def train_dataloader(self):
        return DataLoader(self.rows, batch_size=4, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.rows, batch_size=4)


class Module(L.LightningModule):
    def __init__(self, kind, stage_dir=None, learning_rate=1e-3):
        super().__init__()
        torch.manual_seed(0)
        self.model = kind(**SHAPE, dropout=0.1)
        self.stage_dir, self.stage_name, self.learning_rate = stage_dir, "joint", learning_rate

    def training_step(self, batch, batch_idx):
        image, tokens = batch
        output = self.model(image, tokens, tokens > 0)
        return (output.image.embedding - output.text.embedding).square().mean() + 1e-3 * torch.rand(()) * output.scale

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), self.learning_rate)


class Keeper(DummyLogger):
    """A logger that takes files and tags."""

    def __init__(self):
        super().__init__()
        self.files, self.metrics, self.tags, self.steps = [], {}, {}, []

    def log_artifact(self, local_path, artifact_path=None):
        self.files.append((artifact_path, Path(local_path).name))

    def log_metrics(self, metrics, step=None):
        self.metrics.update(metrics)
        self.steps += [(name, step) for name in metrics]

    def set_tags(self, tags):
        self.tags.update(tags)


def fit(callbacks, module, epochs=2, logger=False, checkpoint=None, **arguments):
    L.seed_everything(3, verbose=False)
    arguments = {"num_sanity_val_steps": 0, "enable_checkpointing": False, **arguments}
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=epochs,
        logger=logger,
        callbacks=callbacks,
        enable_progress_bar=False,
        enable_model_summary=False,
        **arguments,
    )
    trainer.fit(module, datamodule=Pairs(), ckpt_path=checkpoint, weights_only=True if checkpoint else None)
    return trainer
