"""Look at attention without touching it. B batch, H heads, T queries, S keys, K width of one head."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

from torch import Tensor, nn

from insight.errors import InputError
from insight.nn.attention import Attention, AttentionCall, Listener, attention_weights

Recorded = TypeVar("Recorded")


def attention_layers(model: nn.Module) -> dict[str, Attention]:
    """Every attention of the model by its module path, e.g. ``image.blocks.3.attention`` or ``fusion.1.cross_attention``."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Attention)}


@contextmanager
def record_attention(model: nn.Module, layers: Collection[str] | None = None) -> Iterator[dict[str, Tensor]]:
    """Weights by module path, (B, H, T, S) in float32 without gradient, of every attention that is called inside the context.

    They are computed beside the model's kernel from the same queries, keys and mask, so the outputs are bit-identical with and without
    a recording. A layer may be called once: of two calls the first map would be lost, so open one context per call.

    >>> import torch
    >>> layer = Attention(dim=8, heads=2)
    >>> x = torch.randn(1, 3, 8)
    >>> with record_attention(layer) as maps:
    ...     output = layer(x, x)
    >>> maps[""].shape
    torch.Size([1, 2, 3, 3])

    Args:
        layers: Module paths to record; None = all.

    Raises:
        InputError: a name in ``layers`` is no attention of the model; inside the context, a layer is called for the second time.
    """
    with record(model, dict.fromkeys(attention_layers(model) if layers is None else layers, weights_of)) as maps:
        yield maps


@contextmanager
def record(model: nn.Module, keep: Mapping[str, Callable[[AttentionCall], Recorded]]) -> Iterator[dict[str, Recorded]]:
    """By module path, what each attention's function makes of its call, in the order of the calls; as ``record_attention``, which raises
    the same."""
    known = attention_layers(model)
    for name in keep:
        if name not in known:
            raise InputError(unknown_layer(name, known))
    found: dict[str, Recorded] = {}
    listening: list[tuple[Attention, Listener]] = []
    try:
        for name, function in keep.items():
            listener = _recorder(name, found, function)
            known[name].tap.listeners.append(listener)
            listening.append((known[name], listener))
        yield found
    finally:
        for layer, listener in listening:
            layer.tap.listeners.remove(listener)


def weights_of(call: AttentionCall) -> Tensor:
    """(B, H, T, S) in float32, without gradient."""
    return attention_weights(call.query_BHTK.detach(), call.key_BHSK.detach(), call.mask_BS, call.bias_HTS)


def unknown_layer(name: str, known: Collection[str]) -> str:
    """What to tell somebody who named a layer that is not there."""
    close = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean '{close[0]}'?" if close else ""
    return f"'{name}' is no attention layer of this model.{hint} Known: {', '.join(known)}"


def _recorder(name: str, found: dict[str, Recorded], keep: Callable[[AttentionCall], Recorded]) -> Listener:
    def listen(call: AttentionCall) -> None:
        if name in found:
            raise InputError(f"attention '{name}' was called twice in one record_attention(): open one context per call of the model")
        found[name] = keep(call)

    return listen
