"""Image and text encoders of Hugging Face's transformers as towers. B pictures, R regions, W width, T text tokens."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from insight.data.images import MEAN, STD
from insight.data.pretrained_text import load_tokenizer
from insight.errors import InputError
from insight.models.tower import ImageTower, TextTower
from insight.towers.lora import Lora, adapt
from insight.towers.weights import HUB, explained, library, listed, load_strictly


class TransformersImage(ImageTower):
    """An image encoder of transformers: ViT, DINOv2, Swin, ConvNeXT, ..., or the image side of a CLIP.

    Args:
        name: A folder that ``save_pretrained`` wrote, or ``hf-hub:OWNER/MODEL``: with their weights; or a kind of model, e.g. ``vit``, with
            random first weights.
        weights: A local file of that network's weights, instead.
        arguments: Values of the configuration, e.g. ``{hidden_size: 192}``; for a folder or the hub, arguments of ``from_pretrained``.
        image_size: Side of the picture, in pixels; null: that of the checkpoint. Another one interpolates positions.
        mean: Mean of its preprocessing, RGB; null: that of the checkpoint, ImageNet's where there are random first weights.
        std: Standard deviation of its preprocessing, RGB; null: as the mean.
        pooling: ``own``: the network's pooled vector, or its class token; ``mean``: the mean of the regions.
        lora: Adapters of low rank, which a stage trains by the pattern ``*lora_*``; null: none.

    Raises:
        InputError: no such model, one that reads no pictures, weights that are missing or another network's, no way to reach the hub.
    """

    def __init__(
        self,
        name: str,
        weights: str | None = None,
        arguments: dict[str, Any] | None = None,
        image_size: int | None = None,
        mean: tuple[float, float, float] | None = None,
        std: tuple[float, float, float] | None = None,
        pooling: Literal["own", "mean"] = "own",
        lora: Lora | None = None,
    ) -> None:
        network = build(name, weights, dict(arguments or {}), "vision_model")
        config = network.config
        if getattr(network, "main_input_name", "pixel_values") != "pixel_values":
            raise InputError(f"'{name}' ({type(network).__name__}) reads no pictures: name an image encoder, or use it as the text tower")
        own_size = getattr(config, "image_size", None)
        own_size = own_size[0] if isinstance(own_size, (list, tuple)) else own_size
        own_mean, own_std = MEAN, STD
        if (mean is None or std is None or (image_size or own_size) is None) and is_place(name):
            with explained(f"preprocessing of '{name}'"):
                processor = library("transformers").AutoImageProcessor.from_pretrained(name.removeprefix(HUB))
            own_mean, own_std = tuple(processor.image_mean), tuple(processor.image_std)
            size: Any = dict(getattr(processor, "crop_size", None) or processor.size)
            own_size = own_size or size.get("height") or size.get("shortest_edge")
        super().__init__(network, image_size or own_size or 224, mean or own_mean, std or own_std, pooling)
        self.interpolates = own_size is not None and self.image_size != own_size
        self._more = pooling_layer(arguments)
        self.measure()
        adapt(self.network, lora)

    def rebuilding(self) -> dict[str, Any]:
        own = {"image_size": self.image_size, "mean": self.mean, "std": self.std, "pooling": self.pooling}
        return configuration(self.network, self._more) | own

    def look(self, pixels_B3HW: Tensor) -> tuple[Tensor, Tensor | None]:
        more = {"interpolate_pos_encoding": True} if self.interpolates else {}
        output = self.network(pixel_values=pixels_B3HW, **more)
        features, own = output.last_hidden_state, getattr(output, "pooler_output", None)
        own_BW = own.flatten(1) if own is not None else None
        if features.ndim == 4:
            return features.flatten(2).transpose(1, 2), own_BW
        special = features.shape[1] - math.isqrt(features.shape[1]) ** 2
        return features[:, special:], features[:, 0] if own_BW is None and special else own_BW


class TransformersText(TextTower):
    """A text encoder of transformers: BERT, RoBERTa, MPNet, MiniLM, ..., or the text side of a CLIP, with its own tokenizer.

    Its tokenizer must be the data's too: ``data.init_args.tokenizer``.

    Args:
        name: A folder that ``save_pretrained`` wrote, or ``hf-hub:OWNER/MODEL``: with their weights; or a kind of model, e.g. ``bert``,
            with random first weights.
        weights: A local file of that network's weights, instead.
        arguments: Values of the configuration; for a folder or the hub, arguments of ``from_pretrained``.
        tokenizer: Folder, file or ``hf-hub:`` name of its tokenizer; null: ``name``.
        context_length: Most tokens of a caption.
        pooling: ``mean`` of the real tokens, the ``first`` or the ``last`` real one.
        lora: Adapters of low rank, which a stage trains by the pattern ``*lora_*``; null: none.

    Raises:
        InputError: no such model, one that reads no text, weights that are missing or another network's, a tokenizer with more entries than
            the network has, a ``context_length`` beyond its positions, no way to reach the hub.
    """

    def __init__(
        self,
        name: str,
        weights: str | None = None,
        arguments: dict[str, Any] | None = None,
        tokenizer: str | None = None,
        context_length: int = 32,
        pooling: Literal["mean", "first", "last"] = "mean",
        lora: Lora | None = None,
    ) -> None:
        network = build(name, weights, dict(arguments or {}), "text_model")
        config = network.config
        if getattr(network, "main_input_name", "input_ids") != "input_ids":
            raise InputError(f"'{name}' ({type(network).__name__}) reads no text: name a text encoder, or use it as the image tower")
        positions = getattr(config, "max_position_embeddings", None)
        if positions is not None and context_length > positions:
            raise InputError(f"context_length={context_length}: '{name}' has {positions} positions, choose at most that many")
        if tokenizer is None and not is_place(name):
            raise InputError(f"'{name}' is a kind of model, which has no tokenizer of its own: give the text tower's `tokenizer`")
        place = tokenizer or name
        ids = load_tokenizer(place).library_ids
        entries = network.get_input_embeddings().weight.shape[0]
        if not ids or max(ids) >= entries:
            raise InputError(
                f"tokenizer={place} is not the one of '{name}': "
                + (f"it has {max(ids) + 1} entries, the network {entries}" if ids else "it is one of this project's own")
                + ". Give the tokenizer that the network was trained with"
            )
        super().__init__(network, torch.tensor(ids), place, context_length, config.hidden_size, pooling)
        self._more = pooling_layer(arguments)
        adapt(self.network, lora)
        self.eval()

    def rebuilding(self) -> dict[str, Any]:
        return configuration(self.network, self._more) | {"context_length": self.context_length, "pooling": self.pool.kind}


def pooling_layer(arguments: dict[str, Any] | None) -> dict[str, Any]:
    """The one argument of a constructor that a configuration does not hold."""
    return {name: value for name, value in (arguments or {}).items() if name == "add_pooling_layer"}


def configuration(network: Any, more: dict[str, Any]) -> dict[str, Any]:
    """``name`` and ``arguments`` of the kind of model with this network's configuration."""
    values = network.config.to_diff_dict()
    values = {name: value for name, value in values.items() if name not in ("model_type", "transformers_version", "architectures", "dtype")}
    return {"name": network.config.model_type, "arguments": values | more}


def is_place(name: str) -> bool:
    """Whether it is a folder or on the hub."""
    return name.startswith(HUB) or Path(name).is_dir()


def build(name: str, weights: str | None, arguments: dict[str, Any], side: str) -> Any:
    """The encoder; of a model with several, its ``side``."""
    transformers = library("transformers")
    if is_place(name):
        with explained(f"transformers model '{name}'"):
            network, found = transformers.AutoModel.from_pretrained(name.removeprefix(HUB), output_loading_info=True, **arguments)
        missing = sorted(found["missing_keys"])
        if missing:
            fix = "give arguments: {add_pooling_layer: false}, or" if all("pooler" in key for key in missing) else "give"
            raise InputError(f"'{name}' lacks weights of {type(network).__name__}: {listed(missing)}; {fix} a complete checkpoint")
    else:
        if "/" in name:
            raise InputError(f"'{name}': there is no such folder; for the hub write {HUB}{name}")
        more = pooling_layer(arguments)
        values = {key: value for key, value in arguments.items() if key not in more}
        with explained(f"transformers model '{name}'"):
            network = transformers.AutoModel.from_config(transformers.AutoConfig.for_model(name, **values), **more)
    network = getattr(network, side, network)
    if getattr(network.config, "is_encoder_decoder", False):
        network = network.get_encoder()
    if weights is not None:
        load_strictly(network, weights, f"transformers' {name}")
    return network.eval()
