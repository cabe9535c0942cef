"""Weights of CLIP (https://arxiv.org/abs/2103.00020) as Hugging Face's transformers and open_clip keep them, for ``MultiModalTransformer``.

D width, E width of the embedding, V vocabulary, T text positions, N image positions.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from insight.data.text import Tokenizer
from insight.errors import InputError
from insight.models.multimodal import MultiModalTransformer
from insight.models.text_transformer import TextTransformer
from insight.models.vision_transformer import VisionTransformer
from insight.nn.settings import Activation, BlockSettings
from insight.towers.vision_weights import Colours, fold_colours, resample_positions
from insight.towers.weights import HUB, explained, library, listed, mismatch, read_weights

# config beside the weights -> names that the weights may have
TRANSFORMERS, OPEN_CLIP = "config.json", "open_clip_config.json"
WEIGHTS = {
    TRANSFORMERS: ("model.safetensors", "pytorch_model.bin"),
    OPEN_CLIP: ("open_clip_model.safetensors", "open_clip_pytorch_model.bin"),
}
PREPROCESSING = "preprocessor_config.json"  # of transformers; open_clip's config holds its own
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # of OpenAI's release, and both libraries' default
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
ACTIVATIONS: dict[str, Activation] = {"quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}
UNKNOWN_TO_CLIP = ("word_head.weight", "word_head.bias", "logit_bias")  # stay as the model has them where the file has none
NO_WEIGHTS = re.compile(r".+\.position_ids|attn_mask|input_resolution|context_length|vocab_size")  # that old files hold

# their name -> ours, of what is only renamed
RENAMED = {
    TRANSFORMERS: {
        "text_model.embeddings.token_embedding.weight": "text.embedding.token.weight",
        "text_model.embeddings.position_embedding.weight": "text.embedding.position",
        "text_model.final_layer_norm": "text.norm",
        "vision_model.embeddings.class_embedding": "image.embedding.class_token",
        "vision_model.embeddings.patch_embedding": "image.embedding.projection",
        "vision_model.embeddings.position_embedding.weight": "image.embedding.position",
        "vision_model.pre_layrnorm": "image.input_norm",
        "vision_model.post_layernorm": "image.norm",
        "visual_projection": "image_projection",
    },
    OPEN_CLIP: {
        "token_embedding.weight": "text.embedding.token.weight",
        "positional_embedding": "text.embedding.position",
        "ln_final": "text.norm",
        "visual.class_embedding": "image.embedding.class_token",
        "visual.conv1": "image.embedding.projection",
        "visual.positional_embedding": "image.embedding.position",
        "visual.ln_pre": "image.input_norm",
        "visual.ln_post": "image.norm",
    },
}
BLOCK = {
    TRANSFORMERS: re.compile(r"(text_model|vision_model)\.encoder\.layers\.(\d+)\.(.+?)[._](weight|bias)"),
    OPEN_CLIP: re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+?)[._](weight|bias)"),
}
IN_BLOCK = {
    "layer_norm1": "attention_norm",
    "self_attn.out_proj": "attention.output",
    "layer_norm2": "mlp_norm",
    "mlp.fc1": "mlp.expand",
    "mlp.fc2": "mlp.contract",
    "ln_1": "attention_norm",
    "attn.out_proj": "attention.output",
    "ln_2": "mlp_norm",
    "mlp.c_fc": "mlp.expand",
    "mlp.c_proj": "mlp.contract",
}


class TowerShape(NamedTuple):
    dim: int
    depth: int
    heads: int
    block: BlockSettings


class ClipShape(NamedTuple):
    """What a checkpoint's config says."""

    image_size: int
    patch_size: int
    context_length: int
    vocab_size: int
    embed_dim: int
    image: TowerShape
    text: TowerShape


class ClipSource(NamedTuple):
    """A checkpoint: weights by the library's names, and the colours that its pictures were normalised with, RGB over 0..1."""

    title: str
    weights: dict[str, Tensor]
    shape: ClipShape | None  # None: a file without a config beside it
    mean: Colours = CLIP_MEAN
    std: Colours = CLIP_STD


def clip_model(
    source: str, tokenizer: Tokenizer | None = None, image_size: int | None = None, context_length: int | None = None
) -> MultiModalTransformer:
    """A model with a checkpoint's sizes and weights, none of which is initialised again; only what CLIP has not (``word_head``,
    ``logit_bias``) is new. It reads pictures normalised as ``insight.data.images`` does it.

    Args:
        source: As of ``read_clip``; its config has to be there.
        tokenizer: Whose ids the model reads: CLIP's own, as ``insight.data.pretrained_text`` renumbers it. None: the library's ids.
        image_size: Side of the picture, in pixels; None: the checkpoint's. Positions of another grid are resampled.
        context_length: Most tokens of a caption, at most the checkpoint's; None: as many.

    Raises:
        InputError: no such checkpoint, one that is no CLIP with a vision transformer, or weights whose keys or shapes differ (listed).
    """
    found = read_clip(source)
    if found.shape is None:
        raise InputError(
            f"weights={source}: no {TRANSFORMERS} and no {OPEN_CLIP} beside the file, so heads and activation are not known: "
            "put the config there, or build the model with them and load the file into it (load_clip)"
        )
    shape, vocab_size = found.shape, found.shape.vocab_size if tokenizer is None else tokenizer.size
    image_size, context_length = image_size or shape.image_size, context_length or shape.context_length
    image, text = shape.image, shape.text
    model = MultiModalTransformer(
        vocab_size,
        image_size,
        context_length=context_length,
        embed_dim=shape.embed_dim,
        image=VisionTransformer(
            image_size, shape.patch_size, image.dim, image.depth, image.heads, block=image.block, input_norm=True, patch_bias=True
        ),
        text=TextTransformer(vocab_size, context_length, text.dim, text.depth, text.heads, block=text.block, causal=True, pool="last"),
    )
    load_clip(model, found, tokenizer)
    return model


def load_clip(model: MultiModalTransformer, source: ClipSource, tokenizer: Tokenizer | None = None) -> None:
    """Copy a checkpoint into a model. All weights fit, or nothing is changed. Heads and activation are not seen in weights: they are the
    model's own business, as ``causal`` and ``pool=last`` of its text are.

    Colours that were normalised otherwise than in this project are folded into the projection of the patches, whose bias CLIP has not
    (zero); of the text positions those that the model has are taken.

    Raises:
        InputError: a checkpoint of another family or of another size (the keys are listed), or a tokenizer that is not its own.
    """
    if not isinstance(model.image, VisionTransformer) or not isinstance(model.text, TextTransformer):
        raise InputError(f"weights={source.title}: the model's towers are another library's, which have weights of their own")
    if not model.text.causal or model.text.pool.kind != "last" or model.image.pool.kind != "first":
        raise InputError(f"weights={source.title}: CLIP's text is causal with pool=last, its picture has pool=first: build the towers so")
    parts, own = to_own_names(source.weights, source.title), model.state_dict()
    if tokenizer is not None:
        parts["text.embedding.token.weight"] = rows_of(parts["text.embedding.token.weight"], tokenizer, source.title)
    position, bias = "image.embedding.position", "image.embedding.projection.bias"
    if position in parts:
        parts[position] = resample_positions(parts[position], model.image.grid_size, model.image.num_prefix)
    if "text.embedding.position" in parts:
        parts["text.embedding.position"] = parts["text.embedding.position"][:, : model.text.context_length]
    if bias in own:
        parts.setdefault(bias, torch.zeros_like(own[bias]))
    kept = {name: own[name] for name in UNKNOWN_TO_CLIP if name not in parts}
    wrong = mismatch(own, parts | kept)
    if wrong:
        raise InputError(f"weights={source.title} are those of another CLIP: {wrong}. Give the model its sizes")
    projection = {name.removeprefix("image."): value for name, value in parts.items() if name.startswith("image.embedding.projection.")}
    fold_colours(projection, source.mean, source.std)
    model.load_state_dict(parts | kept | {f"image.{name}": value for name, value in projection.items()})


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


# --- where they come from ---
def read_clip(source: str) -> ClipSource:
    """
    Args:
        source: A folder with ``config.json`` (transformers) or ``open_clip_config.json`` and the weights, one file of weights, or
            ``hf-hub:OWNER/MODEL``.

    Raises:
        InputError: nothing there, a hub that cannot be reached, a damaged file, or a config of another kind of model.
    """
    place = _from_hub(source) if source.startswith(HUB) else Path(source).expanduser()
    if place.is_file():
        file, kind = place, next((kind for kind, names in WEIGHTS.items() if place.name in names), None)
        folder, kinds = place.parent, [*WEIGHTS] if kind is None else [kind]
        config = next((folder / kind for kind in kinds if (folder / kind).is_file()), None)
    else:
        pairs = [(place / name, place / kind) for kind, names in WEIGHTS.items() for name in names]
        file, config = next(((file, config) for file, config in pairs if file.is_file() and config.is_file()), (place, None))
        if config is None:
            raise InputError(
                f"weights={source}: no CLIP there; give a file, a folder with {TRANSFORMERS} and {WEIGHTS[TRANSFORMERS][0]}, one with "
                f"{OPEN_CLIP} and {WEIGHTS[OPEN_CLIP][0]}, or {HUB}OWNER/MODEL"
            )
    if config is None:
        return ClipSource(source, read_weights(file), None)
    values = _json(config)
    if config.name == TRANSFORMERS:
        shape = _transformers_shape(values, str(config))
        colours = _json(config.parent / PREPROCESSING) if (config.parent / PREPROCESSING).is_file() else {}
        mean, std = colours.get("image_mean", CLIP_MEAN), colours.get("image_std", CLIP_STD)
    else:
        with explained(str(config)):
            shape = _open_clip_shape(values.get("model_cfg", values), str(config))
        colours = values.get("preprocess_cfg", {})
        mean, std = colours.get("mean", CLIP_MEAN), colours.get("std", CLIP_STD)
    return ClipSource(source, read_weights(file), shape, tuple(mean), tuple(std))  # type: ignore[arg-type]


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
    raise InputError(f"weights={source}: no CLIP there, or the hub cannot be reached: download it elsewhere and give its folder")


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error})") from error
    if not isinstance(found, dict):
        raise InputError(f"{path}: no settings by name")
    return found


def _transformers_shape(values: dict[str, Any], title: str) -> ClipShape:
    if values.get("model_type") != "clip":
        raise InputError(f"{title}: model_type={values.get('model_type')!r}, but only CLIP models are read here, which have 'clip'")
    with explained(title):
        config = library("transformers").CLIPConfig.from_dict(values)  # knows the defaults that files leave out
    image, text = config.vision_config, config.text_config

    def tower(part: Any) -> TowerShape:
        if part.hidden_act not in ACTIVATIONS:
            raise InputError(f"{title}: hidden_act={part.hidden_act!r}, but one of {', '.join(ACTIVATIONS)} is read here")
        ratio = part.intermediate_size / part.hidden_size
        if int(part.hidden_size * ratio) != part.intermediate_size:  # a rounding below the whole number
            ratio = (part.intermediate_size + 0.5) / part.hidden_size
        block = BlockSettings(activation=ACTIVATIONS[part.hidden_act], norm_eps=part.layer_norm_eps, mlp_ratio=ratio)
        return TowerShape(part.hidden_size, part.num_hidden_layers, part.num_attention_heads, block)

    sizes = (image.image_size, image.patch_size, text.max_position_embeddings, text.vocab_size, config.projection_dim)
    return ClipShape(*sizes, tower(image), tower(text))


def _open_clip_shape(values: dict[str, Any], title: str) -> ClipShape:
    image: dict[str, Any] = {"head_width": 64, "mlp_ratio": 4.0, "patch_size": 16, "image_size": 224, "layers": 12, "width": 768}
    text: dict[str, Any] = {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12, "mlp_ratio": 4.0}
    unused = {"hf_tokenizer_name", "tokenizer_mode", "tokenizer_kwargs", "patch_dropout", "output_tokens"}  # change no embedding
    plain = {"ls_init_value": None, "pool_type": None, "norm_kwargs": None, "act_kwargs": None}  # both towers' defaults
    for side, known in (("vision_cfg", image), ("text_cfg", text)):
        given = {name: value for name, value in values.get(side, {}).items() if name not in unused}
        usual = plain | {"pool_type": "tok" if side == "vision_cfg" else "argmax"}
        other = {name: value for name, value in given.items() if name not in known and value and usual.get(name) != value}
        if other or not isinstance(given.get("layers", 12), int):
            raise InputError(
                f"{title}: {side} has {other or {'layers': given['layers']}}, but only CLIP's vision and text transformers are read here; "
                "others serve as a tower of insight.towers"
            )
        known.update({name: value for name, value in given.items() if name in known})
    act: Activation = "quick_gelu" if values.get("quick_gelu") else "gelu"
    blocks = [BlockSettings(activation=act, mlp_ratio=known["mlp_ratio"]) for known in (image, text)]
    return ClipShape(
        image["image_size"],
        image["patch_size"],
        text["context_length"],
        text["vocab_size"],
        values["embed_dim"],
        TowerShape(image["width"], image["layers"], image["width"] // image["head_width"], blocks[0]),
        TowerShape(text["width"], text["layers"], text["heads"], blocks[1]),
    )


# --- names ---
def family_of(names: Mapping[str, Tensor]) -> str | None:
    """Whose names these are, by the config that goes with them; None: nobody's who is known."""
    if "vision_model.embeddings.class_embedding" in names and "text_model.embeddings.token_embedding.weight" in names:
        return TRANSFORMERS
    own_text = "token_embedding.weight" in names or "text.token_embedding.weight" in names
    return OPEN_CLIP if "visual.class_embedding" in names and own_text else None


def to_own_names(given: Mapping[str, Tensor], title: str) -> dict[str, Tensor]:
    """The same weights in float32 as ``MultiModalTransformer`` calls them. Names that nobody knows stay, so that they are seen.

    Raises:
        InputError: no CLIP with two transformers.
    """
    family = family_of(given)
    if family is None:
        raise InputError(
            f"weights={title}: not the weights of a CLIP of transformers or open_clip with a vision transformer; its keys: "
            f"{listed(sorted(given))}. Other networks serve as a tower of insight.towers"
        )
    found: dict[str, Tensor] = {}
    halves: dict[str, Tensor] = {}  # keys or values that wait for the other
    for name, value in given.items():
        if NO_WEIGHTS.fullmatch(name):
            continue
        name, value = name.removeprefix("text.") if family == OPEN_CLIP else name, value.float()
        block = BLOCK[family].fullmatch(name)
        if block is not None:
            side, index, part, kind = block.groups()
            place = f"{'image' if side in ('vision_model', 'visual.') else 'text'}.blocks.{index}"
            if part == "attn.in_proj":  # queries, keys and values in one
                parts = value.split([len(value) // 3, 2 * len(value) // 3])
                found[f"{place}.attention.query.{kind}"], found[f"{place}.attention.key_value.{kind}"] = parts
            elif part == "self_attn.q_proj":
                found[f"{place}.attention.query.{kind}"] = value
            elif part in ("self_attn.k_proj", "self_attn.v_proj"):
                halves[f"{place}.{part}.{kind}"] = value
            else:
                found[f"{place}.{IN_BLOCK.get(part, part)}.{kind}"] = value
        elif name in ("visual.proj", "text_projection"):  # (D, E), used from the right
            found["image_projection.weight" if name == "visual.proj" else "text_projection.weight"] = value.T
        elif name in ("logit_scale", "logit_bias"):
            found[name] = value.reshape(())
        else:
            found[_renamed(family, name)] = value
    for key in [name for name in halves if ".self_attn.k_proj." in name]:
        theirs = key.replace(".k_proj.", ".v_proj.")
        if theirs in halves:
            found[key.replace("self_attn.k_proj", "attention.key_value")] = torch.cat([halves.pop(key), halves.pop(theirs)])
    return _shaped(found | halves)


def _renamed(family: str, name: str) -> str:
    for theirs, ours in RENAMED[family].items():
        if name == theirs or name.startswith(f"{theirs}."):
            return ours + name[len(theirs) :]
    return name


def _shaped(found: dict[str, Tensor]) -> dict[str, Tensor]:
    """Positions (T, D) -> (1, T, D), class token (D) -> (1, 1, D), a convolution's (D, 3, p, p) in the order of ``patchify``."""
    for name in ("text.embedding.position", "image.embedding.position", "image.embedding.class_token"):
        if name in found:
            found[name] = found[name].reshape(1, -1, found[name].shape[-1])
    if "image.embedding.projection.weight" in found:
        found["image.embedding.projection.weight"] = found["image.embedding.projection.weight"].flatten(1)
    return found
