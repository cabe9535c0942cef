"""The model card: Markdown and pictures that say what a model is, what it was made from, how good it is, and where it fails.

A section whose subject was not measured says so in its first words (``NOT_MEASURED``), and counts as missing.
"""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

CARD = "model_card.md"
NOT_MEASURED = "Not measured"
SECTIONS = (
    *("What it is", "Data", "Recipe", "Results", "What it looks at", "Known failures", "Robustness and faithfulness", "Environment"),
    "How to load",
)
NOT_TESTED = f"{NOT_MEASURED}: the run was not tested (run.test=false)."


@dataclasses.dataclass(frozen=True)
class TaskFacts:
    """What the card of a task says that others do not.

    Args:
        purpose: What the model does, after "it": "compares pictures with captions".
        examples: What the data are made of: "pictures".
        tracked: Metrics of the validation, the most important first: the recipe's column, and the curves.
        title: What these are: "recall (fraction of queries)".
        results: Of the test, as Markdown; empty where there was none.
        failures: Where it fails, as Markdown.
        usage: Python that uses ``model``, a loaded bundle.
    """

    purpose: str
    examples: str
    tracked: tuple[str, ...]
    title: str
    results: str
    failures: str
    usage: str


@dataclasses.dataclass(frozen=True)
class StageRecord:
    """Args:
    name: The stage.
    recipe: Its config.
    result: Its line of the ledger: epochs, steps, metrics of the best epoch, seconds.
    curves: Metric -> step -> value.
    """

    name: str
    recipe: Mapping[str, Any]
    result: Mapping[str, Any]
    curves: Mapping[str, Mapping[int, float]]


@dataclasses.dataclass(frozen=True)
class CardFacts:
    """Args:
    title: Name of the model.
    run: Name of the run.
    architecture: Its class.
    arguments: Of the class.
    num_parameters: Its size.
    seed: The run's one seed.
    data: ``fingerprint``, ``splits`` (sizes), ``description``.
    generated: Whether a program made the data.
    stages: In the order in which they ran.
    task: What is of this task alone.
    attention: Pictures of what the model looks at.
    insight: Figures ``insight/<method>/<score>``, of the last stage's last validation or of the test.
    environment: What it was made with, by name.
    """

    title: str
    run: str
    architecture: str
    arguments: Mapping[str, Any]
    num_parameters: int
    seed: int
    data: Mapping[str, Any]
    generated: bool
    stages: Sequence[StageRecord]
    task: TaskFacts
    attention: Sequence[Path]
    insight: Mapping[str, float]
    environment: Mapping[str, Any]


def write_card(folder: str | Path, facts: CardFacts) -> Path:
    """Write ``model_card.md`` and its pictures into ``folder``; returns the card's path."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    bodies = (
        _what(facts),
        _data(facts),
        _recipe(facts, folder),
        facts.task.results or NOT_TESTED,
        _attention(facts, folder),
        facts.task.failures,
        _insight(facts),
        _environment(facts),
        _loading(facts),
    )
    text = f"# Model card: {facts.title}\n\n" + "\n\n".join(
        f"## {title}\n\n{body.strip()}" for title, body in zip(SECTIONS, bodies, strict=True)
    )
    path = folder / CARD
    path.write_text(text + "\n", encoding="utf-8")
    return path


def missing_sections(folder: str | Path, sections: Sequence[str] = SECTIONS) -> list[str]:
    """Which of the sections a card lacks, each with the reason; empty: it is complete."""
    path = Path(folder) / CARD
    if not path.is_file():
        return [f"{CARD} (there is none)"]
    parts = re.split(r"^## (.+)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    bodies = dict(zip(parts[1::2], (body.strip() for body in parts[2::2]), strict=True))
    missing = []
    for title in sections:
        lost = [name for name in re.findall(r"!\[[^]]*\]\(([^)]+)\)", bodies.get(title, "")) if not (path.parent / name).is_file()]
        if not bodies.get(title):
            missing.append(f"{title} (not there)")
        elif bodies[title].startswith(NOT_MEASURED):
            missing.append(f"{title} (not measured)")
        elif lost:
            missing.append(f"{title} (picture {lost[0]} is lost)")
    return missing


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table; a bar in a cell is escaped, so that a caption cannot break it."""
    lines = [columns, ["---"] * len(columns), *rows]
    cells = ([str(cell).replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def _what(facts: CardFacts) -> str:
    arguments = ", ".join(f"{name}={value}" for name, value in facts.arguments.items())
    return (
        f"`{facts.architecture}`: it {facts.task.purpose}. {facts.num_parameters:,} parameters ({arguments}).\n\n"
        f"Made by the run `{facts.run}`, seed {facts.seed}."
    )


def _data(facts: CardFacts) -> str:
    sizes = ", ".join(f"{size:,} {split}" for split, size in facts.data["splits"].items())
    terms = "" if facts.generated else "\n\nExamples shown on this card are from these data and stay under their terms."
    return f"{facts.data['description']}\n\n{facts.task.examples.capitalize()}: {sizes}. Fingerprint: `{facts.data['fingerprint']}`{terms}"


def _recipe(facts: CardFacts, folder: Path) -> str:
    rows, pictures, task = [], [], facts.task
    for number, stage in enumerate(facts.stages, start=1):
        recipe, result = stage.recipe, stage.result
        losses = ", ".join(f"{name} x {term['weight']:g}" for name, term in recipe["losses"].items())
        best = result["metrics"].get(task.tracked[0])
        rows.append(
            [
                stage.name,
                result["epochs"],
                result["steps"],
                ", ".join(f"`{pattern}`" for pattern in recipe["train"]),
                losses,
                f"{recipe['learning_rate']:g}",
                "-" if best is None else f"{best:.3f}",
                f"{result['seconds']:.0f}",
            ]
        )
        if any(stage.curves.get(name) for name in ("train/loss", *task.tracked)):
            name = f"curves-{number:02d}-{re.sub(r'[^A-Za-z0-9_-]', '_', stage.name)}.png"
            draw_curves(folder / name, stage, task.tracked, task.title)
            pictures.append(f"![curves of {stage.name}]({name})")
    columns = ["stage", "epochs", "steps", "trains", "losses", "rate", task.tracked[0], "seconds"]
    return table(columns, rows) + "\n\n" + ("\n\n".join(pictures) or "No curves: nothing was logged.")


def draw_curves(path: Path, stage: StageRecord, tracked: Sequence[str], title: str) -> None:
    """Loss and validation figures of one stage over its steps, as a PNG."""
    figure = Figure(figsize=(10, 3), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    loss, figures = figure.subplots(1, 2)
    for axes, names in ((loss, ("train/loss", "val/loss")), (figures, tracked)):
        for name in names:
            points = sorted(stage.curves.get(name, {}).items())
            if points:
                axes.plot(*zip(*points, strict=True), marker="o" if name.startswith("val") else "", markersize=3, label=name)
        axes.set_xlabel("optimiser step")
        if axes.has_data():
            axes.legend(fontsize=8)
    loss.set_title(f"{stage.name}: loss", fontsize=10)
    figures.set_title(f"{stage.name}: {title}, validation", fontsize=10)
    figures.set_ylim(bottom=0)
    figure.savefig(path)


def figures_table(
    test: Mapping[str, float], shown: Mapping[str, str], tests: Mapping[str, str], beside: Mapping[str, Mapping[str, float]]
) -> str:
    """The task's figures beside what they are to be compared with, and all others below; empty where there was no test.

    Args:
        test: By metric name.
        shown: What the table shows, without the split: name -> heading.
        tests: Columns: label -> what stands before the names in ``test``; the first is the model itself.
        beside: Further columns, e.g. chance: label -> value by name in ``shown``.
    """
    if not test:
        return ""
    own, *others = ((label, prefix) for label, prefix in tests.items() if any(prefix + name in test for name in shown))
    columns = [{name: test.get(prefix + name) for name in shown} for _, prefix in (own, *others)]
    columns += [{name: values.get(name) for name in shown} for values in beside.values()]
    rows = [[own[1] + name, *("-" if one[name] is None else f"{one[name]:.3f}" for one in columns)] for name in shown]
    labels = ["this model", *(label.removeprefix("test, ") for label, _ in others), *beside]
    known = {row[0] for row in rows}
    rest = sorted(name for name in test if name.startswith("test/") and name not in known and "/baseline/" not in name)
    more = table(["other figures", ""], [[name, f"{test[name]:.3f}"] for name in rest])
    return table(["metric", *labels], rows) + (f"\n\n{more}" if rest else "")


def _attention(facts: CardFacts, folder: Path) -> str:
    if not facts.attention:
        return f"{NOT_MEASURED}: no attention maps were drawn (callbacks.attention_maps)."
    lines = ["Examples of the validation split, at the last validation."]
    for number, path in enumerate(facts.attention, start=1):
        name = f"attention-{number}{path.suffix}"
        shutil.copyfile(path, folder / name)
        lines.append(f"![{path.stem}]({name})")
    return "\n\n".join(lines)


def _insight(facts: CardFacts) -> str:
    if not facts.insight:
        return f"{NOT_MEASURED}: the run holds no `insight/<method>/<score>` figure."
    rows = [[name, f"{value:.3f}"] for name, value in sorted(facts.insight.items())]
    return "At the last validation of the last stage, or in the test.\n\n" + table(["metric", ""], rows)


def _environment(facts: CardFacts) -> str:
    return table(["", ""], [[name, value] for name, value in facts.environment.items()])


def _loading(facts: CardFacts) -> str:
    return f"""Needs this project's `insight` package, no training framework, no account, no network:

```python
from insight.export.bundle import load

model = load("FOLDER")  # the folder above this card
{facts.task.usage}
```

From the registry (`models:/{facts.title}@champion` and `runs:/RUN_ID` work too):

```python
from tracking.registry import load

model = load("models:/{facts.title}/VERSION")
```"""
