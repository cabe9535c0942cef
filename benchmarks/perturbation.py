"""What a mask costs, and how many it takes: our evaluator and KernelSHAP against captum's KernelShap, in turns in one process, CPU time.

python -m benchmarks.perturbation      (writes benchmarks/results/perturbation.json; about 4 CPU-minutes)

``per_evaluation``: a vision transformer of 2.7 million weights, 16 segments. Captum explains one class of one picture, as it does by
default (one mask a pass) and with 64 masks a pass; ours explains ten classes of all pictures. Removed segments are zero, as captum's are,
or left out of the sequence, which is another question to the model and named so.

``error``: relative error of the Shapley values of a small seeded model against exact ones (2^16 masks). Both methods read the same table
of values, so only their choice of masks and their fit differ; captum knows no token drop, but plays that game as well. The small model's
weights are three times the usual initial ones: with those it would be almost additive, and any method exact.

``equal_error``: captum needs so many times more evaluations for the error of ours at 256, each of which costs so many times more; the
time is that of the removal for which it needs the fewest.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import captum
import torch
from captum.attr import KernelShap
from torch import Tensor, nn

from insight.interpret.coalitions import all_masks, shapley_design
from insight.interpret.families import Classifier, Target
from insight.interpret.masks import MaskedRows, Removal, pixels_zero, token_drop
from insight.interpret.players import grid_segments
from insight.interpret.readout import read_kernel_shap
from insight.models.vision_transformer import VisionTransformer

RESULT = Path(__file__).parent / "results" / "perturbation.json"
SEGMENTS, CLASSES, GRID, BUDGET = 16, 10, 8, 256


class Pictures:
    """The part of a batch that a classifier reads."""

    def __init__(self, image: Tensor) -> None:
        self.image = image


def classifier(image_size: int, patch_size: int, dim: int, depth: int, heads: int, gain: float) -> Classifier:
    torch.manual_seed(0)
    family = Classifier(VisionTransformer(image_size, patch_size, dim, depth, heads).eval(), nn.Linear(dim, CLASSES).eval())
    with torch.no_grad():
        for parameter in family.model.parameters():
            parameter.mul_(gain if parameter.ndim > 1 else 1)
    return family


def pictures(count: int, size: int) -> Tensor:
    """Smooth colours with a little noise."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.randn(count, 3, 8, 8, generator=generator)
    return nn.functional.interpolate(coarse, size=size, mode="bilinear") + 0.3 * torch.randn(count, 3, size, size, generator=generator)


def masked(family: Classifier, image: Tensor, classes: int, removal: Removal, dtype: torch.dtype | None = None) -> MaskedRows:
    target = Target(torch.arange(len(image)).repeat_interleave(classes), torch.arange(classes).repeat(len(image)))
    rows, _ = family.rows(Pictures(image), target)
    return MaskedRows(family, rows, grid_segments(GRID, SEGMENTS), removal=removal, dtype=dtype)


def cpu_seconds(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def per_evaluation(count: int, repeats: int) -> dict[str, Any]:
    """Median CPU milliseconds of one mask of one picture, fits included."""
    family, image = classifier(64, 8, 192, 6, 3, gain=1), pictures(count, 64)
    pixel_mask = grid_segments(GRID, SEGMENTS).view(GRID, GRID).repeat_interleave(8, 0).repeat_interleave(8, 1).expand(1, 1, 64, 64)

    def captums(masks: int, at_once: int) -> Callable[[], object]:
        method = KernelShap(lambda pixels: family.head(family.vision(pixels).pooled))
        settings = {"target": 0, "feature_mask": pixel_mask, "n_samples": masks, "perturbations_per_eval": at_once}
        return torch.no_grad()(lambda: method.attribute(image[:1], **settings))

    def ours(masks: int, removal: Removal, dtype: torch.dtype | None = None) -> Callable[[], object]:
        def run() -> object:
            design = shapley_design(SEGMENTS, masks, seed=0)
            return read_kernel_shap(design, masked(family, image, CLASSES, removal, dtype).scores(design.kept_KM))

        return run

    ways: dict[str, tuple[Callable[[], object], int]] = {  # and the masks of pictures that it evaluates
        "captum_default": (captums(BUDGET, 1), BUDGET),
        "captum_64_at_once": (captums(BUDGET, 64), BUDGET),
        "ours_float32_pixels_zero": (ours(BUDGET, pixels_zero), BUDGET * count),
        "ours_float32_token_drop": (ours(BUDGET, token_drop), BUDGET * count),
        "ours_bfloat16_token_drop": (ours(BUDGET // 2, token_drop, torch.bfloat16), BUDGET // 2 * count),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    masked(family, image[:1], 1, token_drop).scores()  # nobody pays for the first call of a kernel
    for _ in range(repeats):
        for name, (run, evaluations) in ways.items():
            times[name].append(1000 * cpu_seconds(run) / evaluations)
    median = {name: statistics.median(values) for name, values in times.items()}
    return {
        "pictures": count,
        "classes_of_ours": CLASSES,
        "cpu_ms": median,
        "captum_default_over": {name: median["captum_default"] / value for name, value in median.items() if name.startswith("ours")},
    }


def exact_values(table_GX: Tensor) -> Tensor:
    """Shapley values (G, M) from the values of all masks."""
    kept_KM = all_masks(SEGMENTS)
    size_K = kept_KM.sum(dim=1)
    with_weight = torch.tensor([0.0, *(1 / (SEGMENTS * math.comb(SEGMENTS - 1, size - 1)) for size in range(1, SEGMENTS + 1))]).double()
    without_weight = torch.tensor([*(1 / (SEGMENTS * math.comb(SEGMENTS - 1, size)) for size in range(SEGMENTS)), 0.0]).double()
    kept = kept_KM.double()
    return table_GX.double() @ (kept * with_weight[size_K][:, None] - (1 - kept) * without_weight[size_K][:, None])


def errors(removal: Removal, budgets: list[int], seeds: int, count: int) -> tuple[dict[str, Any], Tensor]:
    family = classifier(32, 4, 32, 2, 2, gain=3)
    table_GX = masked(family, pictures(count, 32), 1, removal).scores(all_masks(SEGMENTS))
    exact_GM, bits = exact_values(table_GX), 2 ** torch.arange(SEGMENTS)
    found: dict[str, Any] = {}
    for budget in budgets:
        relative, honest = [], []
        for seed in range(seeds):
            design = shapley_design(SEGMENTS, budget, seed)
            values = read_kernel_shap(design, table_GX[:, (design.kept_KM.long() * bits).sum(dim=1)])
            wrong_GM = values.value_GM - exact_GM
            relative += (wrong_GM.norm(dim=1) / exact_GM.norm(dim=1)).tolist()
            honest += (wrong_GM.abs() < 2 * values.standard_error_GM).flatten().tolist()
        found[str(budget)] = {"relative_error": statistics.mean(relative), "within_two_standard_errors": statistics.mean(honest)}
    return found, table_GX


def captums_errors(table_GX: Tensor, budgets: list[int], seeds: int) -> dict[str, Any]:
    exact_GM, bits = exact_values(table_GX), 2 ** torch.arange(SEGMENTS)
    found: dict[str, Any] = {}
    for budget in budgets:
        relative = []
        for seed in range(seeds):
            for values_X, exact_M in zip(table_GX, exact_GM, strict=True):
                torch.manual_seed(seed)
                method = KernelShap(lambda kept, values_X=values_X: values_X[(kept.long() * bits).sum(dim=1)])
                values_M = method.attribute(torch.ones(1, SEGMENTS), n_samples=budget, perturbations_per_eval=64)[0]
                relative.append(float((values_M - exact_M).norm() / exact_M.norm()))
        found[str(budget)] = {"relative_error": statistics.mean(relative)}
    return found


def needed(errors_of: dict[str, Any], goal: float) -> float:
    """Evaluations at which the error is ``goal``: a straight line between the logarithms, beyond the last as 1 / square root."""
    points = [(math.log(int(budget)), math.log(found["relative_error"])) for budget, found in errors_of.items()]
    for (x1, y1), (x2, y2) in itertools.pairwise(points):
        if y2 <= math.log(goal) <= y1:
            return math.exp(x1 + (x2 - x1) * (y1 - math.log(goal)) / (y1 - y2))
    return math.exp(points[-1][0] + 2 * (points[-1][1] - math.log(goal)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=RESULT, help="file that is written")
    parser.add_argument("--pictures", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3, help="runs of each; the median counts")
    parser.add_argument("--seeds", type=int, default=6, help="of the masks, for the error")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    if min(arguments.pictures, arguments.repeats, arguments.seeds, arguments.threads) < 1:
        parser.error("needs --pictures, --repeats, --seeds and --threads 1 or more")
    torch.set_num_threads(arguments.threads)
    cost = per_evaluation(arguments.pictures, arguments.repeats)
    budgets = [98, 128, BUDGET, 512, 1024]
    error, times_more = {}, {}
    for removal in (pixels_zero, token_drop):
        ours, table_GX = errors(removal, budgets, arguments.seeds, arguments.pictures)
        captums = captums_errors(table_GX, [BUDGET, 1024, 4096], arguments.seeds)
        error[removal.__name__] = {"ours": ours, "captum": captums}
        times_more[removal.__name__] = needed(captums, ours[str(BUDGET)]["relative_error"]) / BUDGET
    fewest = min(times_more.values())
    result = {
        "machine": {"threads": torch.get_num_threads(), "cpu": torch.backends.cpu.get_cpu_capability()},
        "torch": torch.__version__,
        "captum": captum.__version__,
        "per_evaluation": cost,
        "error": error,
        "equal_error": {
            "captum_evaluations_over_ours": times_more,
            "cpu_time_over": {name: ratio * fewest for name, ratio in cost["captum_default_over"].items()},
        },
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=2) + "\n")
    for name, value in cost["cpu_ms"].items():
        print(f"{name}: {value:.2f} CPU-ms per mask of a picture, captum's default is {cost['cpu_ms']['captum_default'] / value:.2f}x that")
    for removal, methods in error.items():
        for name, by_budget in methods.items():
            told = ", ".join(f"{found['relative_error']:.3f} at {budget}" for budget, found in by_budget.items())
            print(f"relative error of {name}, {removal}: {told}")
    for name, ratio in result["equal_error"]["cpu_time_over"].items():
        print(f"at equal error captum's default takes {ratio:.1f}x the time of {name}")


if __name__ == "__main__":
    main()
