"""Weights of SigLIP (https://arxiv.org/abs/2303.15343), of transformers or open_clip, for ``SiglipTransformer``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from insight.data.text import Tokenizer
from insight.errors import InputError
from insight.models.clip import DualShape, TowerShape
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
from insight.models.siglip import SiglipTransformer
from insight.nn.settings import Activation, BlockSettings
from insight.towers import vision_weights
from insight.towers.vision_weights import Colours
from insight.towers.weights import library, listed

SIGLIP_MEAN: Colours = (0.5, 0.5, 0.5)
SIGLIP_STD: Colours = (0.5, 0.5, 0.5)
UNKNOWN_TO_SIGLIP = ("word_head.weight", "word_head.bias")
TRUNK = "visual.trunk."  # open_clip's image tower is timm's

# their name -> ours, of what is only renamed
RENAMED = {
    TRANSFORMERS: {
        "vision_model.embeddings.patch_embedding": "image.embedding.projection",
        "vision_model.embeddings.position_embedding.weight": "image.embedding.position",
        "vision_model.post_layernorm": "image.norm",
        "vision_model.head.probe": "image.pool.attend.query",
        "vision_model.head.attention.in_proj_weight": "image.pool.attend.attention.all.weight",
        "vision_model.head.attention.in_proj_bias": "image.pool.attend.attention.all.bias",
        "vision_model.head.attention.out_proj": "image.pool.attend.attention.output",
        "vision_model.head.layernorm": "image.pool.attend.mlp_norm",
        "vision_model.head.mlp.fc1": "image.pool.attend.mlp.expand",
        "vision_model.head.mlp.fc2": "image.pool.attend.mlp.contract",
        "text_model.head": "text_projection",
    },
    OPEN_CLIP: {},
}


def siglip_model(
    source: str,
    tokenizer: Tokenizer | None = None,
    image_size: int | None = None,
    context_length: int | None = None,
    shape: DualShape | None = None,
) -> SiglipTransformer:
    """A model with a checkpoint's sizes and weights, none of which is initialised again; only ``word_head``, which SigLIP has not, is new.
    It reads pictures normalised as ``insight.data.images`` does it, and texts that are filled up to the context length.

    Args:
        source: A folder, a file or ``hf-hub:OWNER/MODEL``, as of ``dual_checkpoint.locate``; its config has to be there.
        tokenizer: Whose ids the model reads: SigLIP's own, as ``insight.data.pretrained_text`` renumbers it. None: the library's ids.
        image_size: Side of the picture, in pixels; None: the checkpoint's. Positions of another grid are resampled.
        context_length: Tokens of a text: the checkpoint's, which None is too.
        shape: What the checkpoint's has to be; None: any.

    Raises:
        InputError: no such checkpoint, one that is no SigLIP, or weights whose keys or shapes differ (listed).
    """
    found = read_siglip(source)
    asked = asked_sizes(found, tokenizer, image_size, context_length, shape)
    if found.sizes is not None and asked.context_length != found.sizes.context_length:
        raise InputError(
            f"context_length={asked.context_length}: SigLIP reads texts that are filled up to {found.sizes.context_length} tokens: "
            f"data.init_args.context_length={found.sizes.context_length}, and the model's with it"
        )
    model = SiglipTransformer(asked.vocab_size, asked.image_size, asked.context_length, asked.shape)
    layout = layout_of(found.weights)
    if layout is None:
        raise InputError(
            f"weights={source}: not the weights of a SigLIP of transformers or open_clip; its keys: {listed(sorted(found.weights))}. "
            "Other networks serve as a tower of insight.towers"
        )
    trunk = {name.removeprefix(TRUNK): value.float() for name, value in found.weights.items() if name.startswith(TRUNK)}
    others = {name: value for name, value in found.weights.items() if not name.startswith(TRUNK)}
    parts = to_own_names(others, layout, RENAMED[layout])
    if trunk:
        parts |= {f"image.{name}": value for name, value in vision_weights.to_own_names(trunk, source).items()}
    load_parts(model, parts, found, tokenizer, UNKNOWN_TO_SIGLIP)
    return model


def layout_of(names: Mapping[str, Tensor]) -> str | None:
    """Whose names these are, by the config that goes with them; None: nobody's who is known."""
    if "vision_model.head.probe" in names and "text_model.head.weight" in names:
        return TRANSFORMERS
    return OPEN_CLIP if f"{TRUNK}attn_pool.latent" in names and "text.text_projection.weight" in names else None


# --- sizes ---
def read_siglip(source: str) -> DualSource:
    """
    Raises:
        InputError: nothing there, a hub that cannot be reached, a damaged file, or a config of another kind of model.
    """
    return read_dual(source, {TRANSFORMERS: _transformers_sizes, OPEN_CLIP: _open_clip_sizes}, SIGLIP_MEAN, SIGLIP_STD)


def _transformers_sizes(values: dict[str, Any], title: str) -> DualSizes:
    kind = values.get("model_type")
    if kind != "siglip":
        remedy = "; this is a CLIP: model=clip" if kind == "clip" else ""
        raise InputError(f"{title}: model_type={kind!r}, but only SigLIP models are read here, which have 'siglip'{remedy}")
    config = library("transformers").SiglipConfig.from_dict(values)  # knows the defaults that files leave out
    image, text = config.vision_config, config.text_config
    if not image.vision_use_head:
        raise InputError(f"{title}: vision_use_head=false, but only SigLIP's own pooling is read here")
    shape = DualShape(image.patch_size, text.projection_size, tower_shape(image, title), tower_shape(text, title))
    return DualSizes(image.image_size, text.max_position_embeddings, text.vocab_size, shape)


def _open_clip_sizes(values: dict[str, Any], title: str) -> DualSizes:
    values = values.get("model_cfg", values)
    image, text = values.get("vision_cfg", {}), values.get("text_cfg", {})
    asked = {"timm_pool": "map", "timm_proj": "none"}
    asked_text = {"no_causal_mask": True, "proj_bias": True, "pool_type": "last"}
    wrong = [f"vision_cfg.{key}={image.get(key)!r}" for key, value in asked.items() if image.get(key) != value]
    wrong += [f"text_cfg.{key}={text.get(key)!r}" for key, value in asked_text.items() if text.get(key) != value]
    known = {
        *UNUSED_BY_TEXT,
        *asked_text,
        "context_length",
        "vocab_size",
        "width",
        "heads",
        "layers",
        "mlp_ratio",
        "norm_kwargs",
        "act_kwargs",
    }
    wrong += [f"text_cfg.{key}={text[key]!r}" for key in sorted(text.keys() - known)]
    if wrong:
        remedy = "; this looks like a CLIP: model=clip" if "timm_model_name" not in image else ""
        raise InputError(f"{title}: {', '.join(wrong)}, but only SigLIP's towers are read here{remedy}")
    tanh = text.get("act_kwargs", {}).get("approximate") == "tanh"
    block = BlockSettings(
        activation="gelu_tanh" if tanh else "gelu",
        norm_eps=text.get("norm_kwargs", {}).get("eps", 1e-5),
        mlp_ratio=text.get("mlp_ratio", 4.0),
    )
    patch_size, image_shape = timm_shape(image["timm_model_name"], image["image_size"])
    shape = DualShape(patch_size, values["embed_dim"], image_shape, TowerShape(text["width"], text["layers"], text["heads"], block))
    return DualSizes(image["image_size"], text["context_length"], text["vocab_size"], shape)


def timm_shape(name: str, image_size: int) -> tuple[int, TowerShape]:
    """Patch size and shape of a vision transformer of timm, by its name. No weights are made."""
    with torch.device("meta"):
        network = library("timm").create_model(name, img_size=image_size, num_classes=0)
    first = network.blocks[0]
    activation: Activation = "gelu_tanh" if re.search("tanh", repr(first.mlp.act), re.IGNORECASE) else "gelu"
    block = BlockSettings(activation=activation, norm_eps=first.norm1.eps, mlp_ratio=first.mlp.fc1.out_features / network.embed_dim)
    return network.patch_embed.patch_size[0], TowerShape(network.embed_dim, len(network.blocks), first.attn.num_heads, block)
