"""What a run has left for people to look at: read from its folder, without the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from insight.errors import InputError
from insight.interpret.checks import FILE as CHECKS
from insight.interpret.checks import Check, load_checks
from insight.interpret.drift import FILE as DRIFT
from insight.interpret.drift import Entry, load_entries
from insight.interpret.maps import MapFacts, load_facts, load_maps
from insight.interpret.search import VALIDATION
from insight.interpret.tables import FOLDER, scored_validations

CONFIG, SUMMARY, LEDGER, SPLITS = "config.yaml", "summary.json", "stages.json", "splits.json"


class Validation(NamedTuple):
    """One file of maps. The arrays stay on disk until they are asked for."""

    path: Path
    facts: MapFacts

    def arrays(self) -> dict[str, np.ndarray]:
        """As ``maps.py`` names them; photos that the size limit left out are grey."""
        found = load_maps(self.path)[0]
        return {"picture": np.full((len(self.facts.examples), 8, 8, 3), 128, dtype=np.uint8), **found}


class StageFiles(NamedTuple):
    """What one stage left."""

    name: str
    epochs: int
    steps: int
    metrics: dict[str, float]
    scored: tuple[Validation, ...]  # by the score card, in the order of training
    looked: tuple[Validation, ...]  # by the callback attention_maps
    checks: dict[str, Check]  # by method
    drift: tuple[Entry, ...]
    search: Validation | None  # many validation pairs with their ranks


class RunFiles(NamedTuple):
    """What a finished run left."""

    name: str
    test: dict[str, float]
    num_pictures: int | None  # of the validation split
    stages: tuple[StageFiles, ...]

    @property
    def search(self) -> Validation | None:
        """Of the last stage that has it."""
        return next((stage.search for stage in reversed(self.stages) if stage.search), None)


def read_run(folder: Path) -> RunFiles:
    """
    Raises:
        InputError: no folder of a run, a run that is not finished, one without maps, or a damaged file.
    """
    if not (folder / CONFIG).is_file():
        raise InputError(f"{folder}: not the folder of a run (it has no {CONFIG}); give one like outputs/latest")
    if not (folder / SUMMARY).is_file():
        raise InputError(f"{folder}: the run is not finished ({_progress(folder)}); go on with `python train.py resume={folder}`")
    summary = _read(folder / SUMMARY)
    folders = {path.name.partition("-")[2]: path for path in sorted(folder.glob("[0-9]*-*")) if path.is_dir()}
    try:
        stages = tuple(_stage(one, folders[one["name"]]) for one in summary["stages"] if one["name"] in folders)
        test = summary.get("test") or {}
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{folder / SUMMARY}: not the summary of a run ({type(error).__name__}: {error})") from error
    if not any(stage.scored or stage.looked for stage in stages):
        raise InputError(f"{folder}: the run left no maps; train one with the callbacks score_card or attention_maps")
    splits = _read(folder / SPLITS) if (folder / SPLITS).is_file() else {}
    return RunFiles(folder.resolve().name, test, len(splits["val"]) if "val" in splits else None, stages)


def _stage(done: dict[str, Any], folder: Path) -> StageFiles:
    searched = folder / FOLDER / VALIDATION
    return StageFiles(
        name=done["name"],
        epochs=done["epochs"],
        steps=done["steps"],
        metrics=done.get("metrics", {}),
        scored=tuple(Validation(path, facts) for path, facts in scored_validations(folder / FOLDER)),
        looked=tuple(Validation(path, load_facts(path)) for path in sorted((folder / "maps").glob("epoch*.safetensors"))),
        checks=load_checks(folder / FOLDER / CHECKS),
        drift=tuple(load_entries(folder / DRIFT)),
        search=Validation(searched, load_facts(searched)) if searched.is_file() else None,
    )


def _progress(folder: Path) -> str:
    if not (folder / LEDGER).is_file():
        return "no stage is done"
    ledger = _read(folder / LEDGER)
    return f"{len(ledger.get('done', ()))} of {len(ledger.get('stages', ()))} stages are done"


def _read(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error})") from error
    if not isinstance(raw, dict):
        raise InputError(f"{path}: not what a run writes there (no object)")
    return raw
