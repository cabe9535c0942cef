"""What a run must remember to be understood later: the code's state, the packages, the machine."""

from __future__ import annotations

import getpass
import os
import platform
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path
from typing import Any, NamedTuple

import torch

GIT_SECONDS = 20
LARGEST_DIFF = 1_000_000  # bytes


class GitFacts(NamedTuple):
    """``commit`` is None where there is none; ``note`` says why. ``diff`` is against the commit, untracked files by name only."""

    commit: str | None
    branch: str | None
    dirty: bool | None
    diff: str
    note: str


def git_facts(folder: str | Path, largest_diff: int = LARGEST_DIFF) -> GitFacts:
    """The state of the repository that holds ``folder``. Never raises for a folder without git: a run is possible without."""
    try:
        status, error = _git(folder, ["status", "--porcelain=v1", "--untracked-files=normal"])
        if status is None:
            return GitFacts(None, None, None, "", f"no git repository: {error}")
        commit, _ = _git(folder, ["rev-parse", "HEAD"])
        branch, _ = _git(folder, ["symbolic-ref", "--short", "-q", "HEAD"])
        diff = _bounded_diff(folder, largest_diff) if commit is not None and status.strip() else ""
    except (OSError, subprocess.TimeoutExpired) as failure:
        return GitFacts(None, None, None, "", f"git could not be asked: {failure}")
    untracked = [line[3:] for line in status.splitlines() if line.startswith("??")]
    if untracked:
        diff += "".join(f"# not tracked by git, content not kept: {name}\n" for name in untracked[:1000])
    return GitFacts(
        commit=commit.strip() if commit else None,
        branch=branch.strip() if branch else None,
        dirty=bool(status.strip()),
        diff=diff,
        note="" if commit else "the repository has no commit yet",
    )


def _git(folder: str | Path, arguments: list[str]) -> tuple[str | None, str]:
    """(output, "") or (None, what git said)."""
    answer = subprocess.run(_command(folder, arguments), capture_output=True, timeout=GIT_SECONDS, env=_environment(), check=False)
    if answer.returncode:
        return None, answer.stderr.decode(errors="replace").strip() or f"exit code {answer.returncode}"
    return answer.stdout.decode(errors="replace"), ""


def _bounded_diff(folder: str | Path, largest: int) -> str:
    """At most ``largest`` bytes, cut at a line, saying so; git isn't allowed to fill the memory with a diff of big files."""
    command = _command(folder, ["diff", "--no-color", "--no-ext-diff", "HEAD"])
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=_environment()) as process:
        assert process.stdout is not None
        text = process.stdout.read(largest + 1)
        process.kill()
    if len(text) <= largest:
        return text.decode(errors="replace")
    text = text[:largest]
    whole_lines = text[: text.rfind(b"\n") + 1] or text + b"\n"
    return whole_lines.decode(errors="replace") + f"# cut: the diff is larger than {largest} bytes\n"


def _command(folder: str | Path, arguments: list[str]) -> list[str]:
    return ["git", "-C", str(folder), *arguments]


def _environment() -> dict[str, str]:
    return {**os.environ, "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}


def package_versions() -> dict[str, str]:
    """Every installed distribution, by name."""
    versions = {item.metadata["Name"]: item.version for item in distributions() if item.metadata["Name"]}
    return dict(sorted(versions.items(), key=lambda pair: pair[0].lower()))


def machine() -> dict[str, Any]:
    """What the run ran on. No host name, no environment variables: they may be private."""
    return {
        "system": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cpu_count": os.cpu_count(),
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cuda_devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "mps": torch.backends.mps.is_available(),
    }


def environment() -> dict[str, Any]:
    """Content of environment.json."""
    return {"machine": machine(), "packages": package_versions()}


def user_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container's user without an entry in /etc/passwd
        return "unknown"
