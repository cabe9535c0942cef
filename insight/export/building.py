"""The plain description of a model (``model.json``) and back: only classes of this project are ever built, and none before it fits."""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from insight.errors import InputError
from insight.models.classifier import ImageClassifier
from insight.models.clip import ClipTransformer
from insight.models.cross_attention import CrossAttentionMultiModalTransformer
from insight.models.language_model import LanguageModel
from insight.models.multimodal import MultiModalTransformer
from insight.models.siglip import SiglipTransformer
from insight.models.tower import ImageTower, TextTower
from insight.nn.settings import BlockSettings
from insight.stages import check_arguments, nearest
from insight.towers.timm import TimmImage
from insight.towers.torchvision import TorchvisionImage
from insight.towers.transformers import TransformersImage, TransformersText

# A new architecture gets its line here, and one in KINDS of kinds.py: a bundle names its class, and only these are ever built.
ARCHITECTURES: dict[str, type[nn.Module]] = {
    one.__name__: one
    for one in (
        MultiModalTransformer,
        CrossAttentionMultiModalTransformer,
        ClipTransformer,
        SiglipTransformer,
        ImageClassifier,
        LanguageModel,
    )
}
# Encoders of other libraries, likewise; their names and arguments go to the library, which brings its own code.
TOWERS: dict[str, type[ImageTower] | type[TextTower]] = {
    one.__name__: one for one in (TimmImage, TorchvisionImage, TransformersImage, TransformersText)
}
LOADING = ("weights", "checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")  # arguments by which files are read


# --- writing ---
def plain_arguments(architecture: type[nn.Module], given: Mapping[str, Any]) -> dict[str, Any]:
    """Those of ``given`` (a config's ``model.init_args``) that the architecture takes."""
    return {name: value for name, value in given.items() if name in inspect.signature(architecture).parameters}


def described(model: nn.Module, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What ``model.json`` says of a model that was built with ``arguments``; settings of its blocks as plain values.

    Raises:
        InputError: the class, or a tower's, is none that a bundle may hold.
    """
    name = type(model).__name__
    if ARCHITECTURES.get(name) is not type(model):
        raise InputError(f"{name} cannot be bundled: it is not in ARCHITECTURES of insight/export/building.py ({', '.join(ARCHITECTURES)})")
    plain = {key: dataclasses.asdict(value) if isinstance(value, BlockSettings) else value for key, value in arguments.items()}
    towers = {side: described_tower(getattr(model, side)) for side in ("image", "text") if arguments.get(side) is not None}
    return {"architecture": name, "arguments": {**plain, **towers}}


def described_tower(tower: ImageTower | TextTower) -> dict[str, Any]:
    """How a bundle names an encoder of another library.

    Raises:
        InputError: it is not in ``TOWERS``.
    """
    name = type(tower).__name__
    if TOWERS.get(name) is not type(tower):
        raise InputError(f"{name} cannot be bundled: it is not in TOWERS of insight/export/building.py ({', '.join(TOWERS)})")
    return {"tower": name, "arguments": tower.rebuilding()}


# --- reading ---
def build(folder: Path, described: Mapping[str, Any], weights: dict[str, Tensor]) -> nn.Module:
    """The named architecture with these weights, in evaluation mode.

    It is laid out without memory first: a lie about its size costs nothing.

    Args:
        folder: Of the bundle.
        described: What its ``model.json`` says.
        weights: What its ``weights.safetensors`` holds.

    Raises:
        InputError: no architecture of this project, arguments that it does not take, or weights of another model.
    """
    name, arguments = described.get("architecture"), described.get("arguments")
    architecture = ARCHITECTURES.get(name) if isinstance(name, str) else None
    if architecture is None:
        raise InputError(f"{folder}/model.json: no architecture of this project is called '{name}'{nearest(str(name), ARCHITECTURES)}")
    if not isinstance(arguments, dict):
        raise InputError(f"{folder}/model.json: arguments must be a JSON object")
    missing = check_arguments(architecture, arguments, f"{folder}/model.json: arguments")
    if missing:
        raise InputError(f"{folder}/model.json: {name} needs {', '.join(missing)}")
    hints = typing.get_type_hints(architecture.__init__)
    towers = {key: value for key, value in arguments.items() if key in ("image", "text") and value is not None}
    built = {key: _value(f"{folder}/model.json: {key}", value, hints[key]) for key, value in arguments.items() if key not in towers}
    built |= {key: _tower(folder, f"{folder}/model.json: {key}", value) for key, value in towers.items()}
    try:
        with torch.device("meta"):
            model = architecture(**built)
    except (ValueError, RuntimeError, OverflowError) as error:
        raise InputError(f"{folder}/model.json: {name} cannot be built: {error}") from error
    own = {key: (tuple(value.shape), value.dtype) for key, value in model.state_dict().items()}
    given = {key: (tuple(value.shape), value.dtype) for key, value in weights.items()}
    wrong = [key for key in {**own, **given} if own.get(key) != given.get(key)]
    if wrong:
        raise InputError(
            f"{folder}/weights.safetensors: weights of another model: {wrong[0]} is {given.get(wrong[0])}, the {name} of model.json has "
            f"{own.get(wrong[0])}; fetch the bundle again, or make it again from its run"
        )
    for child in model.children():
        if not isinstance(child, (ImageTower, TextTower)):  # those are built whole: their libraries compute buffers that no file holds
            child.to_empty(device="cpu")
    for key, parameter in model.named_parameters(recurse=False):
        setattr(model, key, nn.Parameter(torch.empty_like(parameter, device="cpu")))
    model.load_state_dict(weights)  # copied: in the file they lie unaligned, and kernels then round otherwise
    return model.eval().requires_grad_(False)


def _tower(folder: Path, key: str, value: Any) -> ImageTower | TextTower:
    """An encoder of another library with random weights.

    Raises:
        InputError: not one of ``TOWERS``, or arguments that would read files or the hub.
    """
    name, arguments = (value.get("tower"), value.get("arguments")) if isinstance(value, dict) else (None, None)
    if not isinstance(name, str) or name not in TOWERS or not isinstance(arguments, dict) or not isinstance(arguments.get("name"), str):
        raise InputError(f"{key}: not one of the towers {', '.join(TOWERS)} with the name of its network")
    further = arguments.get("arguments") or {}
    asked = [word for word in LOADING if word in arguments or word in further]
    if asked or not re.fullmatch(r"[A-Za-z0-9_.-]+", arguments["name"]):
        raise InputError(f"{key}: {asked[0] if asked else arguments['name']} would read something that is not in the bundle")
    own = {"tokenizer": str(folder / "tokenizer.json")} if issubclass(TOWERS[name], TextTower) else {}
    missing = check_arguments(TOWERS[name], {**arguments, **own}, f"{key}.arguments")
    if missing:
        raise InputError(f"{key}: {name} needs {', '.join(missing)}")
    return TOWERS[name](**{**arguments, **own})


def _value(key: str, value: Any, hint: Any) -> Any:
    """An argument as its class takes it: plain, or settings from a JSON object.

    Raises:
        InputError: of another type, or not one of the words that may stand there.
    """
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, dict):
            raise InputError(f"{key}={value!r} must be a JSON object")
        check_arguments(hint, value, key)
        hints = typing.get_type_hints(hint)
        return hint(**{name: _value(f"{key}.{name}", one, hints[name]) for name, one in value.items()})
    kinds = typing.get_args(hint) or (hint,)
    if typing.get_origin(hint) is Literal:
        if value not in kinds:
            raise InputError(f"{key}={value!r} must be one of {', '.join(kinds)}")
    elif type(value) not in kinds and not (float in kinds and type(value) is int):
        raise InputError(f"{key}={value!r} must be {' or '.join(kind.__name__ for kind in kinds)}")
    return value
