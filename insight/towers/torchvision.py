"""Any classifier of torchvision as a tower. B pictures, R regions, W width."""

from __future__ import annotations

import math
from typing import Any, Literal

import torchvision
from torch import Tensor, nn

from insight.errors import InputError
from insight.models.tower import ImageTower
from insight.stages import nearest
from insight.towers.lora import Lora, adapt
from insight.towers.weights import explained, load_strictly

GRIDS = ("features", "layer4", "encoder")  # where torchvision's families keep their last map
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class TorchvisionImage(ImageTower):
    """A classifier of torchvision, without its last layer.

    Args:
        name: As for ``torchvision.models.get_model``, e.g. ``resnet50``, ``vit_b_16``.
        weights: A name of torchvision's weights, e.g. ``IMAGENET1K_V2`` (downloaded once), or a local file of that network's weights,
            classifier included; null: random first weights.
        arguments: Further arguments of ``torchvision.models.get_model``.
        image_size: Side of the picture, in pixels; null: that of the weights, 224 without.
        mean: Mean of its preprocessing, RGB; null: that of the weights, ImageNet's without.
        std: Standard deviation of its preprocessing, RGB; null: as the mean.
        grid: Path of the module whose output is the map of regions; null: ``features``, ``layer4`` or ``encoder``, which the network has.
        pooling: ``own``: what the last layer would read; ``mean``: the mean of the regions (where the two differ in width).
        lora: Adapters of low rank, which a stage trains by the pattern ``*lora_*``; null: none.

    Raises:
        InputError: unknown name, argument or module, weights that are missing or another network's, no way to download them.
    """

    def __init__(
        self,
        name: str,
        weights: str | None = None,
        arguments: dict[str, Any] | None = None,
        image_size: int | None = None,
        mean: tuple[float, float, float] | None = None,
        std: tuple[float, float, float] | None = None,
        grid: str | None = None,
        pooling: Literal["own", "mean"] = "own",
        lora: Lora | None = None,
    ) -> None:
        arguments = dict(arguments or {})
        if name not in torchvision.models.list_models(module=torchvision.models):
            raise InputError(f"torchvision has no classifier '{name}'{nearest(name, torchvision.models.list_models(torchvision.models))}")
        known: Any = {one.name: one for one in torchvision.models.get_model_weights(name)}
        chosen = known.get(weights)
        with explained(f"torchvision model '{name}'"):
            network = torchvision.models.get_model(name, weights=chosen, **arguments)
        if weights is not None and chosen is None:
            if "/" not in weights and "." not in weights:
                raise InputError(f"weights={weights}: torchvision has no such weights for {name}{nearest(weights, known)}")
            load_strictly(network, weights, f"torchvision's {name}")
        transform = chosen.transforms() if chosen else None
        size = image_size or arguments.get("image_size") or (transform.crop_size[0] if transform else 224)
        own_mean, own_std = (tuple(transform.mean), tuple(transform.std)) if transform else IMAGENET
        drop_last_linear(network)
        super().__init__(network, size, mean or own_mean, std or own_std, pooling)
        self._built = {"name": name, "arguments": arguments}
        self.grid = grid or next((path for path in GRIDS if hasattr(network, path)), "")
        if self.grid not in dict(network.named_modules()) or not self.grid:
            raise InputError(f"grid={grid}: {name} has no such module; its parts: {', '.join(one for one, _ in network.named_children())}")
        self.measure()
        adapt(self.network, lora)

    def rebuilding(self) -> dict[str, Any]:
        own = {"image_size": self.image_size, "mean": self.mean, "std": self.std, "grid": self.grid, "pooling": self.pooling}
        return self._built | own

    def look(self, pixels_B3HW: Tensor) -> tuple[Tensor, Tensor | None]:
        seen: list[Tensor] = []
        handle = self.network.get_submodule(self.grid).register_forward_hook(lambda module, inputs, output: seen.append(output))
        try:
            own_BW = self.network(pixels_B3HW)
        finally:
            handle.remove()
        (features,) = seen
        if features.ndim == 3:  # (B, tokens, W), special tokens first
            return features[:, features.shape[1] - math.isqrt(features.shape[1]) ** 2 :], own_BW
        if features.shape[1] != own_BW.shape[-1] == features.shape[-1]:  # channels last
            return features.flatten(1, 2), own_BW
        return features.flatten(2).transpose(1, 2), own_BW


def drop_last_linear(network: nn.Module) -> None:
    """Let the network return what its last linear layer would read."""
    path = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)][-1]
    parent, _, name = path.rpartition(".")
    setattr(network.get_submodule(parent), name, nn.Identity())
