"""Checkpoints of dual encoders as Hugging Face's transformers and open_clip keep them: where they lie, and what is the same in CLIP's and
SigLIP's. ``clip_weights`` and ``siglip_weights`` say what differs.

D width, E width of the embedding, V vocabulary, T text positions, N image positions.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from insight.data.text import Tokenizer
from insight.errors import InputError
from insight.models.clip import DualShape, TowerShape
from insight.models.multimodal import MultiModalTransformer
from insight.models.text_transformer import TextTransformer
from insight.models.vision_transformer import VisionTransformer
from insight.nn.settings import Activation, BlockSettings
from insight.towers.vision_weights import Colours, fold_colours, resample_positions
from insight.towers.weights import HUB, explained, library, mismatch, read_weights

# config beside the weights -> names that the weights may have
TRANSFORMERS, OPEN_CLIP = "config.json", "open_clip_config.json"
WEIGHTS = {
    TRANSFORMERS: ("model.safetensors", "pytorch_model.bin"),
    OPEN_CLIP: ("open_clip_model.safetensors", "open_clip_pytorch_model.bin"),
}
PREPROCESSING = "preprocessor_config.json"  # of transformers; open_clip's config holds its own
ACTIVATIONS: dict[str, Activation] = {"quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}
NO_WEIGHTS = re.compile(r".+\.position_ids|attn_mask|input_resolution|context_length|vocab_size")  # that old files hold
UNUSED_BY_TEXT = {"hf_tokenizer_name", "tokenizer_mode", "tokenizer_kwargs", "output_tokens"}  # of open_clip: change no embedding

# their name -> ours, of what is only renamed
TEXT = {
    TRANSFORMERS: {
        "text_model.embeddings.token_embedding.weight": "text.embedding.token.weight",
        "text_model.embeddings.position_embedding.weight": "text.embedding.position",
        "text_model.final_layer_norm": "text.norm",
    },
    OPEN_CLIP: {
        "token_embedding.weight": "text.embedding.token.weight",
        "positional_embedding": "text.embedding.position",
        "ln_final": "text.norm",
    },
}
BLOCK = {
    TRANSFORMERS: re.compile(r"(text_model|vision_model)\.encoder\.layers\.(\d+)\.(.+?)[._](weight|bias)"),
    OPEN_CLIP: re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+?)[._](weight|bias)"),
}
IN_BLOCK = {
    "layer_norm1": "attention_norm",
    "self_attn.q_proj": "attention.query",
    "self_attn.k_proj": "attention.key",
    "self_attn.v_proj": "attention.value",
    "self_attn.out_proj": "attention.output",
    "layer_norm2": "mlp_norm",
    "mlp.fc1": "mlp.expand",
    "mlp.fc2": "mlp.contract",
    "ln_1": "attention_norm",
    "attn.in_proj": "attention.all",
    "attn.out_proj": "attention.output",
    "ln_2": "mlp_norm",
    "mlp.c_fc": "mlp.expand",
    "mlp.c_proj": "mlp.contract",
}


class DualSizes(NamedTuple):
    """What a checkpoint's config says."""

    image_size: int
    context_length: int
    vocab_size: int
    shape: DualShape


class DualSource(NamedTuple):
    """A checkpoint: weights by the library's names, and the colours that its pictures were normalised with, RGB over 0..1."""

    title: str
    weights: dict[str, Tensor]
    sizes: DualSizes | None  # None: a file without a config beside it
    mean: Colours
    std: Colours


# --- where they come from ---
class Place(NamedTuple):
    """A file of weights, and the config beside it, where there is one."""

    file: Path
    config: Path | None

    def settings(self) -> dict[str, Any]:
        """What the config says; empty without one."""
        return read_json(self.config) if self.config is not None else {}

    def colours(self, mean: Colours, std: Colours) -> tuple[Colours, Colours]:
        """Mean and standard deviation of the preprocessing; those given, where nothing is said."""
        if self.config is None:
            return mean, std
        if self.config.name == OPEN_CLIP:
            said = self.settings().get("preprocess_cfg", {})
            found = said.get("mean", mean), said.get("std", std)
        else:
            beside = self.config.parent / PREPROCESSING
            said = read_json(beside) if beside.is_file() else {}
            found = said.get("image_mean", mean), said.get("image_std", std)
        return tuple(found[0]), tuple(found[1])  # type: ignore[return-value]


def locate(source: str) -> Place:
    """
    Args:
        source: A folder with ``config.json`` (transformers) or ``open_clip_config.json`` and the weights, one file of weights, or
            ``hf-hub:OWNER/MODEL``.

    Raises:
        InputError: nothing there, or a hub that cannot be reached.
    """
    place = _from_hub(source) if source.startswith(HUB) else Path(source).expanduser()
    if place.is_file():
        kind = next((kind for kind, names in WEIGHTS.items() if place.name in names), None)
        kinds = [*WEIGHTS] if kind is None else [kind]
        return Place(place, next((place.parent / kind for kind in kinds if (place.parent / kind).is_file()), None))
    pairs = [Place(place / name, place / kind) for kind, names in WEIGHTS.items() for name in names]
    found = next((pair for pair in pairs if pair.file.is_file() and pair.config is not None and pair.config.is_file()), None)
    if found is None:
        raise InputError(
            f"weights={source}: no CLIP or SigLIP there; give a file, a folder with {TRANSFORMERS} and {WEIGHTS[TRANSFORMERS][0]}, one "
            f"with {OPEN_CLIP} and {WEIGHTS[OPEN_CLIP][0]}, or {HUB}OWNER/MODEL"
        )
    return found


def read_dual(source: str, sizes_of: Mapping[str, Callable[[dict[str, Any], str], DualSizes]], mean: Colours, std: Colours) -> DualSource:
    """Weights, sizes and colours of a checkpoint.

    Args:
        source: As of ``locate``.
        sizes_of: By the name of the config file, what reads the sizes in it; of a config and its title.
        mean: Of the family's preprocessing, where the checkpoint says nothing.
        std: The same.

    Raises:
        InputError: nothing there, a hub that cannot be reached, a damaged file, or a config of another kind of model.
    """
    place = locate(source)
    sizes = None
    if place.config is not None:
        values, title = place.settings(), str(place.config)
        with explained(title):
            sizes = sizes_of[place.config.name](values, title)
    return DualSource(source, read_weights(place.file), sizes, *place.colours(mean, std))


def _from_hub(source: str) -> Path:
    """The folder that holds what was downloaded, or was before."""
    hub, repository = library("huggingface_hub"), source.removeprefix(HUB)

    def fetched(name: str) -> Path | None:
        try:
            return Path(hub.hf_hub_download(repository, name))
        except hub.errors.EntryNotFoundError:
            return None

    with explained(f"weights={source}"):
        for kind, names in WEIGHTS.items():
            weights = next((path for path in map(fetched, names) if path is not None), None) if fetched(kind) is not None else None
            if weights is not None:
                fetched(PREPROCESSING)  # open_clip has none: its config holds the colours
                return weights.parent
    raise InputError(f"weights={source}: no CLIP or SigLIP there, or the hub cannot be reached: download it elsewhere and give its folder")


def read_json(path: Path) -> dict[str, Any]:
    """
    Raises:
        InputError: not a JSON object.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error})") from error
    if not isinstance(found, dict):
        raise InputError(f"{path}: no settings by name")
    return found


def tower_shape(config: Any, title: str) -> TowerShape:
    """Of one side of a config of transformers.

    Raises:
        InputError: an activation that blocks of this project lack.
    """
    if config.hidden_act not in ACTIVATIONS:
        raise InputError(f"{title}: hidden_act={config.hidden_act!r}, but one of {', '.join(ACTIVATIONS)} is read here")
    ratio = config.intermediate_size / config.hidden_size
    if int(config.hidden_size * ratio) != config.intermediate_size:  # a rounding below the whole number
        ratio = (config.intermediate_size + 0.5) / config.hidden_size
    block = BlockSettings(activation=ACTIVATIONS[config.hidden_act], norm_eps=config.layer_norm_eps, mlp_ratio=ratio)
    return TowerShape(config.hidden_size, config.num_hidden_layers, config.num_attention_heads, block)


def asked_sizes(
    source: DualSource, tokenizer: Tokenizer | None, image_size: int | None, context_length: int | None, shape: DualShape | None
) -> DualSizes:
    """Sizes of the model that is asked for; those of the checkpoint, where None is.

    Raises:
        InputError: more tokens than the checkpoint has positions, another shape than its own, or no config that says it.
    """
    own = source.sizes
    if own is None:
        raise InputError(
            f"weights={source.title}: no {TRANSFORMERS} and no {OPEN_CLIP} beside the file, so heads and activation are not known: "
            "put the config there, or build the model with them and load the file into it (load_clip)"
        )
    if shape is not None and shape != own.shape:
        raise InputError(
            f"weights={source.title}: its config says {own.shape}, but model.init_args.shape={shape}: give the checkpoint that this run "
            "began with, or leave shape out"
        )
    if context_length is not None and context_length > own.context_length:
        raise InputError(
            f"context_length={context_length}: the checkpoint has {own.context_length} positions, so "
            f"data.init_args.context_length={own.context_length} or less, and the model's with it"
        )
    vocab_size = own.vocab_size if tokenizer is None else tokenizer.size
    return DualSizes(image_size or own.image_size, context_length or own.context_length, vocab_size, own.shape)


# --- names ---
def to_own_names(given: Mapping[str, Tensor], layout: str, renamed: Mapping[str, str]) -> dict[str, Tensor]:
    """The same weights in float32 as ``MultiModalTransformer`` calls them. Names that nobody knows stay, so that they are seen.

    Args:
        layout: ``TRANSFORMERS`` or ``OPEN_CLIP``.
        renamed: What is only renamed, beside the text's own: their name or the beginning of it -> ours.
    """
    renamed, found = {**TEXT[layout], **renamed}, {}
    for name, value in given.items():
        if NO_WEIGHTS.fullmatch(name):
            continue
        name, value = name.removeprefix("text.") if layout == OPEN_CLIP else name, value.float()
        block = BLOCK[layout].fullmatch(name)
        if block is not None:
            side, index, part, kind = block.groups()
            own = f"{'image' if side in ('vision_model', 'visual.') else 'text'}.blocks.{index}.{IN_BLOCK.get(part, part)}.{kind}"
        else:
            own = _renamed(renamed, name)
        found[own] = value.reshape(()) if own in ("logit_scale", "logit_bias") else value
    return _shaped(_keys_and_values(found))


def _renamed(renamed: Mapping[str, str], name: str) -> str:
    for theirs, ours in renamed.items():
        if name == theirs or name.startswith(f"{theirs}."):
            return ours + name[len(theirs) :]
    return name


def _keys_and_values(found: dict[str, Tensor]) -> dict[str, Tensor]:
    """Keys and values in one matrix, queries in another, however the library has the three."""
    parts = dict(found)
    for name, value in found.items():
        if re.search(r"\.attention\.all\.(weight|bias)$", name):
            own = name.replace(".all.", ".query."), name.replace(".all.", ".key_value.")
            parts[own[0]], parts[own[1]] = value.split([len(value) // 3, 2 * len(value) // 3])
            del parts[name]
        elif ".attention.key." in name and name.replace(".key.", ".value.") in found:
            other = name.replace(".key.", ".value.")
            parts[name.replace(".key.", ".key_value.")] = torch.cat([value, found[other]])
            del parts[name], parts[other]
    return parts


def _shaped(found: dict[str, Tensor]) -> dict[str, Tensor]:
    """Positions (T, D) -> (1, T, D), class token (D) -> (1, 1, D), a convolution's (D, 3, p, p) in the order of ``patchify``."""
    for name in ("text.embedding.position", "image.embedding.position", "image.embedding.class_token"):
        if name in found:
            found[name] = found[name].reshape(1, -1, found[name].shape[-1])
    if "image.embedding.projection.weight" in found:
        found["image.embedding.projection.weight"] = found["image.embedding.projection.weight"].flatten(1)
    return found


# --- into a model ---
def rows_of(token_VD: Tensor, tokenizer: Tokenizer, title: str) -> Tensor:
    """The token embedding in the order of a tokenizer that renumbers the library's ids.

    Raises:
        InputError: it is not the one that the weights were trained with.
    """
    ids = tokenizer.library_ids
    if not ids or max(ids) >= len(token_VD):
        raise InputError(
            f"weights={title} have {len(token_VD)} tokens, the tokenizer's ids are "
            + (f"those of a library up to {max(ids)}" if ids else "this project's own")
            + ": give the tokenizer that they were trained with"
        )
    return token_VD[torch.tensor(ids)]


def load_parts(
    model: MultiModalTransformer, parts: dict[str, Tensor], source: DualSource, tokenizer: Tokenizer | None, unknown: tuple[str, ...]
) -> None:
    """Copy weights under our names into a model with two towers of our own. All fit, or nothing is changed.

    Colours that were normalised otherwise than in this project are folded into the projection of the patches; of the text positions those
    that the model has are taken, those of the picture are resampled.

    Args:
        unknown: What stays as the model has it where the file has none.

    Raises:
        InputError: keys or shapes differ (listed), or the tokenizer is not that of the weights.
    """
    assert isinstance(model.image, VisionTransformer) and isinstance(model.text, TextTransformer), "the families see to it"
    own, token, position = model.state_dict(), "text.embedding.token.weight", "image.embedding.position"
    if tokenizer is not None and token in parts:
        parts[token] = rows_of(parts[token], tokenizer, source.title)
    if position in parts:
        parts[position] = resample_positions(parts[position], model.image.grid_size, model.image.num_prefix)
    if "text.embedding.position" in parts:
        parts["text.embedding.position"] = parts["text.embedding.position"][:, : model.text.context_length]
    kept = {name: own[name] for name in unknown if name in own and name not in parts}
    wrong = mismatch(own, parts | kept)
    if wrong:
        raise InputError(f"weights={source.title} are those of another model: {wrong}. Give the model its sizes")
    projection = {name.removeprefix("image."): value for name, value in parts.items() if name.startswith("image.embedding.projection.")}
    fold_colours(projection, source.mean, source.std)
    model.load_state_dict(parts | kept | {f"image.{name}": value for name, value in projection.items()})
