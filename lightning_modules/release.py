"""What a finished run leaves for others: the bundle with its model card, and the request to be registered."""

from __future__ import annotations

import json
import platform
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from callbacks.stage_scheduler import StageScheduler
from insight.errors import InputError
from insight.export.building import ARCHITECTURES
from insight.export.bundle import save
from insight.export.card import CardFacts, StageRecord, write_card
from insight.export.kinds import Bundle
from insight.metrics import DIRECTIONS
from insight.query_ranks import FILES as RANK_FILES
from insight.query_ranks import QueryRanks, read_ranks, recall_interval
from insight.towers.lora import merged
from lightning_modules.engine_cli import EngineCLI
from lightning_modules.results import load_weights
from tracking.facts import git_facts
from tracking.records import Journal
from tracking.registration import BUNDLE, BUNDLE_TAG, RANKS_TAG, Registration
from tracking.registry import check_name
from tracking.run import SOURCE_FOLDER, TrackedRun
from tracking.store import without_password

MOST_PICTURES = 4  # of the last validation


def check_deployment(cli: EngineCLI) -> None:
    """
    Raises:
        InputError: a setting that the end of the run could not follow.
    """
    deployment = cli.deployment
    if deployment.register and not deployment.bundle:
        raise InputError("deployment.register=true needs deployment.bundle=true: a version is its bundle")
    if deployment.bundle and type(cli.model.model).__name__ not in ARCHITECTURES:
        raise InputError(
            f"deployment.bundle=true, but {type(cli.model.model).__name__} is not in ARCHITECTURES of insight/export/building.py: "
            "give it its line there, or set deployment=none"
        )
    check_name(deployment.name, "deployment.name")


def release(cli: EngineCLI, scheduler: StageScheduler, summary: dict[str, Any], tracked: TrackedRun | None) -> Bundle | None:
    """Write RUN/bundle from the last stage's best weights, hand it to MLflow, and ask for it to be registered, as ``deployment`` says."""
    if not cli.deployment.bundle:
        return None
    run_dir, data = scheduler.run_dir, cli.datamodule
    handoff = scheduler.handoff_path()
    assert handoff is not None, "a plan has at least one stage"
    load_weights(cli.model, handoff)
    model = merged(cli.model.cpu().model)
    ranked = summary["test"] and set(RANK_FILES) <= set(cli.model.result_files)
    ranks, ranks_digest = read_ranks(run_dir) if ranked else (None, "")
    data_facts = {
        "fingerprint": data.fingerprint(),
        "splits": {split: len(names) for split, names in data.splits().items()},
        "description": data.describe(),
    }
    parts = cli.model.parts(cli.frozen["model"]["init_args"], data)
    with tempfile.TemporaryDirectory(prefix="card-") as card:
        write_card(card, card_facts(cli, scheduler, summary, data_facts, parts.arguments))
        bundle = save(run_dir / BUNDLE, model, parts, json.loads(without_password(json.dumps(cli.frozen))), data_facts, card)
    if tracked:
        tracked.log_artifact(bundle.folder)
        if cli.deployment.register:
            tags = {
                BUNDLE_TAG: bundle.sha256,
                RANKS_TAG: ranks_digest,
                "data.fingerprint": data_facts["fingerprint"],
                "run": run_dir.name,
            }
            tracked.register(
                Registration(cli.deployment.name, tags, description(cli, run_dir.name, ranks, summary["test"]), cli.tracking.registry_uri)
            )
    return bundle


def description(cli: EngineCLI, run: str, ranks: QueryRanks | None, test: Mapping[str, float]) -> str:
    """Of a version, for MLflow's page: the recalls, or what else its task shows, and where the card is."""
    lines = [f"Run `{run}`. Model card: artifact `{BUNDLE}/card/model_card.md` of the run."]
    if ranks is not None:
        for name in (f"test/{direction}_recall_at_10" for direction in DIRECTIONS):
            found = recall_interval(ranks, name)
            lines.append(f"- {name} {found.value:.3f} ({found.low:.3f} to {found.high:.3f})")
    else:
        lines += [f"- {name} {test[name]:.3f}" for name in (f"test/{one}" for one in cli.model.shown.metrics) if name in test]
    return "\n".join(lines)


def card_facts(
    cli: EngineCLI,
    scheduler: StageScheduler,
    summary: dict[str, Any],
    data_facts: dict[str, Any],
    arguments: Mapping[str, Any],
) -> CardFacts:
    """What the run knows of itself, for its card."""
    model, stages = cli.model.model, list(stage_records(cli, scheduler, summary))
    return CardFacts(
        title=cli.deployment.name,
        run=scheduler.run_dir.name,
        architecture=type(model).__name__,
        arguments=arguments,
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        seed=cli.plan.seed,
        data=data_facts,
        generated=cli.datamodule.generated,
        stages=stages,
        task=cli.model.card(scheduler.run_dir, cli.datamodule, summary["test"]),
        attention=newest_pictures(scheduler.folder(len(scheduler.plan.stages) - 1)),
        insight=insight_figures({name: points[max(points)] for name, points in stages[-1].curves.items()} | summary["test"]),
        environment=environment(cli),
    )


def insight_figures(figures: Mapping[str, float]) -> dict[str, float]:
    """Those called ``insight/<method>/<score>``.

    >>> insight_figures({"insight/capture_fraction": 0.1, "insight/rollout/deletion": 0.2})
    {'insight/rollout/deletion': 0.2}
    """
    return {name: value for name, value in figures.items() if re.fullmatch("insight/[^/]+/[^/]+", name)}


def stage_records(cli: EngineCLI, scheduler: StageScheduler, summary: dict[str, Any]) -> Iterator[StageRecord]:
    """Recipe, result and curves of each stage; the curves are those of the run's own journal."""
    for index, result in enumerate(summary["stages"]):
        name = result["name"]
        journal = Journal(scheduler.run_dir / "tracking" / scheduler.folder(index).name)
        yield StageRecord(name, cli.frozen["stages"][name], result, journal.contents().points)


def newest_pictures(stage_dir: Path) -> list[Path]:
    """What the last validation of a stage drew (file names begin with epoch and step)."""
    pictures = sorted((stage_dir / "figures").glob("epoch*-step*-*.png"))
    newest = "-".join(pictures[-1].name.split("-")[:2]) if pictures else ""
    return [path for path in pictures if path.name.startswith(f"{newest}-")][:MOST_PICTURES]


def environment(cli: EngineCLI) -> dict[str, str]:
    """The lines of the card; all packages are in environment.json of the run."""
    git = git_facts(SOURCE_FOLDER)
    state = {None: "unknown", True: "with changes that are not committed", False: "clean"}[git.dirty]
    settings = cli.trainer_arguments
    return {
        "commit": git.commit or git.note,
        "working tree": state,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": platform.platform(),
        "trainer": f"accelerator {settings.get('accelerator', 'auto')}, precision {settings.get('precision', '32-true')}",
        "every package": "environment.json of the run",
    }
