"""What is not as it was when a run was made: commit, working tree, packages, machine; and whether a repetition has ended as it did."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from insight.metrics import repeats
from tracking import facts
from tracking.past import SUMMARY, PastRun

COMPUTING = ("torch", "torchvision", "numpy", "lightning", "torchmetrics", "tokenizers", "pillow")  # packages that the weights go through


def code_differences(run: PastRun, folder: str | Path) -> list[str]:
    """``what: then -> now`` for the code in ``folder``, the packages and the machine; empty where all is as it was."""
    git, then_commit = facts.git_facts(folder), run.tags.get("mlflow.source.git.commit", "unknown")
    found = []
    if then_commit != (git.commit or "none"):
        found.append(f"commit: {then_commit} -> {git.commit or 'none'}")
    if run.diff != git.diff:
        found.append(f"changes that are not committed: {_size(run.diff)} -> {_size(git.diff)}")
    if (other := run.tags.get("mlflow.source.git.commit.resumed")) is not None:
        found.append(f"commit: the run itself began with {then_commit} and went on with {other}")
    then, now = run.environment, facts.environment()
    if not then:
        return [*found, "packages and machine: not recorded -> unknown whether they are the same"]
    found += _compared("package", then["packages"], now["packages"])
    return found + _compared("machine", then["machine"], now["machine"])


def _size(diff: str) -> str:
    lines = sum(line.startswith(("+", "-")) and not line.startswith(("+++", "---")) for line in diff.splitlines())
    return f"{lines} lines (git.diff of the run)" if diff else "none"


def _compared(what: str, then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    names = sorted(then.keys() | now.keys(), key=lambda name: (name.lower() not in COMPUTING, name.lower()))
    return [f"{what} {name}: {then.get(name, 'absent')} -> {now.get(name, 'absent')}" for name in names if then.get(name) != now.get(name)]


class Verdict(NamedTuple):
    """Whether a repetition ended as the run did."""

    equal: bool
    text: str


def judge(run: PastRun, summary: Mapping[str, Any]) -> Verdict:
    """Compare weights after every stage (by digest) and every figure of the test with those of the run's own summary."""
    then = run.read_json(SUMMARY)
    if not then:
        return Verdict(False, f"the run has no {SUMMARY} ({run.status}): there is nothing to compare with")
    stages = list(zip(then["stages"], summary["stages"], strict=True))
    differing = [one["name"] for one, other in stages if one.get("weights") != other["weights"]]
    if differing:
        return Verdict(False, f"not reproduced: weights differ from stage '{differing[0]}' on; {_figures(then['test'], summary['test'])}")
    said = f"all weights are bitwise equal after each of {len(stages)} stages; {_figures(then['test'], summary['test'])}"
    return Verdict(True, f"reproduced: {said}")


def _figures(then: Mapping[str, float], now: Mapping[str, float]) -> str:
    names = [name for name in then if name in now and repeats(name)]
    unequal = [name for name in names if now[name] != then[name]]
    if not unequal:
        return f"all {len(names)} figures of the test are equal"
    worst = max(unequal, key=lambda name: abs(now[name] - then[name]))
    return f"{len(unequal)} of {len(names)} figures of the test differ, most of all {worst}: {then[worst]:g} -> {now[worst]:g}"
