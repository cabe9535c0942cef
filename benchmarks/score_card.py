"""What it costs to score explanations: 32 probes, 8 methods, map + pointing game + deletion + insertion each, CPU time.

python -m benchmarks.score_card      (writes benchmarks/results/score_card.json; about 1 CPU-minute)

The model is that of configs/model/multimodal.yaml with seeded random weights, a picture has 64 patches and a caption of 12 words with three
boxes. Only the time means something here: scores of a model that was not trained are left out. Curves take patches away in 16 steps by
leaving them out of the sequence (``token_drop``).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from insight.data.batch import Box, ImageTextBatch
from insight.interpret.explain import explain
from insight.interpret.faithfulness import deletion, insertion
from insight.interpret.families import family_of
from insight.interpret.localisation import phrase_scores
from insight.interpret.masks import MaskedRows
from insight.interpret.methods import METHODS
from insight.interpret.perturbation import game_of
from insight.models.multimodal import MultiModalTransformer

RESULT = Path(__file__).parent / "results" / "score_card.json"
NAMES = ("raw_attention", "rollout", "chefer", "legrad", "grad_eclip", "grad_cam", "integrated_gradients", "kernel_shap")
STEPS, WORDS = 16, 12


def probes(count: int) -> tuple[ImageTextBatch, list[list[Box]]]:
    """Pictures with a caption each, and three boxes of each picture."""
    generator = torch.Generator().manual_seed(0)
    row = torch.arange(count)
    tokens = torch.randint(3, 600, (count, WORDS + 2), generator=generator)
    tokens[:, 0], tokens[:, -1] = 1, 2
    image = torch.randn(count, 3, 64, 64, generator=generator)
    corners = (0.6 * torch.rand(count, 3, 2, generator=generator)).tolist()
    boxes: list[list[Box]] = [[(x, y, x + 0.3, y + 0.3) for x, y in of_picture] for of_picture in corners]
    names = ("",) * count
    return ImageTextBatch(image, None, tokens, tokens > 0, row, row, row, names, names, ()), boxes


def score(model: MultiModalTransformer, batch: ImageTextBatch, boxes: list[list[Box]], name: str) -> tuple[float, float, float]:
    """CPU seconds of the maps, of the localisation and of the two curves."""
    start = time.process_time()
    maps = explain(model, batch, None, METHODS[name]).image
    assert maps is not None, "every one of these methods gives patches values"
    mapped = time.process_time()
    phrases = [[box] for of_picture in boxes for box in of_picture]
    others = [[other for other in of_picture if other is not box] for of_picture in boxes for box in of_picture]
    phrase_scores(maps.repeat_interleave(3, dim=0).numpy(), phrases, others).means()
    pointed = time.process_time()
    family = family_of(model)
    rows, _ = family.rows(batch, None)
    game = game_of(MaskedRows(family, rows, torch.arange(maps[0].numel())))
    deletion(game, maps.flatten(1), STEPS)
    insertion(game, maps.flatten(1), STEPS)
    return mapped - start, pointed - mapped, time.process_time() - pointed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=RESULT, help="file that is written")
    parser.add_argument("--probes", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3, help="runs of each method; the median counts")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    if min(arguments.probes, arguments.repeats, arguments.threads) < 1:
        parser.error("needs --probes, --repeats and --threads 1 or more")
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    model = MultiModalTransformer(600, 64, 8, 32, dim=96, image_depth=3, text_depth=2, heads=4, embed_dim=128)
    batch, boxes = probes(arguments.probes)
    score(model, *probes(2), "chefer")  # no method pays for the first call of a kernel
    seconds: dict[str, list[tuple[float, float, float]]] = {name: [] for name in NAMES}
    for _ in range(arguments.repeats):
        for name in NAMES:
            seconds[name].append(score(model, batch, boxes, name))
    methods: dict[str, Any] = {}
    for name, runs in seconds.items():
        parts = [statistics.median(part) for part in zip(*runs, strict=True)]
        methods[name] = dict(zip(("maps", "localisation", "deletion_and_insertion"), parts, strict=True))
    total = sum(sum(parts.values()) for parts in methods.values())
    result = {
        "machine": {"threads": torch.get_num_threads(), "cpu": torch.backends.cpu.get_cpu_capability()},
        "torch": torch.__version__,
        "probes": arguments.probes,
        "steps": STEPS,
        "repeats": arguments.repeats,
        "cpu_seconds": methods,
        "cpu_seconds_of_all": total,
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=2) + "\n")
    for name, parts in methods.items():
        print(f"{name}: " + ", ".join(f"{part.replace('_', ' ')} {value:.2f}" for part, value in parts.items()) + " CPU-s")
    print(f"all: {total:.1f} CPU-s for {arguments.probes} probes and {len(methods)} methods")


if __name__ == "__main__":
    main()
