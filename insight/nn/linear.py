"""The affine map that every part is made of, initialised where it is created, so that nobody re-initialises what was handed in."""

from __future__ import annotations

from torch import Tensor, nn

INIT_STD = 0.02


def trunc_normal_(tensor: Tensor) -> Tensor:
    """Normal with standard deviation 0.02, cut at two of them (the initialisation of https://arxiv.org/abs/2010.11929)."""
    return nn.init.trunc_normal_(tensor, std=INIT_STD, a=-2 * INIT_STD, b=2 * INIT_STD)


def linear(in_features: int, out_features: int, bias: bool = True) -> nn.Linear:
    """A linear layer with truncated-normal weights and a zero bias."""
    layer = nn.Linear(in_features, out_features, bias=bias)
    trunc_normal_(layer.weight)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer
