"""Processes of their own for the tests, forked, so that PyTorch and Lightning are imported once. Forking after that works on Linux only."""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from hydra.core.global_hydra import GlobalHydra

ROOT = Path(__file__).resolve().parents[1]
FAILED = 70  # exit code of a function that raised


class Ended(NamedTuple):
    """What a command left."""

    returncode: int
    stdout: str
    stderr: str


def forked(function: Callable[[], int], seconds: float = 120) -> int:
    """The exit code of ``function`` in a process of its own, negative for a signal. One that takes longer than ``seconds`` hangs."""
    child = os.fork()
    if child == 0:
        code = FAILED
        try:
            torch.set_num_threads(1)
            code = function()
        except BaseException:  # noqa: BLE001 - a process of its own: its traceback is its report
            traceback.print_exc()
        finally:
            os._exit(code)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise AssertionError(f"the process hangs: {seconds:.0f} seconds have passed")


def python(words: list[str], folder: Path, seconds: float = 600, **environment: str) -> Ended:
    """``python WORDS`` in ``folder``, as a user types it: a file or ``-m MODULE`` run as ``__main__``, with what it writes."""
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    if sys.platform != "linux":
        known = {key: value for key, value in os.environ.items() if key != "HYDRA_FULL_ERROR"} | environment
        done = subprocess.run([sys.executable, *words], cwd=folder, env=known, capture_output=True, text=True, timeout=seconds)
        return Ended(done.returncode, done.stdout, done.stderr)
    with tempfile.TemporaryDirectory(prefix="written-") as place:
        written = [Path(place) / name for name in ("stdout", "stderr")]
        code = forked(lambda: _main(words, folder, written, environment), seconds)
        return Ended(code, *(path.read_text() for path in written))


def _main(words: list[str], folder: Path, written: list[Path], environment: dict[str, str]) -> int:
    """In the child. Returns its exit code."""
    for number, path in enumerate(written, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    os.environ.pop("HYDRA_FULL_ERROR", None)
    os.environ.update(environment)
    os.chdir(folder)
    GlobalHydra.instance().clear()  # a test before may have composed
    try:
        if words[0] == "-m":
            sys.argv = [words[1], *words[2:]]
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = list(words)
            runpy.run_path(words[0], run_name="__main__")
    except SystemExit as left:
        return left.code if isinstance(left.code, int) else int(left.code is not None)
    finally:
        sys.stdout.flush(), sys.stderr.flush()
    return 0
