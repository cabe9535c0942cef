"""A model on its own in a folder: weights, tokenizer, preprocessing, and what it was made from. Reading one executes nothing that is in it.

    manifest.json         format, version, and size and SHA-256 of every other file; nothing that it doesn't list is read
    model.json            name of the architecture (a key of ``building.ARCHITECTURES``) and its arguments
    weights.safetensors
    config.json           the whole config of the run
    data.json             fingerprint, sizes and description of the data
    signature.json        shapes and types of what goes in and comes out, and the example's text
    example.safetensors   what the model says of an example
    card/                 the model card and its pictures, where there is one

What a kind of model (``kinds.KINDS``) has beside these:

    tokenizer.json        one that reads texts
    preprocessing.json    one that sees pictures: what ``insight.data.images`` did to them
    example.png           the same: a drawn picture, the example's
    labels.json           one whose head chooses from a list: its classes or answers
"""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor, nn

from insight.data.images import MEAN, PREPROCESSING_VERSION, STD, UNDECODABLE, WORKING_MARGIN, ImageTransform
from insight.data.text import StoredTokenizer
from insight.errors import InputError
from insight.export.building import build, described
from insight.export.kinds import KINDS, LABELS, PICTURE, PREPROCESSING, TOKENIZER, Bundle
from insight.export.manifest import read_files, require, write_manifest

NEEDED = ("model.json", "weights.safetensors", "config.json", "data.json", "signature.json", "example.safetensors")
LARGEST_ERROR = 1e-4  # of numbers of about 1, between the device of the training and the CPU


class Parts(NamedTuple):
    """What a model is used with, and how it was built."""

    arguments: Mapping[str, Any]  # with which its class was built
    tokenizer: StoredTokenizer | None = None  # the one it was trained with; None: it reads no text
    text: str = ""  # for the example, of a model that reads one
    labels: tuple[str, ...] = ()  # what its head chooses from, in the head's order


# --- writing ---
def save(
    folder: str | Path,
    model: nn.Module,
    parts: Parts,
    config: Mapping[str, Any],
    data: Mapping[str, Any],
    card: str | Path | None = None,
) -> Bundle:
    """Write the bundle, read it back, and make sure that the copy says what ``model`` says. The same input makes the same bytes.

    A bundle that is already at ``folder`` is replaced once the new one is whole.

    Args:
        folder: Where to.
        model: With the weights to be kept.
        parts: What it is used with.
        config: Plain data.
        data: ``fingerprint``, ``splits`` (sizes) and ``description``.
        card: Folder of a model card.

    Raises:
        InputError: the class is not in ``ARCHITECTURES``, or the parts are not those that this model was built and trained with.
    """
    folder = Path(folder)
    model_json = described(model, parts.arguments)
    kind = KINDS[type(model)]
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        weights = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
        _write_json(temporary / "model.json", model_json)
        safetensors.torch.save_file(weights, temporary / "weights.safetensors")
        _write_json(temporary / "config.json", config)
        _write_json(temporary / "data.json", data)
        transform, picture = None, None
        if TOKENIZER in kind.files:
            assert parts.tokenizer is not None, f"a {type(model).__name__} reads texts"
            parts.tokenizer.save(temporary / TOKENIZER)
        if PREPROCESSING in kind.files:
            transform, picture = ImageTransform(_image_size(model)), _example_picture()
            _write_json(temporary / PREPROCESSING, _preprocessing(transform.image_size))
            picture.save(temporary / PICTURE)
        if kind.num_labels(model):
            _write_json(temporary / LABELS, list(parts.labels))
        modes = [(module, module.training) for module in model.modules()]
        original = kind(model.eval(), parts.tokenizer, transform, parts.labels, config, data, {}, {}, picture, temporary, "")
        outputs = {key: value.cpu().contiguous() for key, value in original.describe(picture, parts.text).items()}
        for module, training in modes:
            module.training = training
        safetensors.torch.save_file(outputs, temporary / "example.safetensors")
        _write_json(temporary / "signature.json", _signature(original, outputs, parts.text))
        if card is not None:
            shutil.copytree(card, temporary / "card")
        write_manifest(temporary)
        if load(temporary).example_error() > LARGEST_ERROR:
            raise InputError(
                f"model.init_args={dict(parts.arguments)}: a {type(model).__name__} built with these does not say what this model says"
            )
        _replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return load(folder)


def _image_size(model: nn.Module) -> int:
    tower: Any = model.image
    return tower.image_size


def _replace(new: Path, folder: Path) -> None:
    old = new.with_suffix(".old")
    if folder.exists():
        os.replace(folder, old)
    os.replace(new, folder)
    shutil.rmtree(old, ignore_errors=True)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _preprocessing(image_size: int) -> dict[str, Any]:
    return {
        "version": PREPROCESSING_VERSION,
        "image_size": image_size,
        "working_margin": WORKING_MARGIN,
        "mean": list(MEAN),
        "std": list(STD),
    }


def _example_picture(side: int = 96) -> Image.Image:
    """A smooth pattern, drawn: a picture of the data may not be given away."""
    row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    pixels = torch.stack([row * 255 // side, column * 255 // side, (row + column) * 255 // (2 * side)], dim=-1)
    return Image.fromarray(pixels.to(torch.uint8).numpy())


def _signature(bundle: Bundle, outputs: Mapping[str, Tensor], text: str) -> dict[str, Any]:
    letters, inputs, first = bundle.shapes()
    shapes = {name: first[name] + list(value.shape[len(first[name]) :]) for name, value in outputs.items()}
    return {
        "letters": letters,
        "inputs": inputs,
        "outputs": {name: {"dtype": str(outputs[name].dtype).removeprefix("torch."), "shape": shape} for name, shape in shapes.items()},
        "text": text,
    }


# --- reading ---
def load(folder: str | Path, sha256: str | None = None) -> Bundle:
    """The bundle in ``folder``, on the CPU: an ``ImageTextBundle``, ``ClassifierBundle`` or ``LanguageBundle`` (``kinds.py``).

    Needs PyTorch, no training framework; no code of the bundle is run.

    Args:
        folder: What ``save`` wrote.
        sha256: What the manifest must have, where somebody who can be trusted (the registry) says so.

    Raises:
        InputError: no bundle, one of another version, a file of it changed, cut off or missing, or a model that this code does not know.
    """
    folder = Path(folder)
    files, digest = read_files(folder, NEEDED, sha256)
    model_json, config, data, signature = (_object(folder, f"{name}.json", files) for name in ("model", "config", "data", "signature"))
    try:
        weights, example = (safetensors.torch.load(files[f"{name}.safetensors"]) for name in ("weights", "example"))
    except SafetensorError as error:
        raise InputError(f"{folder}: a file cannot be read ({error})") from error
    model = build(folder, model_json, weights)
    kind = KINDS[type(model)]
    require(folder, files, kind.files)
    tokenizer, transform, picture = None, None, None
    if TOKENIZER in kind.files:
        try:
            tokenizer = kind.read_tokenizer(files[TOKENIZER].decode())
        except ValueError as error:  # InputError and UnicodeDecodeError are such
            raise InputError(f"{folder}/{TOKENIZER}: cannot be read ({error}); fetch the bundle again") from error
    if PREPROCESSING in kind.files:
        transform, settings = ImageTransform(_image_size(model)), _object(folder, PREPROCESSING, files)
        if settings != _preprocessing(transform.image_size):
            known = _preprocessing(transform.image_size)
            raise InputError(f"{folder}/{PREPROCESSING}: made for {settings}, this code does {known}: use its release")
        try:
            picture = Image.open(io.BytesIO(files[PICTURE]), formats=["PNG"]).convert("RGB")
        except (*UNDECODABLE, Image.DecompressionBombError) as error:
            raise InputError(f"{folder}/{PICTURE}: a file cannot be read ({error}); fetch the bundle again") from error
    labels = _labels(folder, files, kind.num_labels(model))
    bundle = kind(model, tokenizer, transform, labels, config, data, signature, example, picture, folder, digest)
    try:
        bundle.check_tokenizer()
    except InputError as error:
        raise InputError(f"{folder}: {TOKENIZER} is not the model's: {error}") from error
    said = bundle.shapes()[2]
    if not isinstance(signature.get("text"), str) or example.keys() != said.keys():
        raise InputError(
            f"{folder}: signature.json or example.safetensors is not of this model, which says {', '.join(sorted(said))}: "
            "make the bundle again from its run"
        )
    return bundle


def _labels(folder: Path, files: Mapping[str, bytes], count: int) -> tuple[str, ...]:
    """
    Raises:
        InputError: another number than the head's.
    """
    if not count:
        return ()
    require(folder, files, (LABELS,))
    labels = _json(folder, LABELS, files)
    if not isinstance(labels, list) or len(labels) != count or not all(isinstance(one, str) for one in labels):
        raise InputError(f"{folder}/{LABELS}: must list {count} words, one for each output of the model's head: fetch the bundle again")
    return tuple(labels)


def _json(folder: Path, name: str, files: Mapping[str, bytes]) -> Any:
    try:
        return json.loads(files[name])
    except ValueError as error:
        raise InputError(f"{folder}/{name}: not JSON ({error})") from error


def _object(folder: Path, name: str, files: Mapping[str, bytes]) -> dict[str, Any]:
    value = _json(folder, name, files)
    if not isinstance(value, dict):
        raise InputError(f"{folder}/{name}: must be a JSON object")
    return value
