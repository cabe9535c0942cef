"""SigLIP's tokenizer (https://arxiv.org/abs/2303.15343): pieces of words by a unigram model, without case and punctuation.

Its text tower reads the padding like text and stands for a caption by its last place, so that every text has the context's length.
"""

from __future__ import annotations

import importlib
import json
import string
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import normalizers, processors

from insight.errors import InputError

TOKENIZER, CONFIG = "tokenizer.json", "tokenizer_config.json"
MODELS = ("config.json", "open_clip_config.json")
HUB = "hf-hub:"
END = "</s>"
PUNCTUATION = "[" + "".join(f"\\{one}" for one in string.punctuation) + "]"


def siglip_files(place: str) -> Path | None:
    """The folder with ``tokenizer.json``, where the model of ``place`` (a folder, or ``hf-hub:OWNER/MODEL``) is a SigLIP; else None.

    Raises:
        InputError: it is one, and has no ``tokenizer.json``.
    """
    fetch = _from_hub(place.removeprefix(HUB)) if place.startswith(HUB) else lambda name: Path(place) / name
    configs = [path for path in map(fetch, MODELS) if path is not None and path.is_file()]
    if not any(_is_siglip(path) for path in configs):
        return None
    file = fetch(TOKENIZER)
    if file is None or not file.is_file():
        raise InputError(
            f"tokenizer={place}: this is a SigLIP without {TOKENIZER}, which is what is read here (its spiece.model is not): "
            "give a folder that has it, e.g. that of the same model of open_clip"
        )
    fetch(CONFIG)
    return file.parent


def _from_hub(repository: str) -> Any:
    """What downloads a file, or finds it where it was downloaded before; None where there is none."""
    try:
        hub: Any = importlib.import_module("huggingface_hub")
    except ImportError:
        return lambda name: None  # whoever reads the rest says what is missing

    def fetch(name: str) -> Path | None:
        try:
            return Path(hub.hf_hub_download(repository, name))
        except (OSError, ValueError):  # every error of the hub is one of the two; whoever reads the rest says what is missing
            return None

    return fetch


def _is_siglip(path: Path) -> bool:
    found = _settings(path)
    text = found.get("model_cfg", found).get("text_cfg", {}) if path.name == MODELS[1] else {}
    return found.get("model_type") == "siglip" or (text.get("pool_type") == "last" and text.get("no_causal_mask") is True)


def _settings(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error})") from error
    return found if isinstance(found, dict) else {}


def siglip_backend(folder: Path) -> tuple[tokenizers.Tokenizer, list[int | None]]:
    """The tokenizer that the folder holds, which cleans texts as SigLIP's training did, and its ids of padding, start, end and mask.

    Raises:
        InputError: a damaged file, or another tokenizer: SigLIP 2's, whose texts the libraries clean in different ways.
    """
    file = folder / TOKENIZER
    try:
        backend = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:
        raise InputError(f"{file}: this is no tokenizer JSON: {error}") from error
    path = folder / CONFIG
    settings = _settings(path) if path.is_file() else {}
    words = [settings.get(name, END) for name in ("eos_token", "pad_token")]
    words = [word["content"] if isinstance(word, dict) else word for word in words]
    end, pad = map(backend.token_to_id, words)
    if words[0] != END or end is None or pad is None:
        raise InputError(
            f"{file}: a text ends with {words[0]!r} and is padded with {words[1]!r}, but only SigLIP's tokenizer is read here, where it "
            f"ends with '{END}' (SigLIP 2's is not)"
        )
    cleaning = [normalizers.Lowercase(), normalizers.Replace(tokenizers.Regex(PUNCTUATION), "")]
    cleaning += [normalizers.Replace(tokenizers.Regex(r"\s+"), " "), normalizers.Strip()]
    own = [] if backend.normalizer is None else [backend.normalizer]
    backend.normalizer = normalizers.Sequence([*cleaning, *own])  # twice says the same as once
    if backend.encode("a").ids[-1:] != [end]:
        backend.post_processor = processors.TemplateProcessing(single=f"$A {END}", special_tokens=[(END, end)])
    return backend, [pad, None, end, None]
