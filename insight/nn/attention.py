"""Attention. B batch, T queries, S keys, D width, H heads, K width of one head."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from insight.errors import InputError
from insight.nn.linear import linear


class AttentionCall(NamedTuple):
    """One call of an attention's kernel, what went in and what came out, in the autograd graph if there is one."""

    query_BHTK: Tensor
    key_BHSK: Tensor
    value_BHSK: Tensor
    mask_BS: Tensor | None  # True = attend
    attended_BHTK: Tensor  # zero rows where the mask allows no key


Listener = Callable[[AttentionCall], None]


class AttentionTap:
    """Where somebody can listen to the calls of the kernel. It only tells: nothing that a listener does reaches the output."""

    def __init__(self) -> None:
        self.listeners: list[Listener] = []

    def __call__(self, call: AttentionCall) -> None:
        for listener in self.listeners:
            listener(call)


class Attention(nn.Module):
    """Let ``x`` read from ``context``: equation 1 of https://arxiv.org/abs/1706.03762, with several heads (section 3.2.2).

    A row of the mask that allows no key at all reads nothing: its attended value is zero, and the output is the output bias.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        if heads < 1 or dim % heads:
            raise InputError(f"dim={dim} is not a multiple of heads={heads}: choose heads so that every head gets dim / heads channels")
        self.heads = heads
        self.query = linear(dim, dim)
        self.key_value = linear(dim, 2 * dim)
        self.output = linear(dim, dim)
        self.tap = AttentionTap()  # record_attention() listens to the kernel's calls; nobody listening costs nothing

    def forward(self, x_BTD: Tensor, context_BSD: Tensor, mask_BS: Tensor | None = None, row_B: Tensor | None = None) -> Tensor:
        """(B, T, D), (B, S, D), True = attend (B, S) -> (B, T, D).

        Args:
            row_B: Row of the context that each row of ``x`` reads; None: its own. Keys and values of a row that several read are
                computed once, and the context may have another number of rows than ``x``. The mask is of the context's rows.
        """
        query_BHTK = self.query(x_BTD).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        key_value_BSD = self.key_value(context_BSD)
        if row_B is not None:
            key_value_BSD, mask_BS = key_value_BSD[row_B], None if mask_BS is None else mask_BS[row_B]
        key_BSD, value_BSD = key_value_BSD.chunk(2, dim=-1)
        key_BHSK = key_BSD.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        value_BHSK = value_BSD.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        if mask_BS is None:
            attended_BHTK = attend(query_BHTK, key_BHSK, value_BHSK, None)
        else:
            some_key_B111 = mask_BS.any(dim=-1)[:, None, None, None]
            mask_B11S = mask_BS[:, None, None, :] | ~some_key_B111  # softmax over no keys is 0/0, in some kernels NaN: never ask for it
            attended_BHTK = attend(query_BHTK, key_BHSK, value_BHSK, mask_B11S) * some_key_B111
        self.tap(AttentionCall(query_BHTK, key_BHSK, value_BHSK, mask_BS, attended_BHTK))
        return self.output(attended_BHTK.transpose(1, 2).flatten(2))


def attend(query_BHTK: Tensor, key_BHSK: Tensor, value_BHSK: Tensor, mask_B11S: Tensor | None) -> Tensor:
    """The fused kernel, except in bfloat16 on the CPU: there its backward is 3-6 times slower than the plain formula (lengths 32-197)."""
    if query_BHTK.device.type == "cpu" and query_BHTK.dtype == torch.bfloat16:
        return attend_explicit(query_BHTK, key_BHSK, value_BHSK, mask_B11S)
    return F.scaled_dot_product_attention(query_BHTK, key_BHSK, value_BHSK, attn_mask=mask_B11S)


def attend_explicit(query_BHTK: Tensor, key_BHSK: Tensor, value_BHSK: Tensor, mask_B11S: Tensor | None) -> Tensor:
    """``softmax(q k^T / sqrt(K)) v``, step by step."""
    score_BHTS = (query_BHTK / math.sqrt(query_BHTK.shape[-1])) @ key_BHSK.transpose(-2, -1)
    if mask_B11S is not None:
        score_BHTS = score_BHTS.masked_fill(~mask_B11S, float("-inf"))
    return score_BHTS.softmax(dim=-1).to(value_BHSK.dtype) @ value_BHSK


@torch.no_grad()
def attention_weights(query_BHTK: Tensor, key_BHSK: Tensor, mask_BS: Tensor | None) -> Tensor:
    """The weights of the kernel as (B, H, T, S) in float32, whatever the precision of the model; zero rows where the mask allows no key."""
    with torch.autocast(query_BHTK.device.type, enabled=False):
        scores = scores_by_head if query_BHTK.device.type == "cpu" else scores_at_once
        score_HBTS = scores(query_BHTK.float(), key_BHSK.float())
        if mask_BS is None:
            return score_HBTS.softmax(dim=-1).transpose(0, 1)
        mask_B1S = mask_BS[:, None, :]
        lowest = torch.finfo(score_HBTS.dtype).min
        return (score_HBTS.masked_fill(~mask_B1S, lowest).softmax(dim=-1) * mask_B1S).transpose(0, 1)


def scores_at_once(query_BHTK: Tensor, key_BHSK: Tensor) -> Tensor:
    """``q k^T / sqrt(K)``, heads first: (H, B, T, S)."""
    return (query_BHTK.transpose(0, 1) / math.sqrt(query_BHTK.shape[-1])) @ key_BHSK.permute(1, 0, 3, 2)


def scores_by_head(query_BHTK: Tensor, key_BHSK: Tensor) -> Tensor:
    """The same, for the CPU: there one product over examples and heads first copies all keys, which takes longer than the product itself
    where queries are few."""
    batch, heads, num_queries, width = query_BHTK.shape
    score_HBTS = query_BHTK.new_empty(heads, batch, num_queries, key_BHSK.shape[2])
    for score_BTS, query_BTK, key_BSK in zip(score_HBTS.unbind(0), query_BHTK.unbind(1), key_BHSK.unbind(1), strict=True):
        torch.baddbmm(score_BTS, query_BTK, key_BSK.transpose(1, 2), beta=0, alpha=1 / math.sqrt(width), out=score_BTS)
    return score_HBTS
