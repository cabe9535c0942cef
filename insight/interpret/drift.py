"""What changes while nobody looks: explanations that move while accuracy stays, attention heads that die or collapse.

A head dies when its attention, which preferred something before, becomes even (it passes on the mean of everything), or when what it writes
shrinks to nothing beside the other heads of its layer. It collapses when its attention, which was spread before, falls on a single key, or
on the class token alone. All are changes since the last look: a head that never learnt to prefer anything is no news, and at the first
look there is none.

B captions with their pictures, H heads, T queries, D width, g patches per side.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from insight.data.batch import ImageTextBatch
from insight.errors import InputError
from insight.interpret.explain import explain
from insight.interpret.faithfulness import PROTOCOL, spearman
from insight.interpret.family import Family
from insight.interpret.head_statistics import head_statistics
from insight.interpret.maps import write_atomically
from insight.interpret.record import attention_layers, record
from insight.interpret.untouched import untouched
from insight.nn.attention import Attention, AttentionCall
from insight.stages import Call
from insight.towers.lora import weight_of

FILE, VERSION = "drift.json", 1  # in a stage's folder
MAP_STABILITY = f"map_stability_{PROTOCOL}"


@dataclasses.dataclass(frozen=True)
class Limits:
    """When a change is worth a warning.

    Args:
        stability: Mean rank correlation of a method's maps with those of the last look; below it they have moved.
        accuracy: Change of the watched metric, as a part of its size, up to which accuracy has stayed.
        even: Entropy as a part of the largest possible; at or above it attention is even.
        single: The same; at or below it attention falls on a single key.
        class_mass: Share of attention on the class token; at or above it there is nothing else.
        silent: What a head writes, as a part of the mean of its layer's heads; at or below it the head writes nothing.
        change: How far a figure must have been from its limit at the last look, so that noise at the limit is no alarm.
    """

    stability: float = 0.5
    accuracy: float = 0.05
    even: float = 0.99
    single: float = 0.05
    class_mass: float = 0.95
    silent: float = 0.02
    change: float = 0.05

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 <= value <= 1:
                raise InputError(f"limits.{name}={value}: must be from 0 to 1")


class Look(NamedTuple):
    """What one validation found; plain data and tensors, so that a checkpoint holds it."""

    epoch: int
    step: int
    accuracy: float | None  # of the watched metric
    maps: dict[str, Tensor]  # by method, (B, g, g)
    heads: dict[str, dict[str, list[float]]]  # by layer and figure, a number for each head


class Warned(NamedTuple):
    """One thing to be told."""

    kind: str  # "explanation", "dead head", "collapsed head"
    what: str  # the method, or layer and head
    message: str
    figures: dict[str, float]


def look(
    family: Family, batch: ImageTextBatch, methods: Mapping[str, tuple[Family, Call]], epoch: int, step: int, accuracy: float | None
) -> Look:
    """Explain every caption with its own picture by every method, each with the family that it explains; look at all heads of ``family``.

    Raises:
        InputError: a method that says nothing of patches, and what ``explain`` raises.
    """
    maps = {}
    for name, (explained, method) in methods.items():
        image = explain(explained, batch, None, method).image
        if image is None:
            raise InputError(f"methods.{name}: {method.function} says nothing of patches: drift compares maps of pictures")
        maps[name] = image.cpu()
    return Look(epoch, step, accuracy, maps, head_figures(family, batch))


def head_figures(family: Family, batch: ImageTextBatch) -> dict[str, dict[str, list[float]]]:
    """By layer, a number for each head.

    - ``written``: mean length of what it adds to the stream, as a part of the mean over its layer's heads;
    - ``entropy``: of patches or words that read, as a part of the largest possible; ``class_entropy``: of the class token that reads;
    - ``class_mass``: share that goes to the class token.

    What patches read in the last layer of a tower counts only where somebody reads these patches later.
    """
    statistics = head_statistics(family, batch)
    layers, flow = attention_layers(family.model), family.flow
    with untouched(family.model):
        rows, _ = family.rows(batch, None)
        with record(family.model, {name: _measured(layers[name]) for name in statistics}) as seen:
            family.score(family.embed(rows))
    figures: dict[str, dict[str, list[float]]] = {}
    for name, found in statistics.items():
        written_H, largest = seen[name]
        unread = name in flow.image[-1:] and not flow.fusion
        shares = {figure: value_H.cpu() / largest for figure, value_H in found.items() if figure.endswith("entropy")}
        if "class_mass" in found:
            shares["class_mass"] = found["class_mass"].cpu()
        kept = {figure: value_H.tolist() for figure, value_H in shares.items() if not unread or figure == "class_entropy"}
        figures[name] = {"written": (written_H / written_H.mean().clamp(min=1e-12)).tolist(), **kept}
    return figures


def _measured(layer: Attention) -> Callable[[AttentionCall], tuple[Tensor, float]]:
    """For each head the mean length of what it writes (H,), and the entropy of even attention, mean over rows."""

    def keep(call: AttentionCall) -> tuple[Tensor, float]:
        heads = call.query_BHTK.shape[1]
        onto_HKD = weight_of(layer.output).detach().float().T.unflatten(0, (heads, -1))
        written_HBT = torch.stack([(call.attended_BHTK[:, head].detach().float() @ onto_HKD[head]).norm(dim=-1) for head in range(heads)])
        if call.mask_BS is None:
            return written_HBT.mean(dim=(1, 2)).cpu(), math.log(max(call.key_BHSK.shape[2], 2))
        return written_HBT.mean(dim=(1, 2)).cpu(), float(call.mask_BS.sum(dim=-1).clamp(min=2).log().mean())

    return keep


# --- comparing ---
def stability(now: Look, before: Look) -> dict[str, float]:
    """By method, mean rank correlation of its maps with those of the look before; a map without a rank (constant) counts as one that moved
    away altogether: 0."""
    return {
        name: float(spearman(map_Bgg.flatten(1), before.maps[name].flatten(1)).nan_to_num(nan=0.0).mean())
        for name, map_Bgg in now.maps.items()
        if name in before.maps
    }


def warnings_of(now: Look, before: Look, limits: Limits, metric: str) -> list[Warned]:
    """What has gone wrong since the look before."""
    return [*_moved(now, before, limits, metric), *_heads(now, before, limits)]


def _moved(now: Look, before: Look, limits: Limits, metric: str) -> list[Warned]:
    if now.accuracy is None or before.accuracy is None:
        return []
    if abs(now.accuracy - before.accuracy) > limits.accuracy * max(abs(now.accuracy), abs(before.accuracy)):
        return []
    return [
        Warned(
            "explanation",
            name,
            f"{name}: its maps have changed since epoch {before.epoch} (mean rank correlation {rho:.2f}, limit {limits.stability:.2f}) "
            f"while {metric} has not ({before.accuracy:.3f} -> {now.accuracy:.3f})",
            {"map_stability": rho, "before": before.accuracy, "now": now.accuracy},
        )
        for name, rho in stability(now, before).items()
        if rho < limits.stability
    ]


def _heads(now: Look, before: Look, limits: Limits) -> list[Warned]:
    found = []
    for layer, figures in now.heads.items():
        for head in range(len(figures["written"])):
            told = _one_head({name: values[head] for name, values in figures.items()}, _of(before, layer, head), limits)
            if told is not None:
                kind, figure, why = told
                numbers = {"before": _of(before, layer, head)[figure], "now": figures[figure][head]}
                message = (
                    f"{layer}, head {head}: {why} (since epoch {before.epoch} its {figure.replace('_', ' ')} went from "
                    f"{numbers['before']:.3f} to {numbers['now']:.3f})"
                )
                found.append(Warned(kind, f"{layer} head {head}", message, {figure: numbers["now"], f"{figure}_before": numbers["before"]}))
    return found


def _of(look: Look, layer: str, head: int) -> dict[str, float]:
    return {name: values[head] for name, values in look.heads.get(layer, {}).items()}


def _one_head(now: dict[str, float], before: dict[str, float], limits: Limits) -> tuple[str, str, str] | None:
    """(kind, figure, words) of the first thing that is wrong."""

    def rose(figure: str, limit: float) -> bool:
        return figure in now and figure in before and now[figure] >= limit and before[figure] < limit - limits.change

    def fell(figure: str, limit: float) -> bool:
        return figure in now and figure in before and now[figure] <= limit and before[figure] > limit + limits.change

    if fell("written", limits.silent):
        return "dead head", "written", "it writes next to nothing any more"
    if rose("class_mass", limits.class_mass):
        return "collapsed head", "class_mass", "it reads the class token alone"
    for figure in ("class_entropy", "entropy"):
        if rose(figure, limits.even):
            return "dead head", figure, "its attention has become even"
        if fell(figure, limits.single):
            return "collapsed head", figure, "its attention has collapsed onto a single key"
    return None


# --- what is kept ---
def as_state(found: Look) -> dict[str, Any]:
    """For a checkpoint."""
    return found._asdict()


def from_state(state: Mapping[str, Any]) -> Look:
    return Look(**state)


class Entry(NamedTuple):
    """One validation in the file."""

    epoch: int
    step: int
    accuracy: float | None
    stability: dict[str, float]  # by method; empty at the first look
    heads: dict[str, dict[str, list[float]]]
    warnings: tuple[Warned, ...]


def append_entry(path: Path, metric: str, entry: Entry) -> None:
    """Add a validation to the stage's file; what a resumed run sees again replaces what was there from that step on."""
    entries = [one for one in load_entries(path) if one.step < entry.step]
    content = {"version": VERSION, "metric": metric, "validations": [_plain(one) for one in [*entries, entry]]}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda temporary: temporary.write_text(json.dumps(content), encoding="utf-8"))


def load_entries(path: Path) -> list[Entry]:
    """In the order of training; empty where there is no such file.

    Raises:
        InputError: not such a file.
    """
    if not path.is_file():
        return []
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if raw["version"] != VERSION:
            raise InputError(f"{path}: drift of version {raw['version']}, this code reads {VERSION}; delete the file")
        return [Entry(**{**one, "warnings": tuple(Warned(**told) for told in one["warnings"])}) for one in raw["validations"]]
    except InputError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a file of drift ({type(error).__name__}: {error}); delete it") from error


def _plain(entry: Entry) -> dict[str, Any]:
    return {**entry._asdict(), "warnings": [one._asdict() for one in entry.warnings]}
