"""Weights of CLIP (https://arxiv.org/abs/2103.00020), of transformers or open_clip, for ``MultiModalTransformer``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from insight.data.text import Tokenizer
from insight.errors import InputError
from insight.models.clip import ClipTransformer, DualShape, TowerShape
from insight.models.dual_checkpoint import (
    OPEN_CLIP,
    TRANSFORMERS,
    UNUSED_BY_TEXT,
    DualSizes,
    DualSource,
    asked_sizes,
    load_parts,
    read_dual,
    to_own_names,
    tower_shape,
)
from insight.models.multimodal import MultiModalTransformer
from insight.models.text_transformer import TextTransformer
from insight.models.vision_transformer import VisionTransformer
from insight.nn.settings import Activation, BlockSettings
from insight.towers.vision_weights import Colours
from insight.towers.weights import library, listed

CLIP_MEAN: Colours = (0.48145466, 0.4578275, 0.40821073)  # of OpenAI's release, and both libraries' default
CLIP_STD: Colours = (0.26862954, 0.26130258, 0.27577711)
UNKNOWN_TO_CLIP = ("word_head.weight", "word_head.bias", "logit_bias")

# their name -> ours, of what is only renamed
RENAMED = {
    TRANSFORMERS: {
        "vision_model.embeddings.class_embedding": "image.embedding.class_token",
        "vision_model.embeddings.patch_embedding": "image.embedding.projection",
        "vision_model.embeddings.position_embedding.weight": "image.embedding.position",
        "vision_model.pre_layrnorm": "image.input_norm",
        "vision_model.post_layernorm": "image.norm",
        "visual_projection": "image_projection",
    },
    OPEN_CLIP: {
        "visual.class_embedding": "image.embedding.class_token",
        "visual.conv1": "image.embedding.projection",
        "visual.positional_embedding": "image.embedding.position",
        "visual.ln_pre": "image.input_norm",
        "visual.ln_post": "image.norm",
        "visual.proj": "image_projection.weight",
        "text_projection": "text_projection.weight",
    },
}
RIGHT = ("visual.proj", "text_projection")  # of open_clip: (D, E), used from the right


def clip_model(
    source: str,
    tokenizer: Tokenizer | None = None,
    image_size: int | None = None,
    context_length: int | None = None,
    shape: DualShape | None = None,
) -> ClipTransformer:
    """A model with a checkpoint's sizes and weights, none of which is initialised again; only what CLIP has not (``word_head``,
    ``logit_bias``) is new. It reads pictures normalised as ``insight.data.images`` does it.

    Args:
        source: As of ``read_clip``; its config has to be there.
        tokenizer: Whose ids the model reads: CLIP's own, as ``insight.data.pretrained_text`` renumbers it. None: the library's ids.
        image_size: Side of the picture, in pixels; None: the checkpoint's. Positions of another grid are resampled.
        context_length: Most tokens of a caption, at most the checkpoint's; None: as many.
        shape: What the checkpoint's has to be; None: any.

    Raises:
        InputError: no such checkpoint, one that is no CLIP with a vision transformer, or weights whose keys or shapes differ (listed).
    """
    found = read_clip(source)
    asked = asked_sizes(found, tokenizer, image_size, context_length, shape)
    model = ClipTransformer(asked.vocab_size, asked.image_size, asked.context_length, asked.shape)
    load_clip(model, found, tokenizer)
    return model


def load_clip(model: MultiModalTransformer, source: DualSource, tokenizer: Tokenizer | None = None) -> None:
    """Copy a checkpoint into a model. All weights fit, or nothing is changed. Heads and activation are not seen in weights: they are the
    model's own business, as ``causal`` and ``pool=last`` of its text are. The bias of the patches' projection, which CLIP has not, is zero
    but for the colours that are folded into it.

    Raises:
        InputError: a checkpoint of another family or of another size (the keys are listed), or a tokenizer that is not its own.
    """
    if not isinstance(model.image, VisionTransformer) or not isinstance(model.text, TextTransformer):
        raise InputError(f"weights={source.title}: the model's towers are another library's, which have weights of their own")
    if not model.text.causal or model.text.pool.kind != "last" or model.image.pool.kind != "first":
        raise InputError(f"weights={source.title}: CLIP's text is causal with pool=last, its picture has pool=first: build the towers so")
    layout = layout_of(source.weights)
    if layout is None:
        raise InputError(
            f"weights={source.title}: not the weights of a CLIP of transformers or open_clip with a vision transformer; its keys: "
            f"{listed(sorted(source.weights))}. Other networks serve as a tower of insight.towers"
        )
    turned = {name: value.T if name.removeprefix("text.") in RIGHT else value for name, value in source.weights.items()}
    parts, bias = to_own_names(turned, layout, RENAMED[layout]), "image.embedding.projection.bias"
    if bias in model.state_dict():
        parts.setdefault(bias, torch.zeros(model.image.dim))
    load_parts(model, parts, source, tokenizer, UNKNOWN_TO_CLIP)


def layout_of(names: Mapping[str, Tensor]) -> str | None:
    """Whose names these are, by the config that goes with them; None: nobody's who is known."""
    if "vision_model.embeddings.class_embedding" in names and "text_model.embeddings.token_embedding.weight" in names:
        return TRANSFORMERS
    own_text = "token_embedding.weight" in names or "text.token_embedding.weight" in names
    return OPEN_CLIP if "visual.class_embedding" in names and own_text else None


# --- sizes ---
def read_clip(source: str) -> DualSource:
    """
    Args:
        source: As of ``dual_checkpoint.locate``.

    Raises:
        InputError: nothing there, a hub that cannot be reached, a damaged file, or a config of another kind of model.
    """
    return read_dual(source, {TRANSFORMERS: _transformers_sizes, OPEN_CLIP: _open_clip_sizes}, CLIP_MEAN, CLIP_STD)


def _transformers_sizes(values: dict[str, Any], title: str) -> DualSizes:
    kind = values.get("model_type")
    if kind != "clip":
        remedy = "; this is a SigLIP: model=siglip" if kind == "siglip" else ""
        raise InputError(f"{title}: model_type={kind!r}, but only CLIP models are read here, which have 'clip'{remedy}")
    config = library("transformers").CLIPConfig.from_dict(values)  # knows the defaults that files leave out
    image, text = config.vision_config, config.text_config
    shape = DualShape(image.patch_size, config.projection_dim, tower_shape(image, title), tower_shape(text, title))
    return DualSizes(image.image_size, text.max_position_embeddings, text.vocab_size, shape)


def _open_clip_sizes(values: dict[str, Any], title: str) -> DualSizes:
    values = values.get("model_cfg", values)
    image: dict[str, Any] = {"head_width": 64, "mlp_ratio": 4.0, "patch_size": 16, "image_size": 224, "layers": 12, "width": 768}
    text: dict[str, Any] = {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12, "mlp_ratio": 4.0}
    unused = {*UNUSED_BY_TEXT, "patch_dropout"}  # change no embedding
    plain = {"ls_init_value": None, "pool_type": None, "norm_kwargs": None, "act_kwargs": None}  # both towers' defaults
    for side, known in (("vision_cfg", image), ("text_cfg", text)):
        given = {name: value for name, value in values.get(side, {}).items() if name not in unused}
        usual = plain | {"pool_type": "tok" if side == "vision_cfg" else "argmax"}
        other = {name: value for name, value in given.items() if name not in known and value and usual.get(name) != value}
        if other or not isinstance(given.get("layers", 12), int):
            raise InputError(
                f"{title}: {side} has {other or {'layers': given['layers']}}, but only CLIP's vision and text transformers are read here; "
                + ("this is a SigLIP: model=siglip" if "timm_pool" in other else "others serve as a tower of insight.towers")
            )
        known.update({name: value for name, value in given.items() if name in known})
    act: Activation = "quick_gelu" if values.get("quick_gelu") else "gelu"
    blocks = [BlockSettings(activation=act, mlp_ratio=known["mlp_ratio"]) for known in (image, text)]
    towers = (
        TowerShape(image["width"], image["layers"], image["width"] // image["head_width"], blocks[0]),
        TowerShape(text["width"], text["layers"], text["heads"], blocks[1]),
    )
    return DualSizes(
        image["image_size"], text["context_length"], text["vocab_size"], DualShape(image["patch_size"], values["embed_dim"], *towers)
    )
