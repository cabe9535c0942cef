"""Exact answers of a dual encoder beside what they replace, in turns in one process, CPU time.

python -m benchmarks.interactions      (writes benchmarks/results/interactions.json; about 2 CPU-minutes)

``pairs``: word x segment interactions in closed form against the weighted regression of FIxLIP (https://arxiv.org/abs/2508.05430) on all
pairs of the same masks: an intercept, every single player and every pair of players, solved by its normal equations as its authors do. Both
start from the same embeddings; what those cost is told apart.

``joint``: exact Shapley values of 16 segments and 8 words of one pair on a tiny seeded model, 2^16 + 2^8 encodings, beside what 2^24 passes
of the pair would take (a measured pass, multiplied), and what sampling of about 500 joint masks by permutations (the way and budget of
MM-SHAP, https://arxiv.org/abs/2212.08158) makes of the share of the text.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from insight.data.batch import ImageTextBatch
from insight.interpret.coalitions import all_masks, permutation_masks
from insight.interpret.cross_modal import Side, check_joint_size, interaction_masks, interactions, joint_shapley, text_share
from insight.interpret.families import DualEncoder
from insight.interpret.masks import MaskedRows
from insight.interpret.players import grid_segments, token_words
from insight.interpret.readout import read_shapley_sampling
from insight.models.multimodal import MultiModalTransformer

RESULT = Path(__file__).parent / "results" / "interactions.json"
Answer = TypeVar("Answer")


def pair(words: int, dim: int, depth: int) -> tuple[DualEncoder, ImageTextBatch]:
    """A seeded dual encoder of 8 x 8 patches with weights three times the usual initial ones, a picture, and a caption of so many words."""
    torch.manual_seed(0)
    model = MultiModalTransformer(60, 32, 4, words + 2, dim, depth, depth, 2, 32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3 if parameter.ndim > 1 else 1)
    picture = torch.nn.functional.interpolate(torch.randn(1, 3, 8, 8), size=32, mode="bilinear")
    tokens, row = torch.tensor([[1, *range(10, 10 + words), 2]]), torch.zeros(1, dtype=torch.int64)
    batch = ImageTextBatch(picture, None, tokens, tokens > 0, row, row, row, ("",), ("",), ())
    return DualEncoder(model), batch


def masked(family: DualEncoder, batch: ImageTextBatch, segments: int) -> MaskedRows:
    rows, _ = family.rows(batch, None)
    return MaskedRows(family, rows, grid_segments(8, segments), token_words(batch.tokens))


def timed(run: Callable[[], Answer]) -> tuple[float, Answer]:
    start = time.process_time()
    answer = run()
    return time.process_time() - start, answer


def regression(image: Side, image_KE: Tensor, text: Side, text_LE: Tensor, scale: float) -> np.ndarray:
    """(I, W) pairs from the fit to all K * L joint masks."""
    segments, words = image.kept_KM.shape[1], text.kept_KM.shape[1]
    response = (scale * image_KE.double() @ text_LE.double().T).flatten().numpy()
    joint = np.concatenate(
        [np.repeat(image.kept_KM.numpy(), len(text_LE), axis=0), np.tile(text.kept_KM.numpy(), (len(image_KE), 1))], axis=1
    )
    chosen = [(), *itertools.combinations(range(segments + words), 1), *itertools.combinations(range(segments + words), 2)]
    design = np.zeros((len(joint), len(chosen)))
    for column, players in enumerate(chosen):
        design[:, column] = joint[:, list(players)].prod(axis=1)
    weighted = np.outer(image.weight_K.numpy(), text.weight_K.numpy()).reshape(-1, 1) * design
    found = dict(zip(chosen, np.linalg.solve(design.T @ weighted, weighted.T @ response), strict=True))
    return np.array([[found[i, segments + j] for j in range(words)] for i in range(segments)])


def pairs(segments: int, words: int, image_masks: int, text_masks: int, repeats: int) -> dict[str, Any]:
    family, batch = pair(words, dim=64, depth=2)
    rows = masked(family, batch, segments)
    image, text = interaction_masks(segments, 0.5, image_masks, 0), interaction_masks(words, 0.5, text_masks, 0)
    encoding, (image_KE, text_LE) = timed(lambda: (rows.image_vectors(0, image.kept_KM), rows.text_vectors(0, text.kept_KM)))
    scale, own, theirs = family.model.scale.item(), [], []
    for _ in range(repeats):
        seconds, closed = timed(lambda: interactions(image, image_KE, text, text_LE, scale))
        own.append(seconds)
        seconds, fitted = timed(lambda: regression(image, image_KE, text, text_LE, scale))
        theirs.append(seconds)
    return {
        "segments": segments,
        "words": words,
        "masks": [len(image_KE), len(text_LE)],
        "all_masks": [len(image_KE) == 2**segments, len(text_LE) == 2**words],
        "largest_value": float(closed.pair_IW.abs().max()),
        "largest_difference": float(np.abs(closed.pair_IW.numpy() - fitted).max()),
        "cpu_seconds": {"closed_form": statistics.median(own), "regression": statistics.median(theirs), "encodings_for_both": encoding},
        "ratio": statistics.median(theirs) / statistics.median(own),
    }


def joint(segments: int, words: int) -> dict[str, Any]:
    family, batch = pair(words, dim=16, depth=1)
    rows, scale = masked(family, batch, segments), family.model.scale.item()
    encodings = check_joint_size(segments, words, max_encodings=2**segments + 2**words)
    encode, (image_KE, text_LE) = timed(lambda: (rows.image_vectors(0, all_masks(segments)), rows.text_vectors(0, all_masks(words))))
    read, exact = timed(lambda: joint_shapley(image_KE, text_LE, scale))
    share = float(text_share(exact.image_I[None], exact.text_W[None]))
    inputs = family.embed(family.rows(batch, None)[0])
    many = inputs._replace(
        image_RND=inputs.image_RND.expand(256, -1, -1),
        text_RTD=inputs.text_RTD.expand(256, -1, -1),
        text_mask_RT=inputs.text_mask_RT.expand(256, -1),
    )
    with torch.no_grad():
        passes = statistics.median(timed(lambda: family.score(many))[0] / 256 for _ in range(5))
    bits = 2 ** torch.arange(max(segments, words))
    shares, wrong = [], []
    for seed in range(20):
        order_PM, kept_PXM = permutation_masks(segments + words, 20, seed)
        index = [(part.long() * bits[: part.shape[-1]]).sum(dim=-1) for part in kept_PXM.split([segments, words], dim=-1)]
        value_PX = scale * (image_KE[index[0]].double() * text_LE[index[1]].double()).sum(dim=-1)
        sampled = read_shapley_sampling(order_PM, value_PX[None]).value_GM
        shares.append(float(text_share(sampled[:, :segments], sampled[:, segments:])))
        whole = torch.cat(exact)
        wrong.append(float((sampled[0] - whole).norm() / whole.norm()))
    total = image_KE[-1].double() @ text_LE[-1].double() - image_KE[0].double() @ text_LE[0].double()
    return {
        "segments": segments,
        "words": words,
        "encodings": encodings,
        "cpu_seconds": {"encodings": encode, "sums": read},
        "completeness_error": abs(float(torch.cat(exact).sum() - scale * total)),
        "cpu_seconds_of_all_joint_masks_extrapolated": passes * 2 ** (segments + words),
        "text_share": share,
        "permutations_20": {
            "evaluations": 20 * (segments + words - 1) + 2,
            "text_share_from_to": [min(shares), max(shares)],
            "relative_error": statistics.mean(wrong),
            "seeds": 20,
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=RESULT, help="file that is written")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each; the median counts")
    parser.add_argument("--segments", type=int, default=16, help="of the joint values: a square number")
    parser.add_argument("--words", type=int, default=8, help="of the joint values")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    if min(arguments.repeats, arguments.words, arguments.threads) < 1:
        parser.error("needs --repeats, --words and --threads 1 or more")
    torch.set_num_threads(arguments.threads)
    result = {
        "machine": {"threads": torch.get_num_threads(), "cpu": torch.backends.cpu.get_cpu_capability()},
        "torch": torch.__version__,
        "pairs": [pairs(9, 5, 2**9, 2**5, arguments.repeats), pairs(16, 8, 256, 2**8, arguments.repeats)],
        "joint": joint(arguments.segments, arguments.words),
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=2) + "\n")
    for one in result["pairs"]:
        print(
            f"{one['segments']} segments x {one['words']} words, {one['masks'][0]} x {one['masks'][1]} masks: closed form "
            f"{1000 * one['cpu_seconds']['closed_form']:.1f} CPU-ms, regression {1000 * one['cpu_seconds']['regression']:.0f} CPU-ms, "
            f"{one['ratio']:.0f}x; largest difference {one['largest_difference']:.1e} of {one['largest_value']:.2f}"
        )
    one, sampled = result["joint"], result["joint"]["permutations_20"]
    print(
        f"{one['segments']} segments + {one['words']} words, exact: {one['encodings']:,} encodings, {sum(one['cpu_seconds'].values()):.1f} "
        f"CPU-s (every joint mask by itself: {one['cpu_seconds_of_all_joint_masks_extrapolated']:,.0f}, extrapolated); text share "
        f"{one['text_share']:.3f}, by {sampled['evaluations']} sampled masks {sampled['text_share_from_to'][0]:.3f} to "
        f"{sampled['text_share_from_to'][1]:.3f}"
    )


if __name__ == "__main__":
    main()
