"""Weights of GPT-2 (and its smaller and larger kin) as Hugging Face keeps them, for ``LanguageModel``.

D width, V vocabulary, P positions.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from insight.errors import InputError
from insight.models.language_model import LanguageModel
from insight.nn.settings import BlockSettings

HUB = "hf-hub:"
CONFIG, TOKENIZER = "config.json", "tokenizer.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
BLOCK = {  # of block i: ours -> theirs
    "attention_norm": "ln_1",
    "attention.output": "attn.c_proj",
    "mlp_norm": "ln_2",
    "mlp.expand": "mlp.c_fc",
    "mlp.contract": "mlp.c_proj",
}
ASKED = {  # what a config may say, and what this model computes
    "model_type": "gpt2",
    "activation_function": "gelu_new",
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
}


def load_gpt2(source: str, dropout: float = 0.0) -> LanguageModel:
    """A model with a checkpoint's weights, none of which is initialised again.

    Args:
        source: A folder with ``config.json`` and ``model.safetensors`` (or ``pytorch_model.bin``), or ``hf-hub:OWNER/MODEL``.
        dropout: Of the model in training.

    Raises:
        InputError: no such folder, a hub that cannot be reached, another kind of model, or weights whose keys or shapes differ (listed).
    """
    folder = locate(source)
    config = read_config(folder / CONFIG)
    model = LanguageModel(**model_arguments(config, dropout))
    weights = read_weights(folder)
    load_into(model, from_hugging_face(weights), str(folder))
    return model


def locate(source: str) -> Path:
    """The checkpoint's folder; a hub's is downloaded first.

    Raises:
        InputError: it is not there.
    """
    if not source.startswith(HUB):
        folder = Path(source).expanduser()
        if not folder.is_dir():
            raise InputError(f"weights={source}: no such folder; give one with {CONFIG} and {WEIGHTS[0]}, or {HUB}OWNER/MODEL")
        return folder
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ImportError as error:
        raise InputError(f"weights={source}: needs the extra `pretrained`: pip install huggingface_hub") from error
    try:
        return Path(snapshot_download(source.removeprefix(HUB), allow_patterns=[CONFIG, TOKENIZER, *WEIGHTS]))
    except (OSError, HfHubHTTPError, LocalEntryNotFoundError, HFValidationError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"weights={source}: the hub cannot be reached, or has no such model ({reason}): download it elsewhere and give its folder"
        ) from error


def read_config(path: Path) -> dict[str, Any]:
    """
    Raises:
        InputError: no such file, or a model that ``LanguageModel`` is not.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; a GPT-2 checkpoint has it beside its weights") from error
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error})") from error
    for key, value in ASKED.items():
        if config.get(key, value) != value:
            raise InputError(f"{path}: {key}={config[key]!r}, but only GPT-2 models are read here, which have {value!r}")
    return config


def model_arguments(config: dict[str, Any], dropout: float) -> dict[str, Any]:
    """With which ``LanguageModel`` is the model of the config."""
    dim = config["n_embd"]
    ratio = (config.get("n_inner") or 4 * dim) / dim
    settings = BlockSettings(activation="gelu_tanh", norm_eps=config.get("layer_norm_epsilon", 1e-5), mlp_ratio=ratio)
    return {
        "vocab_size": config["vocab_size"],
        "context_length": config["n_positions"],
        "dim": dim,
        "depth": config["n_layer"],
        "heads": config["n_head"],
        "dropout": dropout,
        "block": settings,
    }


def read_weights(folder: Path) -> dict[str, Tensor]:
    """
    Raises:
        InputError: no weights there, or a damaged file.
    """
    for name in WEIGHTS:
        path = folder / name
        if path.exists():
            try:
                return load_file(path) if name.endswith(".safetensors") else torch.load(path, map_location="cpu", weights_only=True)
            except (SafetensorError, RuntimeError, EOFError) as error:
                raise InputError(f"{path}: not a readable checkpoint ({str(error).splitlines()[0]})") from error
    raise InputError(f"{folder}: neither {' nor '.join(WEIGHTS)} there")


def from_hugging_face(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Their names and layout -> ours: their linear maps keep weights as (in, out), and make queries, keys and values at once.

    Masks that old files hold, and the copy of the tied embedding, are left out; names without a counterpart stay as they are.
    """
    ours: dict[str, Tensor] = {}
    for name, value in weights.items():
        name = name.removeprefix("transformer.")
        if re.fullmatch(r"h\.\d+\.attn\.(bias|masked_bias)", name) or name == "lm_head.weight":
            continue
        place = re.fullmatch(r"h\.(\d+)\.(.+)\.(weight|bias)", name)
        if name == "wte.weight":
            ours["embedding.token.weight"] = value
        elif name == "wpe.weight":
            ours["embedding.position"] = value[None]
        elif name.startswith("ln_f."):
            ours[f"norm.{name.removeprefix('ln_f.')}"] = value
        elif place is None:
            ours[name] = value
        else:
            index, part, kind = place.groups()
            value = value.T if kind == "weight" and value.ndim == 2 else value
            if part == "attn.c_attn":
                dim = len(value) // 3
                ours[f"blocks.{index}.attention.query.{kind}"] = value[:dim].clone()
                ours[f"blocks.{index}.attention.key_value.{kind}"] = value[dim:].clone()
            else:
                own = {theirs: ours for ours, theirs in BLOCK.items()}.get(part, part)
                ours[f"blocks.{index}.{own}.{kind}"] = value
    return ours


def load_into(model: LanguageModel, weights: dict[str, Tensor], source: str) -> None:
    """
    Raises:
        InputError: keys or shapes differ; lists them.
    """
    own = model.state_dict()
    wrong = [
        f"{name}: {tuple(weights[name].shape)} in the file, {tuple(own[name].shape)} in the model"
        for name in own
        if name in weights and weights[name].shape != own[name].shape
    ]
    parts = [("other shape", wrong), ("missing", sorted(own.keys() - weights.keys())), ("unknown", sorted(weights.keys() - own.keys()))]
    if any(names for _, names in parts):
        listed = "; ".join(f"{what}: {', '.join(names[:6])}{' ...' if len(names) > 6 else ''}" for what, names in parts if names)
        raise InputError(f"{source}: these are not the weights of the GPT-2 that its {CONFIG} describes: {listed}")
    model.load_state_dict(weights)
