"""The plan of a multistage run: stages as plain data, and the checks that find a mistake before the first step."""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
import hashlib
import importlib
import inspect
import json
from collections.abc import Callable, Iterable
from typing import Any, Literal

from insight.data.augmentation import ImageAugmentation, TextAugmentation
from insight.errors import InputError


@dataclasses.dataclass(frozen=True)
class Call:
    """A function or class by import path, and its arguments.

    Args:
        function: Import path, e.g. ``torch.optim.AdamW``.
        arguments: Its arguments by name.
    """

    function: str
    arguments: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class LossTerm:
    """One term of a stage's loss: ``weight * function(quantities, **arguments)``.

    Args:
        function: Import path of a function, e.g. ``insight.losses.contrastive``. The names of its parameters say which quantities it needs.
            Or of a module class, for a loss with parameters or state: the parameters of its ``forward`` say it.
        weight: Factor of the term in the sum; 0 leaves the term out.
        arguments: Settings of the function, or of the class, by parameter name.
        schedule: Import path and arguments of a function ``(progress, ...) -> factor`` on the weight, progress through the stage from
            0 to 1, e.g. ``insight.losses.fade_in``. Validation weighs as the stage's end does.
    """

    function: str
    weight: float = 1.0
    arguments: dict[str, Any] = dataclasses.field(default_factory=dict)
    schedule: Call | None = None

    def weight_at(self, progress: float) -> float:
        """The weight at a point of the stage, from 0 to 1."""
        if self.schedule is None:
            return self.weight
        return self.weight * load(self.schedule.function, "schedule.function")(progress, **self.schedule.arguments)


@dataclasses.dataclass(frozen=True)
class StageData:
    """What a stage changes in the data module; ``null`` keeps the data module's own value.

    Args:
        batch_size: Pictures per step, over all devices.
        captions_per_image: Captions of each picture in a training batch.
        views: 2 serves a second augmented view of every picture.
        crop_scale_min: Smallest area of a random crop, as a fraction of the picture.
        color_jitter: Strength of the colour jitter; 0 = none.
        flip: Mirror pictures at random.
        text_augmentation: Changes of the captions; their phrases are dropped where a caption changed. Off unless given.
        image_augmentation: Further changes of the pictures. Off unless given.
        curriculum: Import path and arguments of a class that orders the pictures of each epoch, e.g. ``datamodules.curriculum.ByLength``;
            ``null``: at random.
    """

    batch_size: int | None = None
    captions_per_image: int | Literal["all"] | None = None
    views: int | None = None
    crop_scale_min: float | None = None
    color_jitter: float | None = None
    flip: bool | None = None
    text_augmentation: TextAugmentation | None = None
    image_augmentation: ImageAugmentation | None = None
    curriculum: Call | None = None

    @property
    def given(self) -> dict[str, Any]:
        """What is not ``null``."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclasses.dataclass(frozen=True)
class Stage:
    """One call of ``Trainer.fit``.

    Args:
        epochs: Passes over the training split (the most, when ``patience`` is set).
        train: Patterns over parameter names, e.g. ``model.image.*``; what matches none is frozen, and so is what
            ``!model.word_head.*`` takes out again. A pattern that matches nothing is an error. What belongs to a loss of the stage,
            ``losses.TERM.*``, trains unless it is taken out.
        losses: Terms of the loss by name.
        balance: Import path and arguments of a module class that turns the terms into one loss, e.g.
            ``insight.losses.UncertaintyWeighting``; ``null``: their sum.
        learning_rate: Rate of what no pattern of ``learning_rates`` names.
        learning_rates: Pattern over parameter names -> its own rate; the first that matches counts.
        optimizer: Import path and arguments of the optimiser.
        schedule: Import path and arguments of a function ``(step, total_steps, ...) -> factor`` on every rate.
        monitor: Metric that chooses the stage's best checkpoint; ``null``: the last epoch is the best.
        mode: Whether ``max`` or ``min`` of ``monitor`` is best.
        patience: Stop after so many validations without a better ``monitor``; ``null``: never.
        data: What the stage changes in the data module.
        trainer: Trainer arguments of this stage alone, e.g. ``accumulate_grad_batches``, ``precision``, ``gradient_clip_val``.
    """

    epochs: int
    train: list[str]
    losses: dict[str, LossTerm]
    learning_rate: float = 1e-3
    learning_rates: dict[str, float] = dataclasses.field(default_factory=dict)
    optimizer: Call = dataclasses.field(default_factory=lambda: Call("torch.optim.AdamW"))
    schedule: Call = dataclasses.field(default_factory=lambda: Call("insight.optim.warmup_cosine"))
    monitor: str | None = None
    mode: Literal["max", "min"] = "max"
    patience: int | None = None
    data: StageData = dataclasses.field(default_factory=StageData)
    trainer: dict[str, Any] = dataclasses.field(default_factory=dict)
    balance: Call | None = None


@dataclasses.dataclass(frozen=True)
class StagePlan:
    """Named stages in the order in which they run, and the seed that everything random starts from."""

    stages: dict[str, Stage]
    seed: int = 0

    @property
    def names(self) -> list[str]:
        return list(self.stages)

    @property
    def digest(self) -> str:
        """Changes with anything that could change the weights."""
        plain = {"order": self.names, "stages": {name: dataclasses.asdict(stage) for name, stage in self.stages.items()}, "seed": self.seed}
        return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]


def derive_seed(*parts: int | str) -> int:
    """A 31-bit seed that is a pure function of ``parts``: (seed, stage), (stage seed, epoch), ...

    >>> derive_seed(0, "end_to_end") == derive_seed(0, "end_to_end")
    True
    """
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:4], "big") >> 1


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint for an error message: ``; did you mean 'x'?`` or the known words."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean '{close[0]}'?" if close else f"; known: {', '.join(known)}"


def matching(patterns: Iterable[str], names: Iterable[str], key: str) -> set[str]:
    """Names that match any pattern (shell style, whole name) and none that begins with ``!``.

    Raises:
        InputError: a pattern matches nothing. It names ``key``, the pattern and the modules that exist.
    """
    names = list(names)
    found: set[str] = set()
    taken_out: set[str] = set()
    for pattern in patterns:
        hits = fnmatch.filter(names, pattern.removeprefix("!"))
        if not hits:
            modules = {".".join(name.split(".")[:depth]) + ".*" for name in names for depth in (1, 2) if name.count(".") >= depth}
            raise InputError(f"{key}: the pattern '{pattern}' matches no parameter{nearest(pattern, modules | {'*'})}")
        (taken_out if pattern.startswith("!") else found).update(hits)
    return found - taken_out


def load(path: str, key: str) -> Callable[..., Any]:
    """The function or class at an import path.

    Raises:
        InputError: there is none. It names ``key`` and the nearest name of that module.
    """
    module_name, _, name = path.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except (ImportError, ValueError) as error:
        raise InputError(f"{key}: cannot import '{path}': {error}") from error
    if not callable(getattr(module, name, None)):
        public = [word for word, value in vars(module).items() if callable(value) and not word.startswith("_")]
        raise InputError(f"{key}: '{module_name}' has no function or class '{name}'{nearest(name, public)}")
    return getattr(module, name)


def check_arguments(function: Callable[..., Any], given: Iterable[str], key: str, supplied: Iterable[str] = ()) -> list[str]:
    """Parameters of ``function`` that are neither given nor defaulted, after checking that every given one exists.

    Raises:
        InputError: ``given`` holds a name that the function lacks, or one that the engine supplies itself.
    """
    parameters = inspect.signature(function).parameters
    allowed = [name for name in parameters if name not in set(supplied)]
    for name in given:
        if name not in allowed:
            raise InputError(f"{key}.{name}: {function.__name__} takes no such argument{nearest(name, allowed)}")
    return [name for name, one in parameters.items() if one.default is inspect.Parameter.empty and name not in set(given)]


def check_call(call: Call, key: str, supplied: Iterable[str]) -> Callable[..., Any]:
    """The function or class of a call whose other arguments the engine supplies.

    Raises:
        InputError: there is none, an argument does not exist, or one is missing.
    """
    function = load(call.function, f"{key}.function")
    missing = [name for name in check_arguments(function, call.arguments, f"{key}.arguments", supplied) if name not in set(supplied)]
    if missing:
        raise InputError(f"{key}.arguments: {function.__name__} needs {', '.join(missing)}")
    return function


def bind_losses(
    losses: dict[str, LossTerm], quantities: Iterable[str], key: str
) -> dict[str, tuple[Callable[..., Any], LossTerm, list[str]]]:
    """Each term with its function and the quantities that it needs; terms of weight 0 are checked, and left out.

    Raises:
        InputError: unknown function, unknown argument, a quantity that this model does not have, or no term that counts.
    """
    if not losses:
        raise InputError(f"{key}: a stage needs at least one loss, e.g. contrastive: {{function: insight.losses.contrastive}}")
    quantities = set(quantities)
    bound = {}
    for name, term in losses.items():
        function = load(term.function, f"{key}.{name}.function")
        if inspect.isclass(function):
            check_call(Call(term.function, term.arguments), f"{key}.{name}", supplied=("model",))
            forward = getattr(function, "forward", None)
            if forward is None:
                raise InputError(f"{key}.{name}.function: the class {term.function} has no forward; give a function or a torch.nn.Module")
            needed = check_arguments(forward, (), f"{key}.{name}.arguments")[1:]  # without self
        else:
            needed = check_arguments(function, term.arguments, f"{key}.{name}.arguments", supplied=quantities)
        if term.schedule is not None:
            check_call(term.schedule, f"{key}.{name}.schedule", supplied=("progress",))
        for parameter in needed:
            if parameter not in quantities:
                raise InputError(
                    f"{key}.{name}: {term.function} needs '{parameter}', which this model cannot compute{nearest(parameter, quantities)}"
                )
        if term.weight:
            bound[name] = (function, term, needed)
    if not bound:
        raise InputError(f"{key}: every term has weight 0, so there is nothing to learn from")
    for percent in range(101):
        if not any(term.weight_at(percent / 100) for _, term, _ in bound.values()):
            raise InputError(f"{key}: every term has weight 0 at {percent} % of the stage: let the schedules overlap")
    return bound


def check_plan(plan: StagePlan) -> None:
    """Mistakes that need no model to be found.

    Raises:
        InputError: names the key.
    """
    if not plan.stages:
        raise InputError("stages: the plan has no stage; choose a recipe, e.g. stages=three_stages")
    for name, stage in plan.stages.items():
        if stage.epochs < 1:
            raise InputError(f"stages.{name}.epochs={stage.epochs}: must be at least 1")
        if stage.data.curriculum is not None:
            check_call(stage.data.curriculum, f"stages.{name}.data.curriculum", supplied=("captions", "batch_size"))
        if stage.balance is not None:
            check_call(stage.balance, f"stages.{name}.balance", supplied=("terms",))
        if stage.patience is not None and stage.monitor is None:
            raise InputError(f"stages.{name}.patience={stage.patience} needs stages.{name}.monitor, e.g. val/mean_recall")
        if stage.patience is not None and stage.patience < 1:
            raise InputError(f"stages.{name}.patience={stage.patience}: must be at least 1")
        for part, rate in {
            "learning_rate": stage.learning_rate,
            **{f"learning_rates.{k}": v for k, v in stage.learning_rates.items()},
        }.items():
            if not 0 < rate < float("inf"):
                raise InputError(f"stages.{name}.{part}={rate}: must be above 0")
