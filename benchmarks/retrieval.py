"""CPU time of our exact recall against torchmetrics' retrieval classes, same embeddings, same run, repetitions interleaved.

python -m benchmarks.retrieval --images 1000 --captions 5000      (writes benchmarks/results/retrieval.json)
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
import torchmetrics
from torch import Tensor
from torchmetrics.retrieval import RetrievalHitRate

from insight.metrics import DIRECTIONS, RECALL_AT, retrieval_ranks, retrieval_scores

RESULT = Path(__file__).parent / "results" / "retrieval.json"


def embeddings(images: int, captions: int, dim: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Random pictures, their captions near them: image and text embedding, image id, and image id of each caption."""
    generator = torch.Generator().manual_seed(0)
    own = torch.arange(captions) % images
    image = F.normalize(torch.randn(images, dim, generator=generator), dim=-1)
    text = F.normalize(image[own] + 3 * F.normalize(torch.randn(captions, dim, generator=generator), dim=-1), dim=-1)
    return image, text, torch.arange(images), own


def ours(image: Tensor, text: Tensor, image_id: Tensor, caption_image_id: Tensor) -> dict[str, float]:
    """Ranks, and all scores from them."""
    return retrieval_scores(retrieval_ranks(image, text, image_id, caption_image_id))


def rival(image: Tensor, text: Tensor, image_id: Tensor, caption_image_id: Tensor) -> dict[str, float]:
    """RetrievalHitRate (what papers call recall) as its documentation shows, once per k and direction."""
    scores = image @ text.T + 2  # it counts matches that score 0 or less as misses
    right = image_id[:, None] == caption_image_id[None, :]
    found = {}
    for direction, table, target in zip(DIRECTIONS, (scores, scores.T), (right, right.T), strict=True):
        query = torch.arange(len(table))[:, None].expand_as(table).flatten()
        for k in RECALL_AT:
            metric = RetrievalHitRate(top_k=k)
            metric.update(table.flatten(), target.flatten(), indexes=query)
            found[f"{direction}_recall_at_{k}"] = metric.compute().item()
    return found


def cpu_seconds(run: Callable[..., dict[str, float]], data: tuple[Tensor, ...]) -> tuple[float, dict[str, float]]:
    """CPU seconds of all threads, and the answer."""
    start = time.process_time()
    answer = run(*data)
    return time.process_time() - start, answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=RESULT, help="file that is written")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--captions", type=int, default=5000)
    parser.add_argument("--dim", type=int, default=128, help="width of the embeddings")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each; the median counts")
    parser.add_argument("--threads", type=int, default=1, help="threads of both; CPU time of several counts their waiting, too")
    arguments = parser.parse_args()
    if not 1 <= arguments.images <= arguments.captions or min(arguments.dim, arguments.repeats, arguments.threads) < 1:
        parser.error("needs --images 1 or more, --captions as many or more, --dim, --repeats and --threads 1 or more")
    torch.set_num_threads(arguments.threads)
    data = embeddings(arguments.images, arguments.captions, arguments.dim)
    ours(*data)  # neither pays for the first call of a kernel
    seconds: dict[str, list[float]] = {"ours": [], "torchmetrics": []}
    for _ in range(arguments.repeats):
        own_time, own_answer = cpu_seconds(ours, data)
        rival_time, rival_answer = cpu_seconds(rival, data)
        seconds["ours"].append(own_time)
        seconds["torchmetrics"].append(rival_time)
    difference = max(abs(own_answer[name] - value) for name, value in rival_answer.items())
    result = {
        "images": arguments.images,
        "captions": arguments.captions,
        "dim": arguments.dim,
        "repeats": arguments.repeats,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "torchmetrics": torchmetrics.__version__,
        "cpu_seconds_ours": statistics.median(seconds["ours"]),
        "cpu_seconds_torchmetrics": statistics.median(seconds["torchmetrics"]),
        "ratio": statistics.median(theirs / own for own, theirs in zip(seconds["ours"], seconds["torchmetrics"], strict=True)),
        "largest_difference_of_a_recall": difference,
        "recall": {name: own_answer[name] for name in rival_answer},
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=2) + "\n")
    print(
        f"{arguments.images} pictures, {arguments.captions} captions: ours {result['cpu_seconds_ours']:.3f} CPU-s, "
        f"torchmetrics {result['cpu_seconds_torchmetrics']:.2f} CPU-s, {result['ratio']:.0f}x; recalls differ by at most {difference:.1e}"
    )


if __name__ == "__main__":
    main()
