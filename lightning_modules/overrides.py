"""Hydra's complaints about the words of a command line, said in one line that names the nearest right word."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, OverrideParseException
from omegaconf import OmegaConf

from insight.errors import InputError
from insight.stages import nearest
from lightning_modules.keys import TOP, check_keys, place_key
from lightning_modules.settings import ADDED

CONFIGS = str(Path(__file__).resolve().parent.parent / "configs")

LAUNCHERS = {
    "joblib": "extra `sweeps`: pip install hydra-joblib-launcher",
    "submitit_slurm": "extra `slurm`: pip install hydra-submitit-launcher",
    "submitit_local": "extra `slurm`: pip install hydra-submitit-launcher",
}


def compose_plain(config_dir: str, overrides: list[str]) -> dict[str, Any]:
    """The resolved composition of configs/train.yaml as plain data."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(version_base="1.3", config_dir=config_dir):
        config = compose("train", overrides=overrides)
    plain: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    return plain


def explain(error: Exception, config_dir: str, words: list[str]) -> Exception:
    """What to show instead of Hydra's error; the error itself where there is nothing to add."""
    text = str(error)
    if isinstance(error, OverrideParseException):
        return InputError(f"'{error.override}': not understood; a word is key=value, group=option, +key=value to add or ~key to delete")
    wrong_key = re.match(r"Could not (override|delete from config\.) '([^']+)'", text)
    if wrong_key and not wrong_key[2].startswith("hydra"):
        deleted, key = wrong_key[1] != "override", wrong_key[2]
        others = [word for word in words if not word.startswith("-") and _key(word) != key]
        try:
            return _explain_key(key, config_dir, others, deleted)
        except HydraException:
            return error  # another word is wrong too, in another way
    wrong_option = re.search(r"Could not find '([\w/]+)/([^'/]+)'.*Available options in '[^']+':\n((?:\t.*\n)+)", text, re.DOTALL)
    if wrong_option:
        group, option, listed = wrong_option.groups()
        if group == "hydra/launcher" and option in LAUNCHERS:
            return InputError(f"{group}={option}: needs the {LAUNCHERS[option]}")
        return InputError(f"{group}={option}: no such option{nearest(option, listed.split())}")
    return error


def _key(word: str) -> str:
    return word.lstrip("+~").partition("=")[0]


def _explain_key(key: str, config_dir: str, others: list[str], deleted: bool) -> InputError:
    *parents, leaf = key.split(".")
    config = compose_plain(config_dir, others)
    if key in ADDED:
        return InputError(f"{key}: is added with a plus: +{key}=...")
    first = key.split(".")[0]
    if first not in config and first not in TOP:
        return InputError(f"{key}: no such key or group{nearest(first, {*config, *TOP, *ADDED, 'env'})}")
    if not deleted and first in TOP:
        asked = {name: config[name] for name in TOP if name in config}
        place_key(asked, key, None)
        try:
            check_keys(asked)
        except InputError as found:
            return found
        return InputError(f"{key}: is not in the config yet; add it with a plus: +{key}=...")
    inner: Any = config
    for name in parents:
        inner = inner.get(name) if isinstance(inner, dict) else None
    return InputError(f"{key}: no such key{nearest(leaf, map(str, inner)) if isinstance(inner, dict) else ''}")
