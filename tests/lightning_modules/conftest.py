"""A tiny run: real stages, real data module, shapes that train in a second."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

LOSS = "insight.losses."


def stage(train: list[str], *losses: str, **changes: Any) -> dict[str, Any]:
    return {
        "epochs": 2,
        "train": train,
        "losses": {name: {"function": LOSS + name} for name in losses},
        "learning_rate": 3.0e-3,
        "trainer": {"gradient_clip_val": 1.0},
        **changes,
    }


@pytest.fixture
def tiny_config(tmp_path: Path, scenes_cache: Path) -> dict[str, Any]:
    """Three stages on 40 generated pictures: 5 batches of 8 an epoch; nothing tracked."""
    sizes = {"image_size": 16, "context_length": 24, "vocab_size": 300}
    return copy.deepcopy(
        {
            "seed_everything": 3,
            "trainer": {"accelerator": "cpu", "devices": 1, "num_sanity_val_steps": 0, "log_every_n_steps": 1},
            "model": {
                "class_path": "lightning_modules.cross_attention.CrossAttentionModule",
                "init_args": {
                    **sizes,
                    "patch_size": 8,
                    "dim": 16,
                    "image_depth": 1,
                    "text_depth": 1,
                    "heads": 2,
                    "embed_dim": 16,
                    "dropout": 0.1,
                    "fusion_depth": 1,
                    "rerank_top_k": 3,
                },
            },
            "data": {
                "class_path": "datamodules.scenes.ScenesDataModule",
                "init_args": {
                    **sizes,
                    "cache_dir": str(scenes_cache),
                    "num_train": 40,
                    "num_val": 12,
                    "num_test": 12,
                    "batch_size": 8,
                    "eval_batch_size": 5,
                },
            },
            "stages": {
                "single_modality": stage(
                    ["model.image.*", "model.image_projection.*", "model.word_head.*", "model.text.*", "model.text_projection.*"],
                    "image_views",
                    "word_classification",
                    "caption_pairs",
                    data={"views": 2, "captions_per_image": 2},
                ),
                "cross_modal": stage(
                    ["model.*_projection.*", "model.logit_scale", "model.fusion*", "model.match_head.*", "model.masked_head.*"],
                    "contrastive",
                    "image_text_matching",
                    "masked_language_modelling",
                    "fused_phrase_regions",
                    monitor="val/mean_recall",
                ),
                "end_to_end": stage(
                    ["*"],
                    "hard_negative_contrastive",
                    "image_text_matching",
                    "masked_language_modelling",
                    "word_classification",
                    "phrase_regions",
                    "fused_phrase_regions",
                    "decorrelation",
                    "feature_consistency",
                    learning_rates={"model.text.*": 1.0e-3},
                    monitor="val/loss",
                    mode="min",
                ),
            },
            "callbacks": {},
            "tracking": {"enabled": False},
            "deployment": {"bundle": False, "register": False},
            "run": {"name": "tiny", "output_dir": str(tmp_path / "outputs"), "save_every_n_steps": 2},
            "run_dir": str(tmp_path / "run"),
        }
    )
