"""A tiny model of each architecture, and its bundle."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from insight.data.text import Tokenizer
from insight.export.building import ARCHITECTURES
from insight.export.bundle import Parts, save
from insight.export.kinds import Bundle

ARGUMENTS = {
    "vocab_size": 300, "image_size": 16, "patch_size": 8, "context_length": 12, "dim": 16, "image_depth": 1, "text_depth": 1, "heads": 2,
    "embed_dim": 8, "dropout": 0.1,
}  # fmt: skip
DATA = {"fingerprint": "f" * 64, "splits": {"train": 40, "val": 12, "test": 12}, "description": "generated data (tiny)"}
TEXTS = ["a red circle", "a blue square left of a red one", "two triangles"]


@pytest.fixture
def model() -> Callable[..., Any]:
    def _model(name: str = "CrossAttentionMultiModalTransformer", **changes: Any) -> torch.nn.Module:
        torch.manual_seed(0)
        return ARCHITECTURES[name](**{**ARGUMENTS, **changes})

    return _model


@pytest.fixture
def bundle(model, tmp_path) -> Callable[..., Bundle]:
    def _bundle(name: str = "CrossAttentionMultiModalTransformer", folder: Path | None = None, **changes: Any) -> Bundle:
        parts = {"arguments": ARGUMENTS, "tokenizer": Tokenizer.train(TEXTS, 300), "text": TEXTS[0]}
        parts |= {key: changes.pop(key) for key in Parts._fields if key in changes}
        given = {
            "model": model(name),
            "config": {"seed_everything": 3, "model": {"init_args": ARGUMENTS}},
            "data": DATA,
            **changes,
        }
        return save(folder or tmp_path / "bundle", parts=Parts(**parts), **given)

    return _bundle
