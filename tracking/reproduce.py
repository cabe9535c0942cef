"""What is not as it was when a run was made: commit, working tree, packages, machine; and whether a repetition has ended as it did."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from insight.metric_names import repeats
from tracking import facts
from tracking.past import SUMMARY, PastRun

COMPUTING = ("torch", "torchvision", "numpy", "lightning", "torchmetrics", "tokenizers", "pillow")  # packages that the weights go through
COMMIT_TAG = "mlflow.source.git.commit"


class Difference(NamedTuple):
    """``what: then -> now``."""

    what: str
    then: str
    now: str

    def __str__(self) -> str:
        return f"{self.what}: {self.then} -> {self.now}"


def code_differences(run: PastRun, folder: str | Path) -> list[Difference]:
    """The code in ``folder``, the packages and the machine against those of the run; empty where all is as it was."""
    git = facts.git_facts(folder)
    found = made_differently(run.tags, run.diff, run.environment, {COMMIT_TAG: git.commit or "none"}, git.diff, facts.environment())
    if (other := run.tags.get(f"{COMMIT_TAG}.resumed")) is not None:
        found.insert(0, Difference("commit within the run", run.tags[COMMIT_TAG], other))
    return found


def made_differently(
    then_tags: Mapping[str, str],
    then_diff: str,
    then_environment: Mapping[str, Any],
    now_tags: Mapping[str, str],
    now_diff: str,
    now_environment: Mapping[str, Any],
) -> list[Difference]:
    """Commit, changes that are not committed, packages and machine, as far as they differ."""
    found = []
    then_commit, now_commit = (tags.get(COMMIT_TAG, "unknown") for tags in (then_tags, now_tags))
    if then_commit != now_commit:
        found.append(Difference("commit", then_commit, now_commit))
    if then_diff != now_diff:
        found.append(Difference("changes that are not committed", _size(then_diff), _size(now_diff)))
    if not then_environment or not now_environment:
        known = ["recorded" if one else "not recorded" for one in (then_environment, now_environment)]
        return [*found, Difference("packages and machine", *known)]
    found += _compared("package", then_environment["packages"], now_environment["packages"])
    return found + _compared("machine", then_environment["machine"], now_environment["machine"])


def _size(diff: str) -> str:
    lines = sum(line.startswith(("+", "-")) and not line.startswith(("+++", "---")) for line in diff.splitlines())
    return f"{lines} lines (git.diff of the run)" if diff else "none"


def _compared(what: str, then: Mapping[str, Any], now: Mapping[str, Any]) -> list[Difference]:
    names = sorted(then.keys() | now.keys(), key=lambda name: (name.lower() not in COMPUTING, name.lower()))
    values = [(name, then.get(name, "absent"), now.get(name, "absent")) for name in names]
    return [Difference(f"{what} {name}", str(old), str(new)) for name, old, new in values if old != new]


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
