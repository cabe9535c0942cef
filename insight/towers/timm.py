"""Any image encoder of timm as a tower. B pictures, R regions, W width, C channels, h and w rows and columns."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from insight.errors import InputError
from insight.models.tower import ImageTower
from insight.stages import nearest
from insight.towers.lora import Lora, adapt
from insight.towers.weights import HUB, explained, library, load_strictly


class TimmImage(ImageTower):
    """An image encoder of timm, without its classifier.

    Args:
        name: As for ``timm.create_model``, e.g. ``mobilenetv2_100``; or ``hf-hub:OWNER/MODEL``, which brings its weights along.
        weights: A local file of that network's weights, classifier included; ``pretrained``: those that timm downloads for the name;
            null: random first weights, for a name that is not on the hub.
        arguments: Further arguments of ``timm.create_model``, e.g. ``{pad_type: same}`` or ``{img_size: 256}``.
        image_size: Side of the picture, in pixels; null: that of the network's training.
        mean: Mean of its preprocessing, RGB; null: that of the network's training.
        std: Standard deviation of its preprocessing, RGB; null: that of the network's training.
        pooling: ``own``: timm's pooled vector; ``mean``: the mean of the regions (where the two differ in width).
        classes: What the network's classifier says of each region and of the whole picture (its logits) stands beside their features.
        lora: Adapters of low rank, which a stage trains by the pattern ``*lora_*``; null: none.

    Raises:
        InputError: unknown name or argument, weights that are missing or another network's, a hub that can't be reached, ``classes`` of a
            network whose classifier reads something else than its pooled vector.
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
        classes: bool = False,
        lora: Lora | None = None,
    ) -> None:
        timm = library("timm")
        arguments = dict(arguments or {})
        if not name.startswith(HUB) and not timm.is_model(name):
            raise InputError(f"timm has no model '{name}'{nearest(name.split('.')[0], timm.list_models())}")
        download = weights == "pretrained" or (weights is None and name.startswith(HUB))
        with explained(f"timm model '{name}'"):
            network = timm.create_model(name, pretrained=download, **arguments)
        if weights is not None and not download:
            load_strictly(network, weights, f"timm's {name}")
        trained_with = timm.data.resolve_model_data_config(network)
        size = image_size or arguments.get("img_size") or trained_with["input_size"][-1]
        classifier = network.get_classifier()
        if classes and not (isinstance(classifier, nn.Linear) and classifier.in_features == network.num_features):
            raise InputError(f"image.init_args.classes: the classifier of timm's {name} does not read its pooled vector; leave classes out")
        network.reset_classifier(0)
        super().__init__(network, size, mean or trained_with["mean"], std or trained_with["std"], pooling)
        self.classifier = classifier if classes else None
        given = network.pretrained_cfg.get("model_args") or {}  # of a model on the hub
        self._built = {"name": network.pretrained_cfg.get("architecture", name), "arguments": {**given, **arguments}}
        self.measure()
        adapt(self.network, lora)

    def rebuilding(self) -> dict[str, Any]:
        own = {"image_size": self.image_size, "mean": self.mean, "std": self.std, "pooling": self.pooling}
        return self._built | own | ({} if self.classifier is None else {"classes": True})

    def look(self, pixels_B3HW: Tensor) -> tuple[Tensor, Tensor | None]:
        network: Any = self.network
        if pixels_B3HW.device.type == "cpu":  # MobileNetV2 takes two thirds of the time, and differs by rounding
            pixels_B3HW = pixels_B3HW.contiguous(memory_format=torch.channels_last)
        features = network.forward_features(pixels_B3HW)
        own_BW = network.forward_head(features, pre_logits=True)
        if features.ndim == 4:
            channels_last = features.shape[-1] == network.num_features != features.shape[1]
            grid_BRW = features.flatten(1, 2) if channels_last else features.flatten(2).transpose(1, 2)
        else:
            grid_BRW = features[:, getattr(network, "num_prefix_tokens", 0) :]
        if self.classifier is None:
            return grid_BRW, own_BW
        return torch.cat([grid_BRW, self.classifier(grid_BRW)], dim=-1), torch.cat([own_BW, self.classifier(own_BW)], dim=-1)
