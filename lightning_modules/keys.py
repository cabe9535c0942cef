"""The keys that a config may have, read off the signatures and data classes that its values go to; a typo names the nearest."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import lightning as L
import yaml

from insight.errors import InputError
from insight.stages import Stage, load, nearest
from lightning_modules.settings import Deployment, RunSettings, Tracking

CLASS_KEYS = ("class_path", "init_args")
SECTIONS: dict[str, Any] = {"stages": dict[str, Stage], "tracking": Tracking, "deployment": Deployment, "run": RunSettings}
CLASSES = ("model", "data")  # and each of the callbacks
TOP = ("seed_everything", "trainer", *CLASSES, *SECTIONS, "callbacks", "run_dir")
HYDRA_ONLY = ("reproduce", "paths")  # read at Hydra's door, or by other keys of the composition; no part of a run's own config
GROUPS_ONLY = ("env", "resume", "experiment", "sweep", *HYDRA_ONLY)  # words of Hydra's door alone; here for a typo in them
COMMAND_WORDS = ("config", "help", "print_config")


def check_keys(config: Mapping[str, Any], top: Iterable[str] = TOP) -> None:
    """Every key of the config is one that something reads.

    Raises:
        InputError: the full key, and the nearest that exists.
    """
    _check_names(config, top, "", [*top, *GROUPS_ONLY])
    for name, kind in SECTIONS.items():
        check_fields(config.get(name), kind, name)
    if isinstance(config.get("trainer"), Mapping):
        _check_names(config["trainer"], _parameters(L.Trainer), "trainer")
    for name in CLASSES:
        _check_class(config.get(name), name)
    if isinstance(config.get("callbacks"), Mapping):
        for name, value in config["callbacks"].items():
            if isinstance(value, Mapping) and "class_path" not in value:
                raise _lacking(name, ["class_path"], config["callbacks"], "callbacks")
            _check_class(value, f"callbacks.{name}")


def check_words(words: list[str]) -> None:
    """The same for ``--key=value`` words of the command line, over the configs that they name.

    Raises:
        InputError: as ``check_keys``, or a config file that is not there or no mapping.
    """
    config: dict[str, Any] = {}
    keys = {}
    for position, word in enumerate(words):
        if not word.startswith("--"):
            continue
        key, equals, value = word[2:].partition("=")
        value = value if equals else (words[position + 1] if position + 1 < len(words) else "")
        if key == "config":
            config = {**config, **read_config(value)}
        elif not key.endswith(("+", ".help")):  # jsonargparse's own: append to a list, help on a class
            keys[key] = value
    for key, value in keys.items():
        place_key(config, key, value)
    check_keys(config, (*TOP, *COMMAND_WORDS))


def read_config(path: str) -> dict[str, Any]:
    """A saved config.

    Raises:
        InputError: no such file, or not a mapping.
    """
    if not Path(path).is_file():
        raise InputError(f"--config {path}: there is no such file; give the config.yaml of a run, e.g. outputs/latest/config.yaml")
    try:
        config = yaml.safe_load(Path(path).read_text())
    except yaml.YAMLError as error:
        raise InputError(f"--config {path}: not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(config, dict):
        raise InputError(f"--config {path}: holds no mapping of keys; give the config.yaml of a run")
    return config


def place_key(config: dict[str, Any], key: str, value: Any) -> None:
    """Set ``a.b.c`` in nested mappings, in place; the mappings on the way are copied, others stay as they are."""
    *parents, leaf = key.split(".")
    for name in parents:
        inner = config.get(name)
        config[name] = copy.copy(inner) if isinstance(inner, dict) else {}
        config = config[name]
    config[leaf] = value


def _check_names(value: Mapping[str, Any], known: Iterable[str], key: str, nearby: Iterable[str] | None = None) -> None:
    known = set(known)
    for name in value:
        if name not in known:
            where = f"{key}.{name}: no such key" if key else f"{name}: no such key at the top of the config"
            raise InputError(f"{where}{nearest(str(name), nearby or known)}")


def check_fields(value: Any, kind: Any, key: str) -> None:
    """The keys of a data class, and down through mappings and data classes in it; what is neither is the parser's to check.

    Raises:
        InputError: as ``check_keys``.
    """
    if not isinstance(value, Mapping):
        return
    if typing.get_origin(kind) is dict:
        inner_kind = typing.get_args(kind)[1]
        for name, inner in value.items():
            _check_complete(name, value, inner_kind, key)
            check_fields(inner, inner_kind, f"{key}.{name}")
    elif dataclasses.is_dataclass(kind):
        _check_names(value, [field.name for field in dataclasses.fields(kind)], key)
        hints = typing.get_type_hints(kind)
        for name, inner in value.items():
            check_fields(inner, hints[name], f"{key}.{name}")


def _check_complete(name: str, named: Mapping[str, Any], kind: Any, key: str) -> None:
    """A value of a named mapping has all that its data class needs; one that lacks it is most likely a misspelt name."""
    if not (dataclasses.is_dataclass(kind) and isinstance(named[name], Mapping)):
        return
    missing = [
        field.name
        for field in dataclasses.fields(kind)
        if field.default is field.default_factory is dataclasses.MISSING and field.name not in named[name]
    ]
    if missing:
        raise _lacking(name, missing, named, key)


def _lacking(name: str, missing: list[str], named: Mapping[str, Any], key: str) -> InputError:
    others = [other for other in named if other != name]
    return InputError(f"{key}.{name}: lacks {', '.join(missing)}{nearest(name, others) if others else ''}")


def _check_class(value: Any, key: str) -> None:
    if not isinstance(value, Mapping):
        return
    _check_names(value, CLASS_KEYS, key)
    if "class_path" in value and isinstance(value.get("init_args"), Mapping):
        _check_names(value["init_args"], _parameters(load(str(value["class_path"]), f"{key}.class_path")), f"{key}.init_args")


def _parameters(kind: Any) -> list[str]:
    return [name for name in inspect.signature(kind).parameters if name != "self"]
