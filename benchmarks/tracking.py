"""What one log call costs the training loop: our journal against Lightning's synchronous MLFlowLogger, in turns, on SQLite and over HTTP.

    python benchmarks/tracking.py        # writes benchmarks/results/tracking.json

The rival needs an explicit address and a store with tables to start at all on today's MLflow; it gets both. The journal's shipper works
in the background meanwhile; what it still had to send at the end is reported. HTTP is `mlflow server` on loopback, for both loggers.
With log_every_n_steps=1 a step has one such call, so ``mean_ms`` is what tracking adds to a step, waiting for the shipper's thread
included; the goal is 0.5 ms.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
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
        "mean_ms": round(statistics.fmean(ordered), 4),
        "median_ms": round(statistics.median(ordered), 4),
        "p95_ms": round(ordered[int(0.95 * len(ordered))], 4),
        "max_ms": round(ordered[-1], 4),
        "calls": len(ordered),
    }


@contextlib.contextmanager
def server(folder: Path) -> Iterator[str]:
    """The address of an `mlflow server` on loopback with one worker."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    words += ["--backend-store-uri", f"sqlite:///{folder}/server.db", "--default-artifact-root", str(folder / "artifacts")]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(words, stdout=log, stderr=log, env=environment, start_new_session=True)
    try:
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline and process.poll() is None:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            time.sleep(0.2)
        else:
            raise SystemExit(f"the server did not start: {(folder / 'server.log').read_text()[-2000:]}")
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()


def measure(addresses: dict[str, str], num_metrics: int, rounds: int, calls: int, folder: Path) -> dict[str, object]:
    """``addresses``: the store of each logger."""
    clients = {name: open_client(uri) for name, uri in addresses.items()}
    journal_dir = folder / f"RUN{num_metrics}" / "tracking" / "run"
    ours = JournalMLFlowLogger(f"journal_{num_metrics}", tracking_uri=addresses["journal"], journal_dir=journal_dir, drain_seconds=120)
    rival = MLFlowLogger(f"synchronous_{num_metrics}", tracking_uri=addresses["synchronous"], artifact_location=str(folder))
    loggers: dict[str, MLFlowLogger] = {"journal": ours, "synchronous": rival}
    times: dict[str, list[float]] = {name: [] for name in loggers}
    for logger in loggers.values():
        time_calls(logger, num_metrics, range(1))  # makes the run; not counted, for either
    for number in range(rounds):
        steps = range(1 + number * calls, 1 + (number + 1) * calls)
        for name in list(loggers) if number % 2 == 0 else reversed(list(loggers)):
            times[name] += time_calls(loggers[name], num_metrics, steps)
    begin = time.perf_counter()
    ours.close("FINISHED")
    drained = time.perf_counter() - begin
    metric = f"train/metric_{num_metrics - 1}"
    stored = {name: len(clients[name].get_metric_history(str(loggers[name].run_id), metric)) for name in loggers}
    assert stored == dict.fromkeys(stored, 1 + rounds * calls), stored
    return {
        **{name: summary(values) for name, values in times.items()},
        "ratio_of_medians": round(statistics.median(times["synchronous"]) / statistics.median(times["journal"]), 1),
        "seconds_to_send_the_rest_at_the_end": round(drained, 3),
        "points_stored_per_metric": stored,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--calls", type=int, default=25, help="calls of each logger in one round")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "tracking.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = {}
        for count in (1, 20):  # each logger has a database of its own, so that neither waits for the other's lock
            files = {name: f"sqlite:///{folder}/{name}_{count}.db" for name in ("journal", "synchronous")}
            results[f"sqlite_{count}_metrics"] = measure(files, count, options.rounds, options.calls, Path(folder) / "sqlite")
        with server(Path(folder)) as address:
            for count in (1, 20):
                both = {"journal": address, "synchronous": address}
                results[f"http_{count}_metrics"] = measure(both, count, options.rounds, options.calls, Path(folder) / "http")
    report = {
        "command": "python benchmarks/tracking.py",
        "what": "milliseconds per log_metrics call, SQLite store and HTTP server on loopback, loggers in turns in one process",
        "machine": machine(),
        "load_average": [round(value, 2) for value in os.getloadavg()],
        "versions": {name: version(name) for name in ("lightning", "mlflow")},
        "results": results,
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report, indent=2) + "\n")
    for name, result in results.items():
        figures = [
            f"{label} mean {one['mean_ms']:.3f} median {one['median_ms']:.3f} ms"
            for label, one in result.items()
            if isinstance(one, dict) and "mean_ms" in one
        ]
        print(f"{name}: {', '.join(figures)}, {result['ratio_of_medians']}x by the medians")
    print(f"written: {options.output}")


if __name__ == "__main__":
    main()
