"""Any image encoder of timm as a tower. B pictures, R regions, W width, C channels, h and w rows and columns."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from insight.errors import InputError
from insight.models.tower import ImageTower
from insight.stages import nearest
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

    Raises:
        InputError: unknown name or argument, weights that are missing or another network's, a hub that can't be reached.
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
        network.reset_classifier(0)
        super().__init__(network, size, mean or trained_with["mean"], std or trained_with["std"], pooling)
        given = network.pretrained_cfg.get("model_args") or {}  # of a model on the hub
        self._built = {"name": network.pretrained_cfg.get("architecture", name), "arguments": {**given, **arguments}}
        self.measure()

    def rebuilding(self) -> dict[str, Any]:
        return self._built | {"image_size": self.image_size, "mean": self.mean, "std": self.std, "pooling": self.pooling}

    def look(self, pixels_B3HW: Tensor) -> tuple[Tensor, Tensor | None]:
        network: Any = self.network
        features = network.forward_features(pixels_B3HW)
        own_BW = network.forward_head(features, pre_logits=True)
        if features.ndim == 4:
            channels_last = features.shape[-1] == network.num_features != features.shape[1]
            return (features.flatten(1, 2) if channels_last else features.flatten(2).transpose(1, 2)), own_BW
        return features[:, getattr(network, "num_prefix_tokens", 0) :], own_BW
