"""Low-rank adapters in a tower (https://arxiv.org/abs/2106.09685, equation 3), by peft."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any, TypeVar

from torch import Tensor, nn

from insight.errors import InputError
from insight.stages import nearest
from insight.towers.weights import library


@dataclasses.dataclass(frozen=True)
class Lora:
    """Which linear layers of a network get an adapter; their own weights stay as they are.

    Args:
        targets: Last parts of module paths, e.g. ``[query, value]`` or ``[attn.qkv]``.
        rank: Of the update.
        alpha: The update counts ``alpha / rank``.
        dropout: Of what the adapter reads, in training.
    """

    targets: list[str]
    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0


def add_lora(network: nn.Module, lora: Lora) -> None:
    """Adapters in place. They start at zero, so the network says what it said. Only they are left to train: all have ``lora_`` in their
    names, for a stage's pattern such as ``model.image.network.*lora_*``.

    Raises:
        InputError: a target that no layer of the network has, or a rank below 1.
    """
    peft = library("peft")
    if lora.rank < 1:
        raise InputError(f"lora.rank={lora.rank}: must be at least 1")
    linears = [name for name, module in network.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    endings = {".".join(name.split(".")[-length:]) for name in linears for length in (1, 2)}
    for target in lora.targets:
        if not any(name == target or name.endswith(f".{target}") for name in linears):
            raise InputError(f"lora.targets: no linear layer ends with '{target}'{nearest(target, endings)}")
    settings = peft.LoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=list(lora.targets))
    peft.inject_adapter_in_model(settings, network)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_("lora_" in name)


def adapt(network: nn.Module, lora: Lora | None) -> None:
    """``add_lora``, where adapters are asked for."""
    if lora is not None:
        add_lora(network, lora)


def has_lora(network: nn.Module) -> bool:
    return any("lora_" in name for name, _ in network.named_parameters())


Network = TypeVar("Network", bound=nn.Module)


def merged(network: Network) -> Network:
    """The network itself where it has no adapters; else a copy that says the same, with plain layers under the names of old."""
    if not has_lora(network):
        return network
    network = copy.deepcopy(network)
    merge_lora(network)
    return network


def weight_of(layer: Any) -> Tensor:
    """Of a linear layer, with what its adapters add to it."""
    if not has_lora(layer):
        return layer.weight
    layer = copy.deepcopy(layer)
    layer.merge()
    return layer.get_base_layer().weight


def merge_lora(network: nn.Module) -> None:
    """Adapters into the weights, for good: plain layers that say the same, under the names that they had before."""
    tuners: Any = library("peft.tuners.lora")
    adapted = [(name, module) for name, module in network.named_modules() if isinstance(module, tuners.LoraLayer)]
    for path, module in adapted:
        module.merge()  # type: ignore[operator]
        parent, _, name = path.rpartition(".")
        setattr(network.get_submodule(parent), name, module.get_base_layer())  # type: ignore[operator]
    network.requires_grad_(True)
