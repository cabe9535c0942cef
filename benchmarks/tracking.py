"""What one log call costs the training loop: our journal against Lightning's synchronous MLFlowLogger, in turns, both on SQLite.

    python benchmarks/tracking.py        # writes benchmarks/results/tracking.json

The rival needs an explicit address and a store with tables to start at all on today's MLflow; it gets both. The journal's shipper works
in the background meanwhile, so its cost to the rival and to itself is in the figures; what it still had to send at the end is reported.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from importlib.metadata import version  # noqa: E402

from lightning.pytorch.loggers import MLFlowLogger  # noqa: E402

from tracking.facts import machine  # noqa: E402
from tracking.journal import JournalMLFlowLogger  # noqa: E402
from tracking.store import open_client  # noqa: E402


def time_calls(logger: MLFlowLogger, num_metrics: int, steps: range) -> list[float]:
    """Milliseconds of each call."""
    times = []
    for step in steps:
        metrics = {f"train/metric_{index}": step / (index + 1) for index in range(num_metrics)}
        begin = time.perf_counter()
        logger.log_metrics(metrics, step)
        times.append(1000 * (time.perf_counter() - begin))
    return times


def summary(times: list[float]) -> dict[str, float]:
    ordered = sorted(times)
    return {
        "median_ms": round(statistics.median(ordered), 4),
        "p95_ms": round(ordered[int(0.95 * len(ordered))], 4),
        "max_ms": round(ordered[-1], 4),
        "calls": len(ordered),
    }


def measure(num_metrics: int, rounds: int, calls: int, folder: Path) -> dict[str, object]:
    uri = f"sqlite:///{folder / f'mlflow_{num_metrics}.db'}"
    open_client(uri)
    ours = JournalMLFlowLogger(
        "ours",
        tracking_uri=uri,
        journal_dir=folder / f"RUN{num_metrics}" / "tracking" / "run",
        drain_seconds=120,
        artifact_location=str(folder),
    )
    rival = MLFlowLogger("rival", tracking_uri=uri, artifact_location=str(folder))
    time_calls(ours, num_metrics, range(1))  # makes the run; not counted, for either
    time_calls(rival, num_metrics, range(1))
    times: dict[str, list[float]] = {"journal": [], "synchronous": []}
    for number in range(rounds):
        steps = range(1 + number * calls, 1 + (number + 1) * calls)
        pair = [("journal", ours), ("synchronous", rival)]
        for name, logger in pair if number % 2 == 0 else reversed(pair):
            times[name] += time_calls(logger, num_metrics, steps)
    begin = time.perf_counter()
    ours.close("FINISHED")
    drained = time.perf_counter() - begin
    client = open_client(uri)
    name = f"train/metric_{num_metrics - 1}"
    stored = {
        label: len(client.get_metric_history(str(logger.run_id), name)) for label, logger in (("journal", ours), ("synchronous", rival))
    }
    assert stored == dict.fromkeys(stored, 1 + rounds * calls), stored
    result: dict[str, object] = {label: summary(values) for label, values in times.items()}
    result["ratio_of_medians"] = round(statistics.median(times["synchronous"]) / statistics.median(times["journal"]), 1)
    result["seconds_to_send_the_rest_at_the_end"] = round(drained, 3)
    result["points_stored_per_metric"] = stored
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--calls", type=int, default=25, help="calls of each logger in one round")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "tracking.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = {f"{count}_metrics": measure(count, options.rounds, options.calls, Path(folder)) for count in (1, 20)}
    report = {
        "command": "python benchmarks/tracking.py",
        "what": "milliseconds per log_metrics call, SQLite store, loggers in turns in one process",
        "machine": machine(),
        "versions": {name: version(name) for name in ("lightning", "mlflow")},
        "results": results,
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report, indent=2) + "\n")
    for name, result in results.items():
        journal, rival = result["journal"], result["synchronous"]
        assert isinstance(journal, dict) and isinstance(rival, dict)
        print(f"{name}: journal {journal['median_ms']:.3f} ms, synchronous {rival['median_ms']:.3f} ms, {result['ratio_of_medians']}x")
    print(f"written: {options.output}")


if __name__ == "__main__":
    main()
