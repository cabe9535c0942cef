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

from insight.metrics import DIRECTIONS, RECALL_AT
from insight.query_ranks import Miss, QueryRanks, recall_interval

CARD = "model_card.md"
NOT_MEASURED = "Not measured"
SECTIONS = (
    *("What it is", "Data", "Recipe", "Results", "What it looks at", "Known failures", "Robustness and faithfulness", "Environment"),
    "How to load",
)
SHOWN_CURVES = ("val/mean_recall", *(f"val/{direction}_recall_at_10" for direction in DIRECTIONS))


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
    generated: Whether a program made the pictures.
    stages: In the order in which they ran.
    test: Figures of the test by name; empty where there was none.
    chance: Recalls of a random order, by their names without the split.
    ranks: Rank of every query of the test.
    misses: Worst queries by direction.
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
    test: Mapping[str, float]
    chance: Mapping[str, float]
    ranks: QueryRanks | None
    misses: Mapping[str, Sequence[Miss]]
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
        _results(facts),
        _attention(facts, folder),
        _failures(facts),
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
        f"`{facts.architecture}`: compares pictures with captions. {facts.num_parameters:,} parameters ({arguments}).\n\n"
        f"Made by the run `{facts.run}`, seed {facts.seed}."
    )


def _data(facts: CardFacts) -> str:
    sizes = ", ".join(f"{size:,} {split}" for split, size in facts.data["splits"].items())
    terms = "" if facts.generated else "\n\nPictures and captions shown on this card are from these data and stay under their terms."
    return f"{facts.data['description']}\n\nPictures: {sizes}. Fingerprint: `{facts.data['fingerprint']}`{terms}"


def _recipe(facts: CardFacts, folder: Path) -> str:
    rows, pictures = [], []
    for number, stage in enumerate(facts.stages, start=1):
        recipe, result = stage.recipe, stage.result
        losses = ", ".join(f"{name} x {term['weight']:g}" for name, term in recipe["losses"].items())
        best = result["metrics"].get("val/mean_recall")
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
        if any(stage.curves.get(name) for name in ("train/loss", *SHOWN_CURVES)):
            name = f"curves-{number:02d}-{re.sub(r'[^A-Za-z0-9_-]', '_', stage.name)}.png"
            draw_curves(folder / name, stage)
            pictures.append(f"![curves of {stage.name}]({name})")
    columns = ["stage", "epochs", "steps", "trains", "losses", "rate", "val/mean_recall", "seconds"]
    return table(columns, rows) + "\n\n" + ("\n\n".join(pictures) or "No curves: nothing was logged.")


def draw_curves(path: Path, stage: StageRecord) -> None:
    """Loss and validation recall of one stage over its steps, as a PNG."""
    figure = Figure(figsize=(10, 3), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    loss, recall = figure.subplots(1, 2)
    for axes, names in ((loss, ("train/loss", "val/loss")), (recall, SHOWN_CURVES)):
        for name in names:
            points = sorted(stage.curves.get(name, {}).items())
            if points:
                axes.plot(*zip(*points, strict=True), marker="o" if name.startswith("val") else "", markersize=3, label=name)
        axes.set_xlabel("optimiser step")
        if axes.has_data():
            axes.legend(fontsize=8)
    loss.set_title(f"{stage.name}: loss", fontsize=10)
    recall.set_title(f"{stage.name}: recall on the validation split", fontsize=10)
    recall.set_ylim(bottom=0)
    figure.savefig(path)


def _results(facts: CardFacts) -> str:
    if not facts.test or facts.ranks is None:
        return f"{NOT_MEASURED}: the run was not tested (run.test=false)."
    rows = []
    for direction in DIRECTIONS:
        for name in (f"{direction}_recall_at_{k}" for k in RECALL_AT):
            found = recall_interval(facts.ranks, f"test/{name}")
            others = (facts.test.get(f"test/{prefix}{name}") for prefix in ("reranked_", "baseline/colour_histogram/"))
            beside = [*("-" if value is None else f"{value:.3f}" for value in others), f"{facts.chance[name]:.3f}"]
            rows.append([f"test/{name}", f"{found.value:.3f}", f"{found.low:.3f} to {found.high:.3f}", *beside])
    rest = (name for name in sorted(facts.test) if name.startswith("test/") and "_recall_at_" not in name and "/baseline/" not in name)
    more = [[name, f"{facts.test[name]:.3f}"] for name in rest]
    return (
        f"Test split: {len(facts.ranks.filenames):,} pictures, {len(facts.ranks.captions):,} captions. Recall is the fraction of queries "
        "with a right answer among the first k; the interval is 95 % bootstrap over pictures.\n\n"
        + table(["metric", "this model", "95 % interval", "re-ranked", "colour histogram", "chance"], rows)
        + ("\n\n" + table(["other figures", ""], more) if more else "")
    )


def _attention(facts: CardFacts, folder: Path) -> str:
    if not facts.attention:
        return f"{NOT_MEASURED}: no attention maps were drawn (callbacks.attention_maps)."
    lines = ["Pairs of the validation split, at the last validation."]
    for number, path in enumerate(facts.attention, start=1):
        name = f"attention-{number}{path.suffix}"
        shutil.copyfile(path, folder / name)
        lines.append(f"![{path.stem}]({name})")
    return "\n\n".join(lines)


def _failures(facts: CardFacts) -> str:
    if not facts.misses:
        return f"{NOT_MEASURED}: the run was not tested (run.test=false)."
    parts = []
    for direction, misses in facts.misses.items():
        title = direction.replace("_", " ")
        if not misses:
            parts.append(f"{title}: every query of the test split found its answer first.")
            continue
        rows = [[miss.rank, miss.query, miss.found, miss.right] for miss in misses]
        parts.append(f"The worst queries, {title}:\n\n" + table(["rank", "query", "found first", "right"], rows))
    return "\n\n".join(parts)


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
model.similarity(["picture.jpg"], ["a dog runs on the beach"])
```

From the registry (`models:/{facts.title}@champion` and `runs:/RUN_ID` work too):

```python
from tracking.registry import load

model = load("models:/{facts.title}/VERSION")
```"""
