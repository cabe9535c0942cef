"""Pre-norm transformer blocks. B batch, T tokens, S tokens of the context, D width.

The layout is that of https://arxiv.org/abs/2010.11929, figure 1: ``x + attention(norm(x))``, then ``x + mlp(norm(x))``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from insight.errors import InputError
from insight.nn.attention import Attention
from insight.nn.cache import BlockCache
from insight.nn.linear import linear
from insight.nn.position import Rotation
from insight.nn.settings import PLAIN, Activation, BlockSettings


def norm(dim: int, settings: BlockSettings = PLAIN) -> nn.LayerNorm | nn.RMSNorm:
    """The norm that the settings ask for."""
    return nn.RMSNorm(dim, eps=settings.norm_eps) if settings.rms_norm else nn.LayerNorm(dim, eps=settings.norm_eps)


class Activate(nn.Module):
    """A function of each number alone; nothing to learn."""

    def __init__(self, function: Activation = "gelu") -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        if self.function == "gelu":
            return F.gelu(x)
        if self.function == "gelu_tanh":
            return F.gelu(x, approximate="tanh")
        if self.function == "quick_gelu":
            return x * torch.sigmoid(1.702 * x)
        return F.silu(x) if self.function == "silu" else F.relu(x)


class DropPath(nn.Module):
    """In training some samples skip what a part of a block adds, and the others get it divided by the chance to be kept."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x_BTD: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x_BTD
        kept_B11 = torch.rand(len(x_BTD), 1, 1, device=x_BTD.device) >= self.rate
        return x_BTD * (kept_B11 / (1 - self.rate)).to(x_BTD.dtype)


class Mlp(nn.Module):
    """Two linear layers with an activation between, which a third may gate."""

    def __init__(self, dim: int, settings: BlockSettings = PLAIN) -> None:
        super().__init__()
        hidden = int(dim * settings.mlp_ratio)
        if hidden < 1:
            raise InputError(f"mlp_ratio={settings.mlp_ratio} leaves no hidden unit at dim={dim}: 4.0 is usual")
        self.expand = linear(dim, hidden, settings.bias)
        self.gate = linear(dim, hidden, settings.bias) if settings.gated else None
        self.activation = Activate(settings.activation)
        self.contract = linear(hidden, dim, settings.bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        if self.gate is None:
            return self.contract(self.activation(self.expand(x_BTD)))
        return self.contract(self.activation(self.gate(x_BTD)) * self.expand(x_BTD))


class Block(nn.Module):
    """Self-attention, then the MLP.

    Args:
        causal: A token reads itself and those before it.
        drop_path: Of this block; that of the settings is the last block's.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        dropout: float = 0.0,
        settings: BlockSettings = PLAIN,
        causal: bool = False,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.attention_norm = norm(dim, settings)
        self.attention = Attention(dim, heads, settings.kv_heads, causal, settings.position == "alibi", settings.bias)
        self.mlp_norm = norm(dim, settings)
        self.mlp = Mlp(dim, settings)
        self.dropout = nn.Dropout(dropout)
        self.drop_path = DropPath(drop_path)

    def forward(
        self, x_BTD: Tensor, mask_BT: Tensor | None = None, rotation: Rotation | None = None, cache: BlockCache | None = None
    ) -> Tensor:
        """``mask_BT``: True = a token that may be read; with a cache it is of all tokens so far, and ``x_BTD`` are the newest."""
        normed_BTD = self.attention_norm(x_BTD)
        own = None if cache is None else cache.own
        x_BTD = x_BTD + self.drop_path(self.dropout(self.attention(normed_BTD, normed_BTD, mask_BT, None, rotation, own)))
        return x_BTD + self.drop_path(self.dropout(self.mlp(self.mlp_norm(x_BTD))))


class FusionBlock(nn.Module):
    """Self-attention over the text, cross-attention from the text to the image, then the MLP. A causal one is a decoder's block.

    Args:
        causal: A token of the text reads itself and those before it; of the context it reads all.
        drop_path: Of this block; that of the settings is the last block's.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        dropout: float = 0.0,
        settings: BlockSettings = PLAIN,
        causal: bool = False,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.attention_norm = norm(dim, settings)
        self.attention = Attention(dim, heads, settings.kv_heads, causal, settings.position == "alibi", settings.bias)
        self.cross_norm = norm(dim, settings)
        self.context_norm = norm(dim, settings)
        self.cross_attention = Attention(dim, heads, settings.kv_heads, bias=settings.bias)
        self.mlp_norm = norm(dim, settings)
        self.mlp = Mlp(dim, settings)
        self.dropout = nn.Dropout(dropout)
        self.drop_path = DropPath(drop_path)

    def forward(
        self,
        x_BTD: Tensor,
        mask_BT: Tensor | None,
        context_BSD: Tensor,
        context_mask_BS: Tensor | None = None,
        context_row_B: Tensor | None = None,
        rotation: Rotation | None = None,
        cache: BlockCache | None = None,
    ) -> Tensor:
        """Both masks: True = a token that may be read. ``context_row_B``: which row of the context each text reads; None: its own.

        With a cache ``mask_BT`` is of all tokens so far, ``x_BTD`` are the newest, and the context is read as it was at the first call.
        """
        normed_BTD = self.attention_norm(x_BTD)
        own, context = (None, None) if cache is None else (cache.own, cache.context)
        x_BTD = x_BTD + self.drop_path(self.dropout(self.attention(normed_BTD, normed_BTD, mask_BT, None, rotation, own)))
        read_BTD = self.cross_attention(
            self.cross_norm(x_BTD), self.context_norm(context_BSD), context_mask_BS, context_row_B, cache=context
        )
        x_BTD = x_BTD + self.drop_path(self.dropout(read_BTD))
        return x_BTD + self.drop_path(self.dropout(self.mlp(self.mlp_norm(x_BTD))))


def drop_path_rates(depth: int, settings: BlockSettings) -> list[float]:
    """Of each of ``depth`` blocks: from 0 to the settings' own in equal steps."""
    return [settings.drop_path * index / max(1, depth - 1) for index in range(depth)]


def blocks(depth: int, dim: int, heads: int, dropout: float = 0.0, settings: BlockSettings = PLAIN, causal: bool = False) -> nn.ModuleList:
    """A stack of ``Block``."""
    return nn.ModuleList([Block(dim, heads, dropout, settings, causal, rate) for rate in drop_path_rates(depth, settings)])


def fusion_blocks(
    depth: int, dim: int, heads: int, dropout: float = 0.0, settings: BlockSettings = PLAIN, causal: bool = False
) -> nn.ModuleList:
    """A stack of ``FusionBlock``."""
    return nn.ModuleList([FusionBlock(dim, heads, dropout, settings, causal, rate) for rate in drop_path_rates(depth, settings)])
