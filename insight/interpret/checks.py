"""What is asked of a method once per stage, because it costs more: randomisation, infidelity, sensitivity; and the file of the answers.

R rows, M maps' values, g patches per side.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from insight.data.batch import ImageTextBatch
from insight.errors import InputError
from insight.interpret.explain import check_method, explain
from insight.interpret.faithfulness import PROTOCOL, cascade, infidelity, max_sensitivity, randomisation
from insight.interpret.family import Family, Target
from insight.interpret.maps import Verdict, mark_maps, write_atomically
from insight.interpret.masks import Game, MaskedRows
from insight.interpret.perturbation import game_of
from insight.interpret.players import grid_segments
from insight.interpret.scorecard import ScoredMethod, family_for
from insight.interpret.tables import FOLDER, MAPS
from insight.interpret.untouched import untouched
from insight.stages import Call

VERSION = 1
FILE = "checks.json"
INFIDELITY_SAMPLES, SENSITIVITY_SAMPLES = 64, 4
SHEETS = {  # arrays that the sheets of attention show -> the method of explain() that says the same, and of which family
    "rollout": ("insight.interpret.attention_maps.rollout_map", "dual encoder"),
    "class": ("insight.interpret.attention_maps.raw_attention", "dual encoder"),
    "words": ("insight.interpret.attention_maps.raw_attention", "cross-attention"),
}


@dataclasses.dataclass(frozen=True)
class Check:
    """What the checks found of one method.

    Args:
        function: Import path of the method.
        family: Whose score it explained, e.g. ``dual encoder``.
        rho: Rank correlation with the maps of a model whose weights are shuffled: what the verdict reads.
        passed: The maps depend on the weights (``faithfulness.LARGEST_RHO``).
        cascade: The same after each layer was shuffled in addition, from the output to the input, mean over rows; a map without a rank
            counts as one that did not change.
        infidelity: In units of the score, squared; None = the method says nothing of patches.
        max_sensitivity: Largest relative change of the map under a small change of the pixels.
    """

    function: str
    family: str
    rho: float
    passed: bool
    cascade: dict[str, float]
    infidelity: float | None = None
    max_sensitivity: float | None = None

    @property
    def verdict(self) -> Verdict:
        return Verdict(self.rho, self.passed)

    @property
    def scores(self) -> dict[str, float]:
        """By the names of ``insight/<method>/<score>``."""
        found = {f"randomisation_rho_{PROTOCOL}": self.rho, f"randomisation_passed_{PROTOCOL}": float(self.passed)}
        beside = {f"infidelity_{PROTOCOL}": self.infidelity, f"max_sensitivity_{PROTOCOL}": self.max_sensitivity}
        return found | {name: value for name, value in beside.items() if value is not None}


def check_trust(model: nn.Module, batch: ImageTextBatch, method: ScoredMethod, seed: int = 0) -> Check:
    """Run all checks of one method on every caption of the batch with its own picture. The model is left as it was."""
    family = family_for(model, method)
    batch = batch._replace(image=batch.image[batch.caption_row], caption_row=torch.arange(len(batch.tokens)))

    def maps(shuffled: nn.Module, lot: int) -> Tensor:
        return _map(family_for(shuffled, method), batch, seeded(method.call, lot))

    found = randomisation(maps, model, used_stages(model, batch, method), seed)
    rho_by_stage = found.rho_SG.nan_to_num(nan=1.0).mean(dim=1).tolist()
    told = Check(method.function, family.name, found.rho, found.passed, dict(zip(found.stages, rho_by_stage, strict=True)))
    image = explain(family, batch, None, method.call).image
    if image is None:
        return told
    return dataclasses.replace(
        told,
        infidelity=float(infidelity(patch_game(family, batch), image.flatten(1), INFIDELITY_SAMPLES, seed).mean()),
        max_sensitivity=_sensitivity(family, batch, method.call, seed),
    )


def used_stages(model: nn.Module, batch: ImageTextBatch, method: ScoredMethod) -> tuple[tuple[str, ...], ...]:
    """The cascade without the layers that the explained score never passes (the fusion of a model whose towers are explained).

    Raises:
        InputError: no weight takes part in the score.
    """
    copied = copy.deepcopy(model).requires_grad_(True)
    family = family_for(copied, method)
    names = dict(copied.named_parameters())
    with untouched(copied):
        rows, _ = family.rows(batch, None)
        with torch.enable_grad():
            score_R = family.score(family.embed(rows))
            gradients = torch.autograd.grad(score_R.sum(), list(names.values()), allow_unused=True)
    used = [name for name, gradient in zip(names, gradients, strict=True) if gradient is not None]
    stages = [
        tuple(layer for layer in stage if any(name.startswith(f"{layer}.") or name == layer for name in used)) for stage in cascade(copied)
    ]
    found = tuple(stage for stage in stages if stage)
    if not found:
        raise InputError(f"no weight of this {type(model).__name__} takes part in the score that is explained")
    return found


def seeded(method: Call, lot: int) -> Call:
    """The method with other lots of its own, where it draws any."""
    draws = "seed" in inspect.signature(check_method(method)).parameters
    return Call(method.function, {**method.arguments, "seed": lot}) if draws else method


def patch_game(family: Family, batch: ImageTextBatch) -> Game:
    """Each patch is a player of its own; what is removed is left out of the sequence."""
    assert family.grid is not None, "the method says something of patches"
    with untouched(family.model):
        rows, _ = family.rows(batch, None)
    return game_of(MaskedRows(family, rows, grid_segments(family.grid, family.grid**2)))


def _sensitivity(family: Family, batch: ImageTextBatch, method: Call, seed: int) -> float:
    def maps(pixels_R3HW: Tensor, row_R: Tensor) -> Tensor:
        return _map(family, batch._replace(image=pixels_R3HW), method, Target(torch.arange(len(row_R)), row_R))

    return float(max_sensitivity(maps, batch.image, samples=SENSITIVITY_SAMPLES, seed=seed).mean())


def _map(family: Family, batch: ImageTextBatch, method: Call, target: Target | None = None) -> Tensor:
    explanation = explain(family, batch, target, method)
    found = explanation.text if explanation.image is None else explanation.image
    assert found is not None, "a method says something of patches or of tokens"
    return found.cpu()


# --- as a file ---
def save_checks(path: Path, checks: Mapping[str, Check], when: Mapping[str, Any]) -> None:
    """One file per stage. ``when``: stage, epoch, step, and how many pairs the checks saw."""
    text = json.dumps(
        {"version": VERSION, "protocol": PROTOCOL, **when, "methods": {name: dataclasses.asdict(one) for name, one in checks.items()}},
        indent=1,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def load_checks(path: Path) -> dict[str, Check]:
    """By method; empty where there is no such file (the stage has not ended).

    Raises:
        InputError: not such a file.
    """
    if not path.is_file():
        return {}
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if raw["version"] != VERSION:
            raise InputError(f"{path}: checks of version {raw['version']}, this code reads {VERSION}; delete the file")
        return {name: Check(**one) for name, one in raw["methods"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: not a file of checks ({type(error).__name__}: {error}); delete it") from error


def newest_checks(run_dir: Path) -> dict[str, Check]:
    """Of the last stage of a run that has ended, by method; empty where none has."""
    files = sorted(run_dir.glob(f"*/{FOLDER}/{FILE}"))
    return load_checks(files[-1]) if files else {}


def sheet_verdicts(checks: Mapping[str, Check]) -> dict[str, Verdict]:
    """What the checks say of the arrays that the sheets of attention show, whatever the methods' names in the config."""
    by_method = {(one.function, one.family): one.verdict for one in checks.values()}
    return {shown: by_method[method] for shown, method in SHEETS.items() if method in by_method}


def mark_stage(stage_dir: Path) -> list[Path]:
    """Write what a stage's checks found beside every map that the stage left. Returns the newest file of each kind, to be drawn again."""
    checks = load_checks(stage_dir / FOLDER / FILE)
    own = {name: one.verdict for name, one in checks.items()}
    newest = []
    for folder, verdicts in ((stage_dir / FOLDER, own), (stage_dir / MAPS, sheet_verdicts(checks))):
        files = sorted(folder.glob("*.safetensors"))
        for path in files:
            mark_maps(path, verdicts)
        newest += [path for path in files if path.stem.startswith("epoch")][-1:]
    return newest
