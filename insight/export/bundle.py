"""A model on its own in a folder: weights, tokenizer, preprocessing, and what it was made from. Reading one executes nothing that is in it.

B pictures, C captions, P pairs, E width of the embedding.

    manifest.json         format, version, and size and SHA-256 of every other file; nothing that it doesn't list is read
    model.json            name of the architecture (a key of ``ARCHITECTURES``) and its arguments
    weights.safetensors
    tokenizer.json
    preprocessing.json    what ``insight.data.images`` did to a picture
    config.json           the whole config of the run
    data.json             fingerprint, sizes and description of the data
    signature.json        shapes and types of what goes in and comes out
    example.png, example.safetensors    a drawn picture, and what the model says of it and of the signature's text
    card/                 the model card and its pictures, where there is one
"""

from __future__ import annotations

import dataclasses
import inspect
import io
import json
import os
import re
import shutil
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor

from insight.data.images import MEAN, PREPROCESSING_VERSION, STD, UNDECODABLE, WORKING_MARGIN, ImageTransform
from insight.data.pretrained_text import read_tokenizer
from insight.data.text import Tokenizer
from insight.errors import InputError
from insight.export.manifest import read_files, write_manifest
from insight.models.clip import ClipTransformer
from insight.models.cross_attention import CrossAttentionMultiModalTransformer
from insight.models.multimodal import MultiModalTransformer
from insight.models.siglip import SiglipTransformer
from insight.models.tower import ImageTower, TextTower
from insight.stages import check_arguments, nearest
from insight.towers.timm import TimmImage
from insight.towers.torchvision import TorchvisionImage
from insight.towers.transformers import TransformersImage, TransformersText

NEEDED = (
    *("model.json", "weights.safetensors", "tokenizer.json", "preprocessing.json", "config.json", "data.json", "signature.json"),
    *("example.png", "example.safetensors"),
)
# A new architecture gets its line here: a bundle names its class, and only these are ever built.
ARCHITECTURES: dict[str, type[MultiModalTransformer]] = {
    one.__name__: one for one in (MultiModalTransformer, CrossAttentionMultiModalTransformer, ClipTransformer, SiglipTransformer)
}
# Encoders of other libraries, likewise; their names and arguments go to the library, which brings its own code.
TOWERS: dict[str, type[ImageTower] | type[TextTower]] = {
    one.__name__: one for one in (TimmImage, TorchvisionImage, TransformersImage, TransformersText)
}
LOADING = ("weights", "checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")  # arguments by which files are read
LARGEST_ERROR = 1e-4  # of numbers of about 1, between the device of the training and the CPU
Picture = str | Path | Image.Image


@dataclasses.dataclass(frozen=True)
class Bundle:
    """A model that is ready: it encodes pictures and captions and says how well they fit. Inputs go to the device that the model is on.

    Args:
        model: In evaluation mode, nothing trains.
        tokenizer: The one it was trained with.
        transform: From a picture to what the model reads.
        config: The whole config of the run.
        data: ``fingerprint``, ``splits`` (sizes) and ``description`` of the data that it saw.
        signature: Shapes and types of inputs and outputs, and the example's text.
        example: What the model said of the example where the bundle was written, by the names of the signature's outputs.
        picture: The example's picture.
        folder: Where it was read from.
        sha256: Of the manifest, and so of the whole bundle.
    """

    model: MultiModalTransformer
    tokenizer: Tokenizer
    transform: ImageTransform
    config: Mapping[str, Any]
    data: Mapping[str, Any]
    signature: Mapping[str, Any]
    example: Mapping[str, Tensor]
    picture: Image.Image
    folder: Path
    sha256: str

    @property
    def device(self) -> torch.device:
        return self.model.logit_scale.device

    @property
    def matches(self) -> bool:
        """Whether the model has a head that looks at a picture and a caption together."""
        return isinstance(self.model, CrossAttentionMultiModalTransformer)

    def pixels(self, pictures: Sequence[Picture]) -> Tensor:
        """Files or opened pictures -> (B, 3, H, W) as the model reads them."""
        if not pictures:
            raise InputError("no picture was given: give at least one")
        ready = [self.transform.prepare(one) if isinstance(one, Image.Image) else self.transform.open(one) for one in pictures]
        return torch.stack(ready).to(self.device)

    def tokens(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Captions -> tokens (C, T), mask (C, T)."""
        if isinstance(texts, str) or not texts:
            raise InputError("give a list of captions, at least one")
        tokens, mask = self.tokenizer.encode(texts, self.model.text.context_length)
        return tokens.to(self.device), mask.to(self.device)

    @torch.no_grad()
    def encode_images(self, pictures: Sequence[Picture], batch_size: int = 64) -> Tensor:
        """Embeddings (B, E) of length 1."""
        parts = [pictures[start : start + batch_size] for start in range(0, max(len(pictures), 1), batch_size)]
        return torch.cat([self.model.encode_image(self.pixels(part)).embedding for part in parts])

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        """Embeddings (C, E) of length 1."""
        tokens, mask = self.tokens(texts)
        parts = zip(tokens.split(batch_size), mask.split(batch_size), strict=True)
        return torch.cat([self.model.encode_text(*part).embedding for part in parts])

    def similarity(self, pictures: Sequence[Picture], texts: Sequence[str]) -> Tensor:
        """Cosine of every picture with every caption: (B, C)."""
        return self.encode_images(pictures) @ self.encode_texts(texts).T

    @torch.no_grad()
    def match(self, pictures: Sequence[Picture], texts: Sequence[str]) -> Tensor:
        """Probability that each picture belongs to the caption beside it, by the matching head: (P,).

        Raises:
            InputError: the model has no such head, or the lists differ in length.
        """
        if not isinstance(self.model, CrossAttentionMultiModalTransformer):
            raise InputError(f"{type(self.model).__name__} has no matching head: use similarity(pictures, texts)")
        if len(pictures) != len(texts):
            raise InputError(f"{len(pictures)} pictures and {len(texts)} captions: match scores pairs, so give as many of each")
        tokens, mask = self.tokens(texts)
        text, image = self.model.encode_text(tokens, mask).tokens, self.model.encode_image(self.pixels(pictures)).tokens
        return self.model.match(text, mask, image).softmax(dim=-1)[:, 1]

    def describe(self, picture: Picture, text: str) -> dict[str, Tensor]:
        """All that the model says of one picture and one caption, by the names of the signature's outputs."""
        outputs = {"image_embedding": self.encode_images([picture]), "text_embedding": self.encode_texts([text])}
        outputs["similarity"] = outputs["image_embedding"] @ outputs["text_embedding"].T
        return outputs | ({"match": self.match([picture], [text])} if self.matches else {})

    def example_error(self) -> float:
        """Largest difference between what the model says of the example here, and what it said where the bundle was written."""
        here = self.describe(self.picture, self.signature["text"])
        return max(float((value.cpu() - self.example[name]).abs().max()) for name, value in here.items())


# --- writing ---
def plain_arguments(architecture: type[MultiModalTransformer], given: Mapping[str, Any]) -> dict[str, Any]:
    """Those of ``given`` (a config's ``model.init_args``) that the architecture takes."""
    return {name: value for name, value in given.items() if name in inspect.signature(architecture).parameters}


def save(
    folder: str | Path,
    model: MultiModalTransformer,
    arguments: Mapping[str, Any],
    tokenizer: Tokenizer,
    config: Mapping[str, Any],
    data: Mapping[str, Any],
    text: str,
    card: str | Path | None = None,
) -> Bundle:
    """Write the bundle, read it back, and make sure that the copy says what ``model`` says. The same input makes the same bytes.

    A bundle that is already at ``folder`` is replaced once the new one is whole.

    Args:
        folder: Where to.
        model: With the weights to be kept.
        arguments: With which its class was built.
        tokenizer: The one it was trained with.
        config: Plain data.
        data: ``fingerprint``, ``splits`` (sizes) and ``description``.
        text: A caption, for the example.
        card: Folder of a model card.

    Raises:
        InputError: the class is not in ``ARCHITECTURES``, or the arguments are not those that this model was built with.
    """
    folder = Path(folder)
    name = type(model).__name__
    if ARCHITECTURES.get(name) is not type(model):
        raise InputError(f"{name} cannot be bundled: it is not in ARCHITECTURES of insight/export/bundle.py ({', '.join(ARCHITECTURES)})")
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        transform = ImageTransform(model.image.image_size)
        weights = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
        towers = {side: described_tower(getattr(model, side)) for side in ("image", "text") if arguments.get(side) is not None}
        _write_json(temporary / "model.json", {"architecture": name, "arguments": {**arguments, **towers}})
        safetensors.torch.save_file(weights, temporary / "weights.safetensors")
        tokenizer.save(temporary / "tokenizer.json")
        _write_json(temporary / "preprocessing.json", _preprocessing(transform.image_size))
        _write_json(temporary / "config.json", config)
        _write_json(temporary / "data.json", data)
        picture = _example_picture()
        picture.save(temporary / "example.png")
        before = [(module, module.training) for module in model.modules()]
        original = Bundle(model.eval(), tokenizer, transform, config, data, {}, {}, picture, temporary, "")
        outputs = {key: value.cpu() for key, value in original.describe(picture, text).items()}
        for module, training in before:
            module.training = training
        safetensors.torch.save_file(outputs, temporary / "example.safetensors")
        _write_json(temporary / "signature.json", _signature(original, outputs, text))
        if card is not None:
            shutil.copytree(card, temporary / "card")
        write_manifest(temporary)
        if load(temporary).example_error() > LARGEST_ERROR:
            raise InputError(f"model.init_args={dict(arguments)}: a {name} built with these does not say what this model says")
        _replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return load(folder)


def described_tower(tower: ImageTower | TextTower) -> dict[str, Any]:
    """How a bundle names an encoder of another library.

    Raises:
        InputError: it is not in ``TOWERS``.
    """
    name = type(tower).__name__
    if TOWERS.get(name) is not type(tower):
        raise InputError(f"{name} cannot be bundled: it is not in TOWERS of insight/export/bundle.py ({', '.join(TOWERS)})")
    return {"tower": name, "arguments": tower.rebuilding()}


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
    size, length = bundle.transform.image_size, bundle.model.text.context_length
    first = {"image_embedding": ["B"], "text_embedding": ["C"], "similarity": ["B", "C"], "match": ["P"]}
    shapes = {name: first[name] + list(value.shape[len(first[name]) :]) for name, value in outputs.items()}
    return {
        "letters": {"B": "pictures", "C": "captions", "P": "pairs"},
        "inputs": {
            "image": {"dtype": "float32", "shape": ["B", 3, size, size]},
            "tokens": {"dtype": "int64", "shape": ["C", length]},
            "token_mask": {"dtype": "bool", "shape": ["C", length]},
        },
        "outputs": {name: {"dtype": str(outputs[name].dtype).removeprefix("torch."), "shape": shape} for name, shape in shapes.items()},
        "text": text,
    }


# --- reading ---
def load(folder: str | Path, sha256: str | None = None) -> Bundle:
    """The bundle in ``folder``, on the CPU. Needs PyTorch, no training framework; no code of the bundle is run.

    Args:
        folder: What ``save`` wrote.
        sha256: What the manifest must have, where somebody who can be trusted (the registry) says so.

    Raises:
        InputError: no bundle, one of another version, a file of it changed, cut off or missing, or a model that this code does not know.
    """
    folder = Path(folder)
    files, digest = read_files(folder, NEEDED, sha256)
    described, settings, config, data, signature = (
        _object(folder, f"{name}.json", files) for name in ("model", "preprocessing", "config", "data", "signature")
    )
    try:
        tokenizer = read_tokenizer(files["tokenizer.json"].decode())
        weights = safetensors.torch.load(files["weights.safetensors"])
        example = safetensors.torch.load(files["example.safetensors"])
        picture = Image.open(io.BytesIO(files["example.png"]), formats=["PNG"]).convert("RGB")
    except (*UNDECODABLE, Image.DecompressionBombError, SafetensorError) as error:
        raise InputError(f"{folder}: a file cannot be read ({error})") from error
    model = _build(folder, described, weights)
    image_size = model.image.image_size
    if settings != _preprocessing(image_size):
        raise InputError(f"{folder}/preprocessing.json: made for {settings}, this code does {_preprocessing(image_size)}: use its release")
    try:
        model.check_tokenizer(tokenizer)
    except InputError as error:
        raise InputError(f"{folder}: tokenizer.json is not the model's: {error}") from error
    bundle = Bundle(model, tokenizer, ImageTransform(image_size), config, data, signature, example, picture, folder, digest)
    said = {"image_embedding", "text_embedding", "similarity", *(["match"] if bundle.matches else [])}
    if not isinstance(signature.get("text"), str) or example.keys() != said:
        raise InputError(
            f"{folder}: signature.json or example.safetensors is not of this model: it says {', '.join(sorted(said))} of a text"
        )
    return bundle


def _object(folder: Path, name: str, files: Mapping[str, bytes]) -> dict[str, Any]:
    try:
        value = json.loads(files[name])
    except ValueError as error:
        raise InputError(f"{folder}/{name}: not JSON ({error})") from error
    if not isinstance(value, dict):
        raise InputError(f"{folder}/{name}: must be a JSON object")
    return value


def _build(folder: Path, described: Mapping[str, Any], weights: dict[str, Tensor]) -> MultiModalTransformer:
    """The named architecture with these weights. It is laid out without memory first: a lie about its size costs nothing."""
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
        raise InputError(f"{folder}: weights of another model: {wrong[0]} is {given.get(wrong[0])}, {name} has {own.get(wrong[0])}")
    for child in model.children():
        if not isinstance(child, (ImageTower, TextTower)):  # those are built whole: their libraries compute buffers that no file holds
            child.to_empty(device="cpu")
    for key, parameter in model.named_parameters(recurse=False):
        setattr(model, key, torch.nn.Parameter(torch.empty_like(parameter, device="cpu")))
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
