"""Weights from a local file, strictly; and other libraries' errors in one line."""

from __future__ import annotations

import importlib
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from insight.errors import InputError

HUB = "hf-hub:"
WRAPPERS = ("state_dict", "model")  # what checkpoints of training scripts keep the weights under
SHOWN = 4


def library(name: str) -> ModuleType:
    """An optional library.

    Raises:
        InputError: it is not installed; names the extra.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(f"{name} is not installed ({error}): pip install 'multimodal-insight-engine[pretrained]'") from error


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Errors of a library while it builds or downloads ``what`` -> InputError.

    A hub that can't be reached is told apart: the remedy is a local file.
    """
    try:
        yield
    except InputError:
        raise
    except OSError as error:  # every error of the hub and of a missing file is one
        raise InputError(
            f"{what}: not found, and the hub cannot be reached ({first_line(error)}). Give a local file or folder, or go online once"
        ) from error
    except (RuntimeError, ValueError, TypeError, KeyError, AttributeError, AssertionError) as error:
        raise InputError(f"{what}: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """A state dict from ``.safetensors``, or from anything that ``torch.load`` reads without running code.

    Raises:
        InputError: no such file, not readable, or no state dict in it.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise InputError(f"weights={path}: there is no such file; give the path of a .safetensors, .pth or .bin file")
    try:
        found: Any = (
            safetensors.torch.load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True, mmap=False)
        )
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, SafetensorError) as error:
        raise InputError(f"weights={path}: not a readable file of weights ({first_line(error)})") from error
    for name in WRAPPERS:
        if isinstance(found, dict) and isinstance(found.get(name), dict):
            found = found[name]
    if not isinstance(found, dict) or not found or not all(isinstance(value, Tensor) for value in found.values()):
        raise InputError(f"weights={path}: holds no weights by name; save model.state_dict()")
    return {name.removeprefix("module."): value for name, value in found.items()}


def mismatch(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str:
    """What does not fit, with the keys; empty where all does."""
    wrong = [
        f"{name}: {tuple(given[name].shape)} in the file, {tuple(own[name].shape)} in the model"
        for name in own
        if name in given and given[name].shape != own[name].shape
    ]
    parts = {
        "other shape": wrong,
        "missing in the file": sorted(own.keys() - given.keys()),
        "unknown to the model": sorted(given.keys() - own.keys()),
    }
    return "; ".join(f"{what}: {listed(names)}" for what, names in parts.items() if names)


def listed(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def load_strictly(network: nn.Module, path: str | Path, title: str) -> None:
    """All weights of the file into the network, and nothing else.

    Raises:
        InputError: they are another network's; lists the keys.
    """
    given = read_weights(path)
    wrong = mismatch(network.state_dict(), given)
    if wrong:
        raise InputError(f"weights={path} are not those of {title}: {wrong}. Give that network's file, or the name that the file is of")
    network.load_state_dict(given)
