"""Three stages against one end-to-end stage of equal compute: the same tuning budget, the same seeds, mean and spread.

``one_stage`` has the losses of the last of the three stages, ``one_stage_all`` those of all three at once.

    python -m benchmarks.stages --data scenes
    python -m benchmarks.stages --data flickr30k --root PATH

Each arm is first tried at the same factors on all its learning rates (seed 0, chosen by the validation's mean recall), then run with
all seeds at its best factor. Finished runs under --work are kept, so the command can be stopped and started again. Writes
benchmarks/results/stages_<data>.json and prints the table.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from hydra import compose, initialize_config_dir

ARMS = ("three_stages", "one_stage", "one_stage_all")
RESULTS = Path(__file__).parent / "results"
SHOWN = {
    "test/image_to_text_recall_at_1": "i2t R@1",
    "test/image_to_text_recall_at_10": "i2t R@10",
    "test/text_to_image_recall_at_1": "t2i R@1",
    "test/text_to_image_recall_at_10": "t2i R@10",
    "test/mean_recall": "mean recall",
    "test/reranked_mean_recall": "re-ranked",
    "test/hard_negative_accuracy_seen": "hard neg. seen",
    "test/hard_negative_accuracy_unseen": "hard neg. unseen",
    "test/reranked_hard_negative_accuracy_seen": "seen, matched",
    "test/reranked_hard_negative_accuracy_unseen": "unseen, matched",
}


def run(arguments: argparse.Namespace, arm: str, seed: int, factor: float, factor_overrides: list[str]) -> dict:
    """One finished run's summary, from its folder where it exists."""
    folder = Path(arguments.work) / f"{arguments.data}-{arm}-seed{seed}-rate{factor:g}"
    if not (folder / "summary.json").exists():
        command = [
            sys.executable,
            "train.py",
            "+experiment=flickr_multistage",
            f"data={arguments.data}",
            f"stages={arm}",
            f"seed_everything={seed}",
        ]
        command += [f"run_dir={folder}", "tracking.enabled=false", "trainer=cpu", "~callbacks.attention_maps", "~callbacks.canary"]
        command += [f"data.init_args.root={arguments.root}"] if arguments.root else []
        command += factor_overrides
        command += arguments.override
        environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads), "MKL_NUM_THREADS": str(arguments.threads)}
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "log.txt").open("a") as log:
            subprocess.run(command, check=True, env=environment, stdout=log, stderr=log)
    return json.loads((folder / "summary.json").read_text())


def rates(data: str, arm: str, factor: float) -> list[str]:
    """Overrides that multiply every learning rate of an arm's stages."""
    with initialize_config_dir(version_base="1.3", config_dir=str(Path(__file__).resolve().parents[1] / "configs")):
        stages = compose("train", overrides=[f"data={data}", f"stages={arm}"]).stages
    overrides = []
    for name, stage in stages.items():
        overrides.append(f"stages.{name}.learning_rate={stage.learning_rate * factor}")
        parts = ", ".join(f"{pattern}: {rate * factor}" for pattern, rate in stage.get("learning_rates", {}).items())
        overrides += [f"stages.{name}.learning_rates={{{parts}}}"] if parts else []
    return overrides


def command_of(arguments: argparse.Namespace) -> str:
    """What to type for these figures, without the places of this machine."""
    listed = {"data": [arguments.data], "arms": arguments.arms, "seeds": arguments.seeds, "factors": arguments.factors}
    words = [f"--{name} {' '.join(map(str, values))}" for name, values in listed.items()]
    words += ["--root PATH"] if arguments.root else []
    words += ["--override", *map(shlex.quote, arguments.override)] if arguments.override else []
    return " ".join(["python -m benchmarks.stages", *words])


def final_recall(summary: dict) -> float:
    return summary["stages"][-1]["metrics"]["val/mean_recall"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=["scenes", "flickr30k"], default="scenes")
    parser.add_argument("--root", help="folder of Flickr30k, for --data flickr30k")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS, help="configs/stages to compare")
    parser.add_argument("--work", default="outputs/benchmark_stages", help="where the runs are kept")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--factors", type=float, nargs="+", default=[1.0, 2.0], help="tried on all learning rates of an arm")
    parser.add_argument("--threads", type=int, default=1, help="threads of one run")
    parser.add_argument("--parallel", type=int, default=2, help="runs at the same time")
    parser.add_argument("--override", nargs="*", default=[], help="further key=value for every run")
    arguments = parser.parse_args()
    trials = [(arm, factor) for factor in arguments.factors for arm in arguments.arms]
    overrides = {(arm, factor): rates(arguments.data, arm, factor) for arm, factor in trials}

    def started(arm: str, seed: int, factor: float) -> dict:
        return run(arguments, arm, seed, factor, overrides[arm, factor])

    with ThreadPoolExecutor(arguments.parallel) as pool:
        tried = dict(zip(trials, pool.map(lambda trial: started(trial[0], arguments.seeds[0], trial[1]), trials), strict=True))
        best = {arm: max(arguments.factors, key=lambda factor, arm=arm: final_recall(tried[arm, factor])) for arm in arguments.arms}
        jobs = [(arm, seed) for seed in arguments.seeds for arm in arguments.arms]
        runs = dict(zip(jobs, pool.map(lambda job: started(job[0], job[1], best[job[0]]), jobs), strict=True))
    report: dict = {
        "command": command_of(arguments),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {arguments.threads} thread(s) a run, {arguments.parallel} at a time",
        "seeds": arguments.seeds,
        "tuning": {f"{arm} x{factor:g}": final_recall(tried[arm, factor]) for arm, factor in trials},
        "rate_factor": best,
        "arms": {},
    }
    for arm in arguments.arms:
        summaries = [runs[arm, seed] for seed in arguments.seeds]
        seconds = [sum(stage["cpu_seconds"] for stage in summary["stages"]) for summary in summaries]
        figures = {name: [summary["test"][name] for summary in summaries] for name in SHOWN if name in summaries[0]["test"]}
        stages = [
            {"name": stage["name"], "val/mean_recall": [summary["stages"][i]["metrics"]["val/mean_recall"] for summary in summaries]}
            for i, stage in enumerate(summaries[0]["stages"])
        ]
        report["arms"][arm] = {"cpu_seconds": seconds, "test": figures, "after_each_stage": stages}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"stages_{arguments.data}.json").write_text(json.dumps(report, indent=1) + "\n")
    print(table(report))


def spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values) if len(values) > 1 else 0:.3f}"


def table(report: dict) -> str:
    """The report as a Markdown table."""
    arms = list(report["arms"])
    names = [name for name in SHOWN if name in next(iter(report["arms"].values()))["test"]]
    lines = ["| | " + " | ".join(arms) + " |", "|---|" + "---|" * len(arms)]
    lines += [f"| {SHOWN[name]} | " + " | ".join(spread(report["arms"][arm]["test"][name]) for arm in arms) + " |" for name in names]
    lines.append(
        "| CPU-seconds of training and validation | "
        + " | ".join(f"{statistics.mean(report['arms'][arm]['cpu_seconds']):.0f}" for arm in arms)
        + " |"
    )
    for arm in arms:
        reached = ", ".join(f"{stage['name']} {spread(stage['val/mean_recall'])}" for stage in report["arms"][arm]["after_each_stage"])
        lines.append(f"\n{arm}, validation mean recall after each stage: {reached}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
