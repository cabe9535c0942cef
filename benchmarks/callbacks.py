"""What the callbacks that only watch cost a training step: processor time of their hooks beside that of the whole step, on the main thread.

    python -m benchmarks.callbacks        # writes benchmarks/results/callbacks.json

One stage of the shipped recipe on generated pictures, everything logged at every step (log_every_n_steps=1), which is the worst case: the
shipped default is every 10th.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback

from lightning_modules.drive import run_stages
from lightning_modules.engine_cli import build
from lightning_modules.keys import HYDRA_ONLY
from lightning_modules.overrides import CONFIGS, compose_plain
from tracking.facts import machine

ROOT = Path(__file__).resolve().parent.parent
WATCHED = ("training_figures", "embedding_figures", "system_metrics")
VALIDATION = "on_validation_epoch_end"
HOOKS = ("on_train_start", "on_before_optimizer_step", "on_train_batch_end", "on_train_epoch_end", "on_train_end", VALIDATION)


class Stopwatch(Callback):
    """Processor time of the main thread between the first and the last training step of a stage, validations left out."""

    seconds, steps, started = 0.0, 0, 0.0

    def on_train_batch_start(self, *_: Any) -> None:
        Stopwatch.started = time.thread_time()

    def on_train_batch_end(self, *_: Any) -> None:
        Stopwatch.seconds += time.thread_time() - Stopwatch.started
        Stopwatch.steps += 1


def timed(hook: Callable[..., Any], spent: dict[str, float], key: str) -> Callable[..., Any]:
    @functools.wraps(hook)
    def call(*arguments: Any, **named: Any) -> Any:
        started = time.thread_time()
        try:
            return hook(*arguments, **named)
        finally:
            spent[key] = spent.get(key, 0.0) + time.thread_time() - started

    return call


def measure(steps: int, cache: str, folder: str) -> dict[str, Any]:
    words = ["+experiment=flickr_multistage", "stages=end_to_end", "trainer=cpu", "run.test=false", "trainer.log_every_n_steps=1"]
    words += [f"paths.cache={cache}", f"paths.outputs={folder}", f"+trainer.limit_train_batches={steps}", "+trainer.max_epochs=1"]
    config = compose_plain(CONFIGS, words)
    for key in ("resume", *HYDRA_ONLY):
        config.pop(key, None)
    config["callbacks"] = {name: config["callbacks"][name] for name in WATCHED}
    spent: dict[str, float] = {}
    cli = build(config)
    for name, callback in cli.callbacks.items():
        for hook in HOOKS:
            setattr(type(callback), hook, timed(getattr(type(callback), hook), spent, f"{name}.{hook}"))
    cli.callbacks["stopwatch"] = Stopwatch()
    run_stages(cli)
    step = 1000 * Stopwatch.seconds / Stopwatch.steps
    figures: dict[str, Any] = {"step_ms": round(step, 2), "steps": Stopwatch.steps}
    for name in WATCHED:
        training = 1000 * sum(value for key, value in spent.items() if key.startswith(f"{name}.") and VALIDATION not in key)
        validation = 1000 * spent.get(f"{name}.{VALIDATION}", 0.0)
        per_step = training / Stopwatch.steps
        figures[name] = {"ms_per_step": round(per_step, 4), "share_of_a_step": round(per_step / step, 5)}
        if validation > 0.1:
            figures[name]["ms_per_validation"] = round(validation, 2)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--cache", default=str(ROOT / "outputs" / "cache"), help="where generated pictures are kept")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "callbacks.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        results = measure(options.steps, options.cache, folder)
    report = {
        "command": "python -m benchmarks.callbacks",
        "what": "processor milliseconds on the main thread, log_every_n_steps=1, stage end_to_end of flickr_multistage on scenes",
        "machine": machine(),
        "load_average": [round(value, 2) for value in os.getloadavg()],
        "results": results,
    }
    options.output.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(results, indent=1))
    print(f"written: {options.output}")


if __name__ == "__main__":
    main()
