"""By how much does the matching head beat the towers? Recall before and after it re-orders their best candidates, query by query.

python -m benchmarks.rerank --run RUN_FOLDER [--root FLICKR30K]      (writes benchmarks/results/rerank.json)

For each number of candidates: the six recalls and their mean with 95 % bootstrap intervals over pictures, and re-ranked minus towers by
paired bootstrap. An interval without 0 is a real difference, whatever its sign.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.grounding import opened
from insight.bootstrap import Interval, mean_interval
from insight.errors import InputError
from insight.metrics import DIRECTIONS, RECALL_AT, Ranks
from insight.models.cross_attention import CrossAttentionMultiModalTransformer
from lightning_modules.cross_attention import SplitFeatures

RESULT = Path(__file__).parent / "results" / "rerank.json"
TOP = (16, 32, 64)
MEAN = "mean_recall"


def hits(ranks: Ranks, picture_C: Tensor) -> dict[str, Tensor]:
    """Numbers per picture (B,) whose means are the figures: a picture's captions count with it, each as much as any other caption."""
    found = {}
    for direction, ranks_Q in zip(DIRECTIONS, ranks, strict=True):
        for k in RECALL_AT:
            hit_Q = (ranks_Q <= k).double()
            if direction == "text_to_image":
                num_pictures = len(ranks.image_to_text_B)
                hit_Q = torch.zeros(num_pictures, dtype=torch.float64).index_add(0, picture_C, hit_Q) * (num_pictures / len(ranks_Q))
            found[f"{direction}_recall_at_{k}"] = hit_Q
    return found | {MEAN: torch.stack(list(found.values())).mean(dim=0)}


def compared(before: Ranks, after: Ranks, picture_C: Tensor) -> dict[str, dict[str, dict[str, float]]]:
    """By metric: towers, re-ranked, and the difference, each a value with its interval."""
    towers, reranked = hits(before, picture_C), hits(after, picture_C)
    return {
        name: {
            "towers": rounded(mean_interval(towers[name])),
            "reranked": rounded(mean_interval(reranked[name])),
            "difference": rounded(mean_interval(reranked[name] - towers[name])),
        }
        for name in towers
    }


def rounded(interval: Interval) -> dict[str, float]:
    return {name: round(value, 4) for name, value in interval._asdict().items()}


def verdict(difference: dict[str, float]) -> str:
    """In words."""
    if difference["low"] > 0:
        return "better"
    return "worse" if difference["high"] < 0 else "no difference that the interval shows"


@torch.inference_mode()
def measure(model: CrossAttentionMultiModalTransformer, batches: Sequence[Any], top: Sequence[int]) -> dict[str, Any]:
    """By number of candidates."""
    features = SplitFeatures.of(model, batches)
    rows = {image: row for row, image in enumerate(features.image_id_B.tolist())}
    picture_C = torch.tensor([rows[image] for image in features.caption_image_id_C.tolist()])
    before, found = features.ranks(), {}
    for k in top:
        started = time.process_time()
        figures = compared(before, features.reranked(model, k), picture_C)
        found[str(k)] = {"cpu_seconds": round(time.process_time() - started, 1), **figures}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True, help="folder of a run with at least one finished stage")
    parser.add_argument("--root", type=Path, help="folder of Flickr30k, if it lies elsewhere than when the run was trained")
    parser.add_argument("--cache", type=Path, help="folder of decoded pictures; by default the run's")
    parser.add_argument("--top", type=int, nargs="+", default=list(TOP), help="candidates of each query")
    parser.add_argument("--output", type=Path, default=RESULT, help="file that is written; results of other data in it stay")
    options = parser.parse_args()
    try:
        if min(options.top) < 1:
            raise InputError(f"--top {min(options.top)}: re-rank at least 1 candidate, e.g. 16")
        model, data, _ = opened(options.run, options.root, options.cache)
        if not isinstance(model, CrossAttentionMultiModalTransformer):
            raise InputError(f"{options.run}: a {type(model).__name__} has no matching head to re-rank by; train model=cross_attention")
        data.setup("test")
        batches = list(data.test_dataloader())
    except (InputError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    print(data.describe())
    found = measure(model, batches, options.top)
    kept = json.loads(options.output.read_text(encoding="utf-8")) if options.output.is_file() else {}
    pictures, captions = (sum(len(getattr(batch, name)) for batch in batches) for name in ("image_id", "caption_id"))
    kept[data.title] = {"generated": data.generated, "pictures": pictures, "captions": captions, "top": found}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for k, figures in found.items():
        one = figures[MEAN]
        change = one["difference"]
        print(
            f"top {k:>3}: mean recall {one['towers']['value']:.4f} -> {one['reranked']['value']:.4f}, "
            f"{change['value']:+.4f} [{change['low']:+.4f}, {change['high']:+.4f}]: {verdict(change)}; {figures['cpu_seconds']} CPU-s"
        )
    print(f"results: {options.output}")


if __name__ == "__main__":
    main()
