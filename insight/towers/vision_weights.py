"""Weights of torchvision's and timm's vision transformers in this project's VisionTransformer.

B pictures, N tokens, D width, P pixels of a patch (all channels), K classes, g patches per side.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from insight.data.images import MEAN, STD
from insight.errors import InputError
from insight.models.vision_transformer import VisionTransformer
from insight.stages import nearest
from insight.towers.weights import HUB, explained, library, listed, mismatch, read_weights

TRAINED_EPS = 1e-6  # of both libraries' norms
OWN_PLACES = ("", "image.", "model.image.")  # of the tower: alone, in a model, in a checkpoint of a run
Colours = tuple[float, float, float]

# their name -> ours, of what is only renamed; blocks and the linear maps of attention are below
RENAMED = {
    "torchvision": {
        "class_token": "embedding.class_token",
        "encoder.pos_embedding": "embedding.position",
        "conv_proj": "embedding.projection",
        "encoder.ln": "norm",
        "heads.head": "head",
    },
    "timm": {
        "cls_token": "embedding.class_token",
        "pos_embed": "embedding.position",
        "patch_embed.proj": "embedding.projection",
        "norm_pre": "input_norm",
        "norm": "norm",
        "head": "head",
        "attn_pool.latent": "pool.attend.query",
        "attn_pool.proj": "pool.attend.attention.output",
        "attn_pool.norm": "pool.attend.mlp_norm",
        "attn_pool.mlp.fc1": "pool.attend.mlp.expand",
        "attn_pool.mlp.fc2": "pool.attend.mlp.contract",
        "attn_pool.q": "pool.attend.attention.query",
        "attn_pool.kv": "pool.attend.attention.key_value",
    },
}
BLOCK = {
    "torchvision": re.compile(r"encoder\.layers\.encoder_layer_(\d+)\.(.+)"),
    "timm": re.compile(r"blocks\.(\d+)\.(.+)"),
}
IN_BLOCK = {
    "torchvision": {
        "ln_1": "attention_norm",
        "self_attention.in_proj": "attention.",
        "self_attention.out_proj": "attention.output",
        "ln_2": "mlp_norm",
        "mlp.0": "mlp.expand",
        "mlp.linear_1": "mlp.expand",
        "mlp.3": "mlp.contract",
        "mlp.linear_2": "mlp.contract",
    },
    "timm": {
        "norm1": "attention_norm",
        "attn.qkv": "attention.",
        "attn.proj": "attention.output",
        "norm2": "mlp_norm",
        "mlp.fc1": "mlp.expand",
        "mlp.fc2": "mlp.contract",
    },
}


class Source(NamedTuple):
    """A checkpoint: weights by their names, and the colours that its pictures were normalised with (None = this project's)."""

    title: str
    weights: dict[str, Tensor]
    mean: Colours | None = None
    std: Colours | None = None


def load_vision_transformer(
    vision: VisionTransformer, source: Source, head: nn.Linear | None = None, mean: Colours | None = None, std: Colours | None = None
) -> None:
    """Copy a checkpoint into a tower, and its classifier into ``head`` where one is given. All weights fit, or nothing is changed.

    Positions of another grid are resampled (bicubic, as timm does it); colours that were normalised otherwise than in this project are
    folded into the projection of the patches, which changes no output.

    Args:
        mean: Of the pictures that the weights were trained on, RGB over 0..1; None: what the source says, else ImageNet's.
        std: The same.

    Raises:
        InputError: a checkpoint of another family or of another size (the keys are listed), or a norm with another eps.
    """
    theirs = to_own_names(source.weights, source.title)
    if family_of(source.weights) != "own" and vision.norm.eps != TRAINED_EPS:
        raise InputError(
            f"weights={source.title}: trained with norms of eps {TRAINED_EPS:g}, the model's have {vision.norm.eps:g}: "
            "set block.norm_eps=1.0e-6"
        )
    of_head = {name: value for name, value in theirs.items() if name.startswith("head.")}
    parts = {name: value for name, value in theirs.items() if name not in of_head}
    own, place = vision.state_dict(), "embedding.position"
    if place in parts and place in own:
        parts[place] = resample_positions(parts[place], vision.grid_size, vision.num_prefix)
    own_head = {} if head is None else {f"head.{name}": value for name, value in head.state_dict().items()}
    wrong = mismatch({**own, **own_head}, {**parts, **(of_head if head is not None else {})})
    if wrong:
        raise InputError(f"weights={source.title} are those of another vision transformer: {wrong}. Give the model its sizes")
    fold_colours(parts, mean or source.mean or MEAN, std or source.std or STD)
    vision.load_state_dict(parts)
    if head is not None:
        head.load_state_dict({name.removeprefix("head."): value for name, value in of_head.items()})


# --- where they come from ---
def read_source(weights: str) -> Source:
    """
    Args:
        weights: A local file (.safetensors, .pth), ``hf-hub:OWNER/MODEL`` of a timm model, or a name of torchvision's weights, e.g.
            ``ViT_B_16_Weights.IMAGENET1K_V1``.

    Raises:
        InputError: no such file, name or hub repository, or a hub that cannot be reached.
    """
    if weights.startswith(HUB):
        return _from_hub(weights)
    if re.fullmatch(r"\w+_Weights\.\w+", weights):
        return _from_torchvision(weights)
    return Source(weights, read_weights(weights))


def _from_hub(weights: str) -> Source:
    hub = library("huggingface_hub")
    repository = weights.removeprefix(HUB)
    with explained(weights):
        file = hub.hf_hub_download(repository, "model.safetensors")
        settings = json.loads(Path(hub.hf_hub_download(repository, "config.json")).read_text(encoding="utf-8"))
    colours = settings.get("pretrained_cfg", settings)
    mean, std = (tuple(colours[key]) if key in colours else None for key in ("mean", "std"))
    return Source(weights, read_weights(file), mean, std)  # type: ignore[arg-type]


def _from_torchvision(weights: str) -> Source:
    known = [str(one) for name in torchvision.models.list_models(torchvision.models) for one in torchvision.models.get_model_weights(name)]
    if weights not in known:
        raise InputError(f"weights={weights}: torchvision has no such weights{nearest(weights, known)}")
    with explained(weights):
        chosen = torchvision.models.get_weight(weights)
        found = chosen.get_state_dict(check_hash=True)
    transform = chosen.transforms()
    return Source(weights, dict(found), tuple(transform.mean), tuple(transform.std))  # type: ignore[arg-type]


# --- names ---
def family_of(names: Mapping[str, Tensor]) -> str | None:
    """Whose names these are: ``own``, ``torchvision``, ``timm``, or nobody's who is known."""
    if any(f"{place}embedding.projection.weight" in names for place in OWN_PLACES):
        return "own"
    if "conv_proj.weight" in names:
        return "torchvision"
    return "timm" if "patch_embed.proj.weight" in names and "blocks.0.attn.qkv.weight" in names else None


def to_own_names(given: Mapping[str, Tensor], title: str) -> dict[str, Tensor]:
    """The same weights as this project's VisionTransformer and its ``head`` call them. Names that nobody knows stay, so that they are seen.

    Raises:
        InputError: no vision transformer.
    """
    family = family_of(given)
    if family is None:
        raise InputError(
            f"weights={title}: not the weights of a vision transformer of torchvision, timm or this project; its keys: "
            f"{listed(sorted(given))}. Other networks serve as a tower of insight.towers"
        )
    if family == "own":
        place = next(place for place in OWN_PLACES if f"{place}embedding.projection.weight" in given)
        tower = {name.removeprefix(place): value for name, value in given.items() if name.startswith(place)}
        head = f"{place.removesuffix('image.')}head."
        return tower | {f"head.{name.removeprefix(head)}": value for name, value in given.items() if name.startswith(head)}
    found: dict[str, Tensor] = {}
    for name, value in given.items():
        new = _own_name(family, name)
        if new.endswith("embedding.projection.weight"):
            found[new] = value.flatten(1)  # a convolution's (D, 3, p, p) in the order of ``patchify``
        elif re.search(r"attention\.[._](weight|bias)$", new):  # queries, keys and values in one
            prefix, kind = re.split(r"[._](?=weight$|bias$)", new)
            found[f"{prefix}query.{kind}"], found[f"{prefix}key_value.{kind}"] = value.split([len(value) // 3, 2 * len(value) // 3])
        else:
            found[new] = value
    return found


def _own_name(family: str, name: str) -> str:
    block = BLOCK[family].fullmatch(name)
    renamed, inner = (IN_BLOCK[family], block.group(2)) if block else (RENAMED[family], name)
    for theirs, ours in renamed.items():
        if inner == theirs or (inner.startswith(theirs) and inner[len(theirs)] in "._"):
            inner = ours + inner[len(theirs) :]
            break
    return f"blocks.{block.group(1)}.{inner}" if block else inner


# --- numbers ---
def resample_positions(position_1ND: Tensor, grid_size: int, num_prefix: int) -> Tensor:
    """Positions of one grid for another: bicubic with antialiasing over rows and columns; those before the patches stay.

    Raises:
        InputError: the positions form no square grid.
    """
    patches = position_1ND.shape[1] - num_prefix
    side = math.isqrt(max(patches, 0))
    if side * side != patches:
        raise InputError(
            f"positions of {patches} patches form no square: with {num_prefix} tokens before them they belong to another model"
        )
    if side == grid_size:
        return position_1ND
    grid_1Dgg = position_1ND[:, num_prefix:].float().unflatten(1, (side, side)).permute(0, 3, 1, 2)
    grid_1Dgg = F.interpolate(grid_1Dgg, size=(grid_size, grid_size), mode="bicubic", antialias=True)
    return torch.cat([position_1ND[:, :num_prefix], grid_1Dgg.flatten(2).transpose(1, 2).to(position_1ND.dtype)], dim=1)


def fold_colours(parts: dict[str, Tensor], mean: Colours, std: Colours) -> None:
    """Let a projection that was trained on ``(pixel - mean) / std`` read this project's ``(pixel - MEAN) / STD``: both are affine."""
    if (tuple(mean), tuple(std)) == (MEAN, STD):
        return
    weight, bias = "embedding.projection.weight", "embedding.projection.bias"
    if bias not in parts:
        raise InputError(f"mean={tuple(mean)}, std={tuple(std)}: patches without bias cannot take other colours up: give ImageNet's")
    weight_D3P = parts[weight].double().unflatten(1, (3, -1))
    own_mean, own_std, their_mean, their_std = (torch.tensor(values, dtype=torch.float64)[:, None] for values in (MEAN, STD, mean, std))
    parts[bias] = (parts[bias].double() + (weight_D3P * ((own_mean - their_mean) / their_std)).sum(dim=(1, 2))).to(parts[bias].dtype)
    parts[weight] = (weight_D3P * (own_std / their_std)).flatten(1).to(parts[weight].dtype)
