"""From the vectors of a sequence to one. C sequences, T tokens, D width."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from insight.errors import InputError
from insight.nn.attention import Attention
from insight.nn.block import Mlp, norm
from insight.nn.linear import trunc_normal_
from insight.nn.settings import PLAIN, BlockSettings

Pooling = Literal["first", "mean", "last", "attention"]


def masked_mean(x_CTD: Tensor, mask_CT: Tensor) -> Tensor:
    """Mean over the tokens whose mask is True; zero where there is none. Summed in float32, returned in x's precision."""
    weight_CT1 = mask_CT[..., None].float()
    return ((x_CTD.float() * weight_CT1).sum(dim=1) / weight_CT1.sum(dim=1).clamp(min=1.0)).to(x_CTD.dtype)


def last_token(x_CTD: Tensor, mask_CT: Tensor) -> Tensor:
    """The last token whose mask is True: the end of the text, which alone has read all of it in a causal model."""
    place_CT = torch.arange(mask_CT.shape[1], device=mask_CT.device) * mask_CT
    return x_CTD.gather(1, place_CT.amax(dim=1)[:, None, None].expand(-1, 1, x_CTD.shape[-1]))[:, 0]


class AttentionPool(nn.Module):
    """A learnt query reads all tokens, then an MLP: the MAP head of https://arxiv.org/abs/2106.04560, as SigLIP uses it."""

    def __init__(self, dim: int, heads: int, settings: BlockSettings = PLAIN) -> None:
        super().__init__()
        self.query = nn.Parameter(trunc_normal_(torch.empty(1, 1, dim)))
        self.attention = Attention(dim, heads, bias=settings.bias)
        self.mlp_norm = norm(dim, settings)
        self.mlp = Mlp(dim, settings)

    def forward(self, x_CTD: Tensor, mask_CT: Tensor | None = None) -> Tensor:
        """(C, T, D) -> (C, D). ``mask_CT``: True = a token that may be read."""
        query_C1D = self.query.expand(len(x_CTD), -1, -1).to(x_CTD.dtype)
        read_C1D = self.attention(query_C1D, x_CTD, mask_CT)
        return (read_C1D + self.mlp(self.mlp_norm(read_C1D)))[:, 0]


class Pool(nn.Module):
    """One vector for all tokens.

    Args:
        kind: ``first`` token (a class token), ``mean`` of the tokens that count, ``last`` of them, or ``attention`` of a learnt query.
        skip: So many tokens at the beginning are left out of the mean (a class token).
    """

    def __init__(self, kind: Pooling, dim: int, heads: int, settings: BlockSettings = PLAIN, skip: int = 0) -> None:
        super().__init__()
        self.kind, self.skip = kind, skip
        self.attend = AttentionPool(dim, heads, settings) if kind == "attention" else None

    def forward(self, x_CTD: Tensor, mask_CT: Tensor | None = None) -> Tensor:
        """(C, T, D) -> (C, D). ``mask_CT``: True = a token that counts."""
        if self.attend is not None:
            return self.attend(x_CTD, mask_CT)
        if self.kind == "first":
            return x_CTD[:, 0]
        mask_CT = x_CTD.new_ones(x_CTD.shape[:2], dtype=torch.bool) if mask_CT is None else mask_CT
        return last_token(x_CTD, mask_CT) if self.kind == "last" else masked_mean(x_CTD[:, self.skip :], mask_CT[:, self.skip :])

    def readout(self, x_CTD: Tensor, mask_CT: Tensor | None = None) -> Tensor:
        """How much each token counts, (C, T) float32, by its place alone; the rows sum to 1.

        Raises:
            InputError: ``attention``, where it depends on what the tokens hold.
        """
        counted_CT = x_CTD.new_ones(x_CTD.shape[:2], dtype=torch.float32) if mask_CT is None else mask_CT.float()
        if self.kind == "first":
            return torch.zeros_like(counted_CT).index_fill_(1, torch.zeros(1, dtype=torch.int64, device=x_CTD.device), 1.0)
        if self.kind == "last":
            place_CT = torch.arange(counted_CT.shape[1], device=x_CTD.device) * counted_CT
            return torch.zeros_like(counted_CT).scatter_(1, place_CT.argmax(dim=1, keepdim=True), 1.0)
        if self.kind == "mean":
            counted_CT = counted_CT * (torch.arange(counted_CT.shape[1], device=x_CTD.device) >= self.skip)
            return counted_CT / counted_CT.sum(dim=1, keepdim=True)
        raise InputError("pooling by attention reads its tokens by what they hold, so no weights of theirs are known beforehand")
