"""How far a method of explanation can be trusted, in a few figures for the same pairs every time; protocols as in ``localisation.py`` and
``faithfulness.py``.

How a phrase gets its map is part of the protocol (``MethodFacts.query``). A method that says what each word has to do with each patch is
asked once for the whole caption, and the maps of the phrase's words are summed. Any other method is asked for the phrase as a caption of
its own. Deletion and insertion always judge the map of the whole caption.

R rows, B captions, P phrases, g patches per side, T text tokens, W words of a row that can be left out.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import re
import typing
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from insight.bootstrap import mean_interval
from insight.data.batch import ImageTextBatch
from insight.errors import InputError
from insight.interpret.capture import LARGEST_PICTURE, shown_pictures
from insight.interpret.explain import Cost, Explanation, check_method, explain
from insight.interpret.faithfulness import PROTOCOL, curve_name, deletion, insertion
from insight.interpret.families import family_of
from insight.interpret.family import Family, Target
from insight.interpret.localisation import PhraseScores, phrase_scores
from insight.interpret.maps import MapFacts, MethodFacts
from insight.interpret.masks import MaskedRows, token_drop
from insight.interpret.perturbation import game_of
from insight.interpret.players import NOBODY, grid_segments, num_players, token_words
from insight.interpret.probe import Probe
from insight.interpret.untouched import untouched
from insight.stages import Call, load

IN_CAPTION, ALONE = "words in the caption", "phrase alone"
ROWS_AT_ONCE = 64
STEPS = 8  # of a curve: points beside its start
LARGEST_SHARE = 0.2  # of validation time


@dataclasses.dataclass(frozen=True)
class ScoredMethod:
    """A method of ``explain()`` and what it explains.

    Args:
        function: Import path of the method, e.g. ``insight.interpret.relevance.chefer_relevance``.
        arguments: Its settings.
        family: Import path of the Family whose score is explained, e.g. ``insight.interpret.families.DualEncoder``: the towers' logit, by
            which retrieval goes; null = the model's own, which of a model with fusion layers is the matching head's.
    """

    function: str
    arguments: dict[str, Any] = dataclasses.field(default_factory=dict)
    family: str | None = None

    @property
    def call(self) -> Call:
        return Call(self.function, self.arguments)


def check_methods(methods: Mapping[str, ScoredMethod], model: nn.Module, key: str) -> None:
    """
    Raises:
        InputError: no method, a name that no metric can have, an unknown function, setting or family, or a family of another model.
    """
    if not methods:
        raise InputError(f"{key}: there is no method to score; name one, e.g. chefer, or leave the callback out")
    for name, method in methods.items():
        if not re.fullmatch(r"[A-Za-z0-9_]+", name):
            raise InputError(f"{key}: '{name}' is a part of metric names: letters, digits and _ only")
        try:
            check_method(method.call)
        except InputError as error:
            raise InputError(f"{key}.{name}: {error}") from error
        family_for(model, method, f"{key}.{name}.family")


def family_for(model: nn.Module, method: ScoredMethod, key: str = "family") -> Family:
    """
    Raises:
        InputError: no such family, or it explains another kind of model.
    """
    if method.family is None:
        return family_of(model)
    kind = load(method.family, key)
    if not (inspect.isclass(kind) and issubclass(kind, Family)):
        raise InputError(f"{key}: '{method.family}' is no Family; null explains the model's own score")
    needed = [one for one in inspect.signature(kind).parameters.values() if one.default is inspect.Parameter.empty]
    wanted = typing.get_type_hints(kind).get("model", nn.Module)
    if len(needed) != 1 or not isinstance(model, wanted):
        parts = ", ".join(one.name for one in needed)
        raise InputError(f"{key}: {kind.__name__}({parts}) cannot be made of this {type(model).__name__}; null explains its own score")
    return kind(model)  # type: ignore[call-arg]  # its own constructor, just looked at


# --- one method's maps ---
class Looked(NamedTuple):
    """What a method says of the probe."""

    explanation: Explanation  # of the captions, with their own pictures
    phrases_Pgg: Tensor | None  # None: no phrase, or a method that says nothing of patches
    query: str  # how the phrases got their maps; empty: they have none


def look(family: Family, probe: Probe, method: Call, rows_at_once: int = ROWS_AT_ONCE) -> Looked:
    """Explain the captions, and each phrase by the protocol.

    Captions and phrases are asked together, those of a picture side by side: what perturbs pictures then encodes each of them once.
    """
    count = len(probe)
    found = explained(family, probe.batch if probe.alone is None else together(probe.batch, probe.alone), method, rows_at_once)
    explanation = first_rows(found, count, probe.batch.tokens.shape[1])
    if probe.alone is None or found.image is None:
        return Looked(explanation, None, "")
    if explanation.pairs is None:
        return Looked(explanation, found.image[count:], ALONE)
    places = zip(probe.phrases, probe.positions, strict=True)
    summed = [explanation.pairs[one.caption, list(columns)].sum(dim=0) for one, columns in places]
    return Looked(explanation, torch.stack(summed), IN_CAPTION)


def together(captions: ImageTextBatch, phrases: ImageTextBatch) -> ImageTextBatch:
    """Both as captions of the same pictures."""
    length = max(captions.tokens.shape[1], phrases.tokens.shape[1])
    both: dict[str, Any] = {
        name: torch.cat([nn.functional.pad(getattr(one, name), (0, length - one.tokens.shape[1])) for one in (captions, phrases)])
        for name in ("tokens", "token_mask")
    }
    row = torch.cat([captions.caption_row, phrases.caption_row])
    return captions._replace(**both, caption_row=row, caption_id=torch.arange(len(row)), texts=captions.texts + phrases.texts)


def first_rows(found: Explanation, count: int, length: int) -> Explanation:
    """The first ``count`` rows, their captions of ``length`` tokens; the cost is their part of all rows."""
    text, pairs = (None if part is None else part[:count, :length] for part in (found.text, found.pairs))
    target = Target(found.target.picture[:count], found.target.index[:count])
    return dataclasses.replace(
        found,
        image=None if found.image is None else found.image[:count],
        text=text,
        pairs=pairs,
        score=found.score[:count],
        target=target,
        cost=found.cost._replace(seconds=found.cost.seconds * count / len(found.score)),
        diagnostics={name: values[:count] for name, values in found.diagnostics.items()},
    )


def explained(family: Family, batch: ImageTextBatch, method: Call, rows_at_once: int = ROWS_AT_ONCE) -> Explanation:
    """``explain`` for every caption with its own picture, so many rows at a time, those of a picture side by side."""
    order_C = batch.caption_row.argsort(stable=True)
    place_C = order_C.argsort()
    parts = [explain(family, batch, Target(batch.caption_row[rows], rows), method) for rows in order_C.split(rows_at_once)]
    values: dict[str, Any] = {
        name: _joined([getattr(part, name) for part in parts], place_C) for name in ("image", "text", "pairs", "score")
    }
    diagnostics = {name: torch.cat([part.diagnostics[name].cpu() for part in parts])[place_C] for name in parts[0].diagnostics}
    forwards, backwards = (
        sum(getattr(part.cost, name) * len(part.score) for part in parts) / len(order_C) for name in ("forwards", "backwards")
    )
    cost = Cost(forwards, backwards, sum(part.cost.seconds for part in parts))
    target = Target(batch.caption_row, torch.arange(len(order_C)))
    return dataclasses.replace(parts[0], **values, target=target, cost=cost, diagnostics=diagnostics)


def _joined(parts: list[Tensor | None], place_C: Tensor) -> Tensor | None:
    """Of all rows, in their own order, on the CPU."""
    found = [part.cpu() for part in parts if part is not None]
    return torch.cat(found)[place_C] if found else None


# --- one method's scores ---
class Scored(NamedTuple):
    """One method's line of the score card."""

    looked: Looked
    facts: MethodFacts
    phrase_scores: PhraseScores | None


def score(family: Family, probe: Probe, method: Call, steps: int = STEPS) -> Scored:
    """Where the maps point, how the score falls and rises along them, and what they cost. Figures that these data or this method cannot
    have are left out.

    Args:
        steps: Points of the curves of deletion and insertion beside their start; 0 = no curves.

    Raises:
        InputError: what ``explain`` raises, e.g. ``Lacks`` for a method that the family lacks; captions without a word.
    """
    looked = look(family, probe, method)
    found: dict[str, float] = {}
    intervals: dict[str, tuple[float, float]] = {}
    pointed = None
    if looked.phrases_Pgg is not None:
        pointed = phrase_scores(looked.phrases_Pgg.cpu().numpy(), [one.boxes for one in probe.phrases], probe.others)
        found |= {name: value for name, value in pointed.means().items() if not math.isnan(value)}
        for name, values_P in zip(pointed.means(), (pointed.pointing, pointed.energy), strict=False):
            interval = mean_interval(torch.from_numpy(values_P), probe.pictures)
            intervals[name] = (interval.low, interval.high)
    if steps:
        found |= curves(family, probe.batch, looked.explanation, steps)
    cost = looked.explanation.cost
    found |= {
        "forwards_per_pair": cost.forwards,
        "backwards_per_pair": cost.backwards,
        "seconds_per_pair": cost.seconds / len(probe),
    }
    settled = looked.explanation.method
    return Scored(looked, MethodFacts(settled.function, settled.arguments, family.name, looked.query, found, intervals), pointed)


def curves(family: Family, batch: ImageTextBatch, explanation: Explanation, steps: int) -> dict[str, float]:
    """Areas under deletion and insertion, mean over captions, in units of the score: of the picture where the map has patches, of the
    caption where it has tokens. What is removed is left out of the sequence."""
    found: dict[str, float] = {}
    with untouched(family.model):
        rows, _ = family.rows(batch, None)
        if explanation.image is not None:
            grid = explanation.image.shape[-1]
            game = game_of(MaskedRows(family, rows, grid_segments(grid, grid**2)))
            map_RP = explanation.image.flatten(1)
            for kind, function in (("deletion", deletion), ("insertion", insertion)):
                found[curve_name(kind, "image", token_drop)] = float(function(game, map_RP, steps).area_G.mean())
        if explanation.text is not None and rows.tokens_RT is not None:
            word_RT = token_words(rows.tokens_RT).cpu()
            value_RW, present_RW = by_word(explanation.text.cpu(), word_RT)
            game = game_of(MaskedRows(family, rows, None, word_RT))
            for kind, function in (("deletion", deletion), ("insertion", insertion)):
                area_G = function(game, value_RW, steps, present_GM=present_RW).area_G
                found[f"{kind}_text_word_drop_{PROTOCOL}"] = float(area_G.mean())
    return found


def by_word(text_RT: Tensor, word_RT: Tensor) -> tuple[Tensor, Tensor]:
    """Values of the words that can be left out (R, W), and which of them each row has.

    >>> by_word(torch.tensor([[9.0, 1.0, 2.0, 9.0]]), torch.tensor([[-1, 0, 1, -1]]))
    (tensor([[1., 2.]]), tensor([[True, True]]))

    Raises:
        InputError: a caption without a word.
    """
    count_R = num_players(word_RT)
    if int(count_R.min()) < 1:
        raise InputError(f"caption {int(count_R.argmin())} has no word that could be left out")
    present_RW = torch.arange(int(count_R.max())) < count_R[:, None]
    value_RW = torch.zeros(present_RW.shape).scatter_add_(1, word_RT.clamp(min=0), text_RT * (word_RT != NOBODY))
    return value_RW, present_RW


# --- as a file ---
def record(
    probe: Probe, scored: Mapping[str, Scored], facts: MapFacts, largest_picture: int = LARGEST_PICTURE
) -> tuple[dict[str, np.ndarray], MapFacts]:
    """Arrays and facts in the format of ``maps.py``. ``facts``: when and where; its examples and methods are filled in."""
    arrays = {"picture": shown_pictures(probe.batch.image[probe.batch.caption_row], largest_picture).cpu().numpy()}
    late: dict[str, np.ndarray] = {}  # what the limit of a file may leave out first
    for name, one in scored.items():
        for kind, part in (("image", one.looked.explanation.image), ("text", one.looked.explanation.text)):
            if part is not None:
                arrays[f"method/{name}/{kind}"] = _unit(part.cpu().numpy())
        if one.looked.phrases_Pgg is not None:
            arrays[f"method/{name}/phrases"] = by_example(_unit(one.looked.phrases_Pgg.cpu().numpy()), probe)
        if one.looked.explanation.pairs is not None:
            late[f"method/{name}/pairs"] = _unit(one.looked.explanation.pairs.cpu().numpy())
    explained_score = {name: one.looked.explanation.score.tolist() for name, one in scored.items()}
    examples = tuple(
        dataclasses.replace(example, score={name: values[row] for name, values in explained_score.items()})
        for row, example in enumerate(probe.examples())
    )
    return arrays | late, dataclasses.replace(facts, examples=examples, methods={name: one.facts for name, one in scored.items()})


def by_example(map_Pgg: np.ndarray, probe: Probe) -> np.ndarray:
    """(B, Q, g, g): each example's phrases in their order, zero beyond its last."""
    place, count = [], [0] * len(probe)
    for phrase in probe.phrases:
        place.append((phrase.caption, count[phrase.caption]))
        count[phrase.caption] += 1
    found = np.zeros((len(probe), max(count), *map_Pgg.shape[1:]), dtype=map_Pgg.dtype)
    for (row, number), map_gg in zip(place, map_Pgg, strict=True):
        found[row, number] = map_gg
    return found


def _unit(values: np.ndarray) -> np.ndarray:
    """Each row in units of its largest magnitude."""
    largest = np.abs(values).reshape(len(values), -1).max(axis=1).reshape(-1, *[1] * (values.ndim - 1))
    return values / np.where(largest > 0, largest, 1)


# --- how often ---
def cadence(scoring_seconds: float, validation_seconds: float, largest_share: float = LARGEST_SHARE) -> int:
    """The smallest n for which scoring in every n-th validation takes at most its share of validation time.

    >>> cadence(0.5, 10.0), cadence(5.0, 10.0)
    (1, 3)
    """
    return max(1, math.ceil(scoring_seconds / (largest_share * max(validation_seconds, 1e-9)) - 1e-9))
