"""Attention. B batch, T queries, S keys, D width, H heads, K width of one head."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from insight.errors import InputError
from insight.nn.cache import KeyValueCache
from insight.nn.linear import linear
from insight.nn.position import Rotation, alibi_slopes, score_bias


class AttentionCall(NamedTuple):
    """One call of an attention's kernel, what went in and what came out, in the autograd graph if there is one.

    Queries and keys are turned already where positions are rotary; keys and values that a group of heads shares are repeated.
    """

    query_BHTK: Tensor
    key_BHSK: Tensor
    value_BHSK: Tensor
    mask_BS: Tensor | None  # True = attend
    attended_BHTK: Tensor  # zero rows where no key may be read
    bias_HTS: Tensor | None = None  # (1 or H, T, S), added to the scores; -inf = may not be read. None = nothing

    def of_queries(self, chosen: slice) -> AttentionCall:
        """The same call, seen from some of its queries."""
        bias_HTS = None if self.bias_HTS is None else self.bias_HTS[:, chosen]
        return self._replace(query_BHTK=self.query_BHTK[:, :, chosen], attended_BHTK=self.attended_BHTK[:, :, chosen], bias_HTS=bias_HTS)


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

    A query that may read no key at all reads nothing: its attended value is zero, and the output is the output bias.

    Args:
        kv_heads: Heads of keys and values, a divisor of ``heads``; None: as many.
        causal: A token reads itself and those before it. The last query stands where the last key stands.
        alibi: Scores fall with the distance of query and key, each head at its own rate.
        bias: Whether the linear maps have one.

    Raises:
        InputError: heads that do not divide.
    """

    def __init__(
        self, dim: int, heads: int, kv_heads: int | None = None, causal: bool = False, alibi: bool = False, bias: bool = True
    ) -> None:
        super().__init__()
        if heads < 1 or dim % heads:
            raise InputError(f"dim={dim} is not a multiple of heads={heads}: choose heads so that every head gets dim / heads channels")
        kv_heads = heads if kv_heads is None else kv_heads
        if kv_heads < 1 or heads % kv_heads:
            raise InputError(f"heads={heads} is not a multiple of kv_heads={kv_heads}: choose kv_heads so that each serves as many heads")
        self.heads, self.kv_heads, self.causal, self.alibi = heads, kv_heads, causal, alibi
        self.query = linear(dim, dim, bias)
        self.key_value = linear(dim, 2 * kv_heads * (dim // heads), bias)
        self.output = linear(dim, dim, bias)
        self.tap = AttentionTap()  # record_attention() listens to the kernel's calls; nobody listening costs nothing

    def forward(
        self,
        x_BTD: Tensor,
        context_BSD: Tensor,
        mask_BS: Tensor | None = None,
        row_B: Tensor | None = None,
        rotation: Rotation | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """(B, T, D), (B, S, D), True = attend (B, S) -> (B, T, D).

        Args:
            row_B: Row of the context that each row of ``x`` reads; None: its own. Keys and values of a row that several read are
                computed once, and the context may have another number of rows than ``x``. The mask is of the context's rows.
            rotation: Of the places of ``x`` and ``context``, which are then the same tokens.
            cache: What was read before; it grows by ``context``, and the mask is of all that it holds.
        """
        query_BHTK = self.query(x_BTD).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        if rotation is not None:
            query_BHTK = rotation(query_BHTK)
        if row_B is not None and mask_BS is not None:
            mask_BS = mask_BS[row_B]
        key_BHSK, value_BHSK = self._keys_and_values(context_BSD, row_B, rotation, cache)
        slopes_H = alibi_slopes(self.heads, x_BTD.device) if self.alibi else None
        bias_HTS = score_bias(query_BHTK.shape[2], key_BHSK.shape[2], self.causal, slopes_H, x_BTD.device)
        if bias_HTS is not None:
            attended_BHTK = self._attend_biased(query_BHTK, key_BHSK, value_BHSK, mask_BS, bias_HTS)
        elif mask_BS is None:
            attended_BHTK = attend(query_BHTK, key_BHSK, value_BHSK, None)
        else:
            some_key_B111 = mask_BS.any(dim=-1)[:, None, None, None]
            mask_B11S = mask_BS[:, None, None, :] | ~some_key_B111  # softmax over no keys is 0/0, in some kernels NaN: never ask for it
            attended_BHTK = attend(query_BHTK, key_BHSK, value_BHSK, mask_B11S) * some_key_B111
        self.tap(AttentionCall(query_BHTK, key_BHSK, value_BHSK, mask_BS, attended_BHTK, bias_HTS))
        return self.output(attended_BHTK.transpose(1, 2).flatten(2))

    def _keys_and_values(
        self, context_BSD: Tensor, row_B: Tensor | None, rotation: Rotation | None, cache: KeyValueCache | None
    ) -> tuple[Tensor, Tensor]:
        if cache is not None and cache.complete:
            key_BHSK, value_BHSK = cache.read()
        else:
            key_value_BSD = self.key_value(context_BSD)
            if row_B is not None:
                key_value_BSD = key_value_BSD[row_B]
            key_BHSK, value_BHSK = (part.unflatten(-1, (self.kv_heads, -1)).transpose(1, 2) for part in key_value_BSD.chunk(2, dim=-1))
            if rotation is not None:
                key_BHSK = rotation(key_BHSK)
            if cache is not None:
                key_BHSK, value_BHSK = cache.append(key_BHSK, value_BHSK)
        if self.kv_heads < self.heads:
            group = self.heads // self.kv_heads
            key_BHSK, value_BHSK = key_BHSK.repeat_interleave(group, dim=1), value_BHSK.repeat_interleave(group, dim=1)
        return key_BHSK, value_BHSK

    def _attend_biased(self, query_BHTK: Tensor, key_BHSK: Tensor, value_BHSK: Tensor, mask_BS: Tensor | None, bias_HTS: Tensor) -> Tensor:
        bias_BHTS = bias_HTS[None].to(query_BHTK.dtype)
        if mask_BS is None:
            only_causal = not self.alibi and query_BHTK.shape[2] == key_BHSK.shape[2]
            return attend(query_BHTK, key_BHSK, value_BHSK, bias_BHTS, only_causal)
        allowed_BHTS = mask_BS[:, None, None, :] & ~bias_BHTS.isneginf()
        some_key_BHT1 = allowed_BHTS.any(dim=-1, keepdim=True)
        bias_BHTS = bias_BHTS.masked_fill(~allowed_BHTS & some_key_BHT1, -math.inf)
        return attend(query_BHTK, key_BHSK, value_BHSK, bias_BHTS) * some_key_BHT1


def attend(query_BHTK: Tensor, key_BHSK: Tensor, value_BHSK: Tensor, mask_BHTS: Tensor | None, only_causal: bool = False) -> Tensor:
    """The fused kernel, except in bfloat16 on the CPU: there its backward is 3-6 times slower than the plain formula (lengths 32-197).

    Args:
        mask_BHTS: True = attend, or what is added to the scores; it need only broadcast to this shape.
        only_causal: The mask says "a token reads itself and those before it", and no more: faster kernels know this.
    """
    if query_BHTK.device.type == "cpu" and query_BHTK.dtype == torch.bfloat16:
        return attend_explicit(query_BHTK, key_BHSK, value_BHSK, mask_BHTS)
    if only_causal:
        return F.scaled_dot_product_attention(query_BHTK, key_BHSK, value_BHSK, is_causal=True)
    return F.scaled_dot_product_attention(query_BHTK, key_BHSK, value_BHSK, attn_mask=mask_BHTS)


def attend_explicit(query_BHTK: Tensor, key_BHSK: Tensor, value_BHSK: Tensor, mask_BHTS: Tensor | None) -> Tensor:
    """``softmax(q k^T / sqrt(K)) v``, step by step; the mask as of ``attend``."""
    score_BHTS = (query_BHTK / math.sqrt(query_BHTK.shape[-1])) @ key_BHSK.transpose(-2, -1)
    if mask_BHTS is not None and mask_BHTS.dtype == torch.bool:
        score_BHTS = score_BHTS.masked_fill(~mask_BHTS, float("-inf"))
    elif mask_BHTS is not None:
        score_BHTS = score_BHTS + mask_BHTS
    return score_BHTS.softmax(dim=-1).to(value_BHSK.dtype) @ value_BHSK


@torch.no_grad()
def attention_weights(query_BHTK: Tensor, key_BHSK: Tensor, mask_BS: Tensor | None, bias_HTS: Tensor | None = None) -> Tensor:
    """The weights of the kernel as (B, H, T, S) in float32, whatever the precision of the model; zero rows where no key may be read.

    Arguments as of ``AttentionCall``.
    """
    with torch.autocast(query_BHTK.device.type, enabled=False):
        scores = scores_by_head if query_BHTK.device.type == "cpu" else scores_at_once
        score_HBTS = scores(query_BHTK.float(), key_BHSK.float())
        if bias_HTS is not None:
            score_HBTS += bias_HTS[:, None]
        if mask_BS is not None:
            score_HBTS.masked_fill_(~mask_BS[:, None, :], torch.finfo(score_HBTS.dtype).min)
        torch.softmax(score_HBTS, dim=-1, out=score_HBTS)  # in place: fresh memory for whole maps costs as much as the softmax
        if mask_BS is not None:
            score_HBTS *= mask_BS[:, None, :]
        return score_HBTS.transpose(0, 1)


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
