"""What looking at attention costs beside the fused kernel: CPU time of a forward pass with and without it, repetitions interleaved.

python -m benchmarks.capture      (writes benchmarks/results/capture.json)

The rival is the usual way to see the weights: leave the fused kernel for softmax(q k^T) v and keep what the softmax made. Beside the
difference of whole passes, which other work on the machine blurs, the time inside the listeners is measured directly.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from insight.interpret.families import Classifier, Family
from insight.interpret.head_statistics import class_row, record_heads
from insight.interpret.record import record, record_attention
from insight.models.vision_transformer import VisionTransformer
from insight.nn.attention import AttentionCall, AttentionTap

RESULT = Path(__file__).parent / "results" / "capture.json"
SHAPES = {65: (64, 8, 32), 197: (112, 8, 8), 577: (192, 8, 4)}  # tokens: pixels a side, pixels of a patch, pictures
DIM, DEPTH, HEADS = 192, 6, 3


def tower(tokens: int) -> tuple[Family, Tensor]:
    image_size, patch_size, pictures = SHAPES[tokens]
    torch.manual_seed(0)
    family = Classifier(VisionTransformer(image_size, patch_size, DIM, DEPTH, HEADS).eval(), nn.Identity())
    return family, torch.randn(pictures, 3, image_size, image_size)


@contextmanager
def explicit_and_kept() -> Iterator[list[Tensor]]:
    kept: list[Tensor] = []

    def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        kept.append(((query / query.shape[-1] ** 0.5) @ key.transpose(-2, -1)).softmax(dim=-1))
        return kept[-1] @ value

    with mock.patch("insight.nn.attention.attend", attend):
        yield kept


def ways(family: Family) -> dict[str, Callable[[], AbstractContextManager[Any]]]:
    """By name, contexts in which the tower is run."""
    return {
        "nothing": nullcontext,
        "class_row": lambda: record(family.model, dict.fromkeys(family.flow.image, class_row)),
        "class_row_and_head_statistics": lambda: record_heads(family),
        "full_maps": lambda: record_attention(family.model),
        "rival_explicit_full_maps": explicit_and_kept,
    }


@contextmanager
def timed_listeners() -> Iterator[list[float]]:
    """CPU seconds that each call of a tap takes."""
    spent: list[float] = []

    def tell(tap: AttentionTap, call: AttentionCall) -> None:
        start = time.process_time()
        for listener in tap.listeners:
            listener(call)
        spent.append(time.process_time() - start)

    with mock.patch.object(AttentionTap, "__call__", tell):
        yield spent


@torch.no_grad()
def measure(tokens: int, repeats: int) -> dict[str, Any]:
    family, image = tower(tokens)
    vision = family.model["image"]  # type: ignore[index]
    plain = vision(image).tokens
    seconds: dict[str, list[float]] = {name: [] for name in ways(family)}
    inside: dict[str, list[float]] = {name: [] for name in seconds}
    identical: dict[str, bool] = {}
    shuffled = random.Random(0)  # what runs before leaves its traces in the caches
    for repeat in range(repeats + 2):
        for name, way in shuffled.sample(list(ways(family).items()), k=len(ways(family))):
            with way(), timed_listeners() as listening:
                start = time.process_time()
                output = vision(image).tokens
                spent = time.process_time() - start
            identical[name] = identical.get(name, True) and torch.equal(output, plain)
            if repeat >= 2:  # the first two warm up
                seconds[name].append(spent)
                inside[name].append(sum(listening))
    overhead = {
        name: statistics.median(spent) / statistics.median(seconds["nothing"]) - 1 for name, spent in seconds.items() if name != "nothing"
    }
    listening = {name: statistics.median(inside[name]) / statistics.median(seconds["nothing"]) for name in overhead if "rival" not in name}
    return {
        "tokens": tokens,
        "pictures": len(image),
        "forward_cpu_ms": 1000 * statistics.median(seconds["nothing"]),
        "overhead": overhead,
        "inside_listeners": listening,
        "outputs_bit_identical": identical,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=RESULT, help="file that is written")
    parser.add_argument("--tokens", type=int, nargs="+", choices=sorted(SHAPES), default=sorted(SHAPES), help="class token and patches")
    parser.add_argument("--repeats", type=int, default=40, help="passes of each; the median of the ratios counts")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    if min(arguments.repeats, arguments.threads) < 1:
        parser.error("needs --repeats and --threads 1 or more")
    torch.set_num_threads(arguments.threads)
    result = {
        "dim": DIM,
        "depth": DEPTH,
        "heads": HEADS,
        "repeats": arguments.repeats,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "shapes": [measure(tokens, arguments.repeats) for tokens in arguments.tokens],
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=2) + "\n")
    for shape in result["shapes"]:
        inside = shape["inside_listeners"]
        told = ", ".join(
            f"{name.replace('_', ' ')} {100 * value:+.1f} %" + (f" ({100 * inside[name]:.1f} inside listeners)" if name in inside else "")
            for name, value in shape["overhead"].items()
        )
        print(f"{shape['tokens']} tokens x {shape['pictures']} pictures, {shape['forward_cpu_ms']:.0f} CPU-ms: {told}")


if __name__ == "__main__":
    main()
