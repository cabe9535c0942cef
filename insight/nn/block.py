"""Pre-norm transformer blocks. B batch, T tokens, S tokens of the context, D width.

The layout is that of https://arxiv.org/abs/2010.11929, figure 1: ``x + attention(norm(x))``, then ``x + mlp(norm(x))``.
"""

from __future__ import annotations

from torch import Tensor, nn

from insight.errors import InputError
from insight.nn.attention import Attention
from insight.nn.linear import linear


class Mlp(nn.Module):
    """Two linear layers with a GELU between."""

    def __init__(self, dim: int, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        hidden = int(dim * mlp_ratio)
        if hidden < 1:
            raise InputError(f"mlp_ratio={mlp_ratio} leaves no hidden unit at dim={dim}: 4.0 is usual")
        self.expand = linear(dim, hidden)
        self.activation = nn.GELU()
        self.contract = linear(hidden, dim)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.contract(self.activation(self.expand(x_BTD)))


class Block(nn.Module):
    """Self-attention, then the MLP."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float = 4.0, dropout: float = 0.0) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(dim)
        self.attention = Attention(dim, heads)
        self.mlp_norm = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, mlp_ratio)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTD: Tensor, mask_BT: Tensor | None = None) -> Tensor:
        """``mask_BT``: True = a token that may be read."""
        normed_BTD = self.attention_norm(x_BTD)
        x_BTD = x_BTD + self.dropout(self.attention(normed_BTD, normed_BTD, mask_BT))
        return x_BTD + self.dropout(self.mlp(self.mlp_norm(x_BTD)))


class FusionBlock(nn.Module):
    """Self-attention over the text, cross-attention from the text to the image, then the MLP."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float = 4.0, dropout: float = 0.0) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(dim)
        self.attention = Attention(dim, heads)
        self.cross_norm = nn.LayerNorm(dim)
        self.context_norm = nn.LayerNorm(dim)
        self.cross_attention = Attention(dim, heads)
        self.mlp_norm = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, mlp_ratio)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x_BTD: Tensor,
        mask_BT: Tensor | None,
        context_BSD: Tensor,
        context_mask_BS: Tensor | None = None,
        context_row_B: Tensor | None = None,
    ) -> Tensor:
        """Both masks: True = a token that may be read. ``context_row_B``: which row of the context each text reads; None: its own."""
        normed_BTD = self.attention_norm(x_BTD)
        x_BTD = x_BTD + self.dropout(self.attention(normed_BTD, normed_BTD, mask_BT))
        x_BTD = x_BTD + self.dropout(
            self.cross_attention(self.cross_norm(x_BTD), self.context_norm(context_BSD), context_mask_BS, context_row_B)
        )
        return x_BTD + self.dropout(self.mlp(self.mlp_norm(x_BTD)))
