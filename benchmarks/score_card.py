"""What it costs to score explanations: 32 probes, 8 methods, map + pointing game + deletion + insertion each, CPU time.

python -m benchmarks.score_card      (writes benchmarks/results/score_card.json; about 1 CPU-minute)

It times what the score card calls, ``insight.interpret.scorecard``, with its own number of steps. The model is that of
configs/model/multimodal.yaml with seeded random weights; a picture has 64 patches, a caption 12 words and ``--phrases`` marked phrases.
Methods that say nothing of single words get each phrase as a caption of its own. Only the time means something here.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from insight.data.batch import ImageTextBatch, Phrase
from insight.interpret.families import DualEncoder
from insight.interpret.localisation import phrase_scores
from insight.interpret.methods import METHODS
from insight.interpret.probe import Probe
from insight.interpret.scorecard import STEPS, curves, look
from insight.models.multimodal import MultiModalTransformer

RESULT = Path(__file__).parent / "results" / "score_card.json"
NAMES = ("raw_attention", "rollout", "chefer", "legrad", "grad_eclip", "grad_cam", "integrated_gradients", "kernel_shap")
WORDS, VOCABULARY = 12, 600


def probes(count: int, phrases: int) -> Probe:
    """Pictures with a caption each, and so many marked phrases of two words."""
    generator = torch.Generator().manual_seed(0)
    row = torch.arange(count)
    image = torch.randn(count, 3, 64, 64, generator=generator)
    corner = 0.6 * torch.rand(count, phrases, 2, generator=generator)
    boxes = torch.cat([corner, corner + 0.3], dim=-1).tolist()
    marked = tuple(
        Phrase(number, "", 0, 1, str(which), ((x1, y1, x2, y2),))
        for number, of_picture in enumerate(boxes)
        for which, (x1, y1, x2, y2) in enumerate(of_picture)
    )
    others = tuple(
        tuple(box for one in marked if one.caption == phrase.caption and one is not phrase for box in one.boxes) for phrase in marked
    )
    alone = _batch(image, row.repeat_interleave(phrases), 2, generator)
    return Probe(_batch(image, row, WORDS, generator), ((),) * count, marked, ((1, 2),) * len(marked), others, alone, 0)


def _batch(image: torch.Tensor, picture: torch.Tensor, words: int, generator: torch.Generator) -> ImageTextBatch:
    count = len(picture)
    tokens = torch.randint(4, VOCABULARY, (count, words + 2), generator=generator)
    tokens[:, 0], tokens[:, -1] = 1, 2
    everything, names = torch.ones_like(tokens, dtype=torch.bool), ("",) * count
    return ImageTextBatch(
        image, None, tokens, everything, picture, torch.arange(len(image)), torch.arange(count), names, ("",) * len(image), ()
    )


def score(model: MultiModalTransformer, probe: Probe, name: str) -> tuple[float, float, float]:
    """CPU seconds of the maps, of the localisation and of the two curves."""
    start, family = time.process_time(), DualEncoder(model)
    looked = look(family, probe, METHODS[name])
    assert looked.phrases_Pgg is not None, "every one of these methods gives patches values"
    mapped = time.process_time()
    phrase_scores(looked.phrases_Pgg.numpy(), [one.boxes for one in probe.phrases], probe.others).means()
    pointed = time.process_time()
    curves(family, probe.batch, looked.explanation, STEPS)
    return mapped - start, pointed - mapped, time.process_time() - pointed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=RESULT, help="file that is written")
    parser.add_argument("--probes", type=int, default=32)
    parser.add_argument("--phrases", type=int, default=1, help="marked ones of each picture")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each method; the median counts")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    if min(arguments.probes, arguments.phrases, arguments.repeats, arguments.threads) < 1:
        parser.error("needs --probes, --phrases, --repeats and --threads 1 or more")
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    model = MultiModalTransformer(VOCABULARY, 64, 8, 32, dim=96, image_depth=3, text_depth=2, heads=4, embed_dim=128)
    probe = probes(arguments.probes, arguments.phrases)
    score(model, probes(2, 1), "chefer")  # no method pays for the first call of a kernel
    seconds: dict[str, list[tuple[float, float, float]]] = {name: [] for name in NAMES}
    for _ in range(arguments.repeats):
        for name in NAMES:
            seconds[name].append(score(model, probe, name))
    methods: dict[str, Any] = {}
    for name, runs in seconds.items():
        parts = [statistics.median(part) for part in zip(*runs, strict=True)]
        methods[name] = dict(zip(("maps", "localisation", "deletion_and_insertion"), parts, strict=True))
    total = sum(sum(parts.values()) for parts in methods.values())
    result = {
        "machine": {"threads": torch.get_num_threads(), "cpu": torch.backends.cpu.get_cpu_capability()},
        "torch": torch.__version__,
        "probes": arguments.probes,
        "phrases_of_each": arguments.phrases,
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
