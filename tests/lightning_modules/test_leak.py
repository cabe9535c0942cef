"""On unrelated pairs nothing can be learnt: recall stays at chance (an earlier build reported R@10 = .906 there)."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
from PIL import Image

from insight.metrics import chance_recall
from lightning_modules.drive import run_stages
from lightning_modules.engine_cli import build

WORDS = [
    "dog",
    "man",
    "runs",
    "red",
    "ball",
    "grass",
    "woman",
    "sits",
    "blue",
    "boat",
    "sky",
    "child",
    "jumps",
    "green",
    "tree",
    "water",
    "city",
    "night",
    "snow",
    "bridge",
]


def write_unrelated(root: Path, sizes: dict[str, int]) -> None:
    """Noise pictures with captions of random words, in Karpathy's form."""
    lot, noise, images = random.Random(0), np.random.default_rng(0), []
    (root / "images").mkdir(parents=True)
    for split, count in sizes.items():
        for number in range(count):
            name = f"{split}{number}.jpg"
            Image.fromarray(noise.integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(root / "images" / name)
            texts = [" ".join(lot.choices(WORDS, k=6)) for _ in range(5)]
            images.append({"filename": name, "split": split, "sentences": [{"raw": text, "tokens": text.split()} for text in texts]})
    (root / "dataset_flickr30k.json").write_text(json.dumps({"dataset": "flickr30k", "images": images}))


def test_on_unrelated_pairs_recall_is_at_chance(tiny_config, tmp_path):
    write_unrelated(tmp_path / "data", {"train": 64, "val": 100, "test": 100})
    own = {key: value for key, value in tiny_config["data"]["init_args"].items() if not key.startswith("num_")}
    tiny_config["data"] = {
        "class_path": "datamodules.flickr30k.Flickr30kDataModule",
        "init_args": {**own, "root": str(tmp_path / "data"), "cache_dir": str(tmp_path / "cache"), "batch_size": 16},
    }
    tiny_config["stages"]["end_to_end"]["epochs"] = 6
    assert run_stages(build(tiny_config)) == 0
    test = json.loads((Path(tiny_config["run_dir"]) / "summary.json").read_text())["test"]
    chance = chance_recall(100, 5)
    for prefix in ("test/", "test/reranked_"):
        for name, queries in (("image_to_text_recall_at_10", 100), ("text_to_image_recall_at_10", 100)):
            bound = chance[name] + 4.0 * (chance[name] * (1 - chance[name]) / queries) ** 0.5  # captions of one picture are not independent
            assert test[prefix + name] < bound, f"{prefix}{name}"
