"""Look at attention without touching it. B batch, H heads, T queries, S keys, K width of one head."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from insight.errors import InputError
from insight.nn.attention import Attention, Listener, attention_weights


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
    known = attention_layers(model)
    for name in layers or ():
        if name not in known:
            raise InputError(unknown_layer(name, known))
    chosen = known if layers is None else {name: known[name] for name in layers}
    maps: dict[str, Tensor] = {}
    listening: list[tuple[Attention, Listener]] = []
    try:
        for name, layer in chosen.items():
            listener = _recorder(name, maps)
            layer.tap.listeners.append(listener)
            listening.append((layer, listener))
        yield maps
    finally:
        for layer, listener in listening:
            layer.tap.listeners.remove(listener)


def unknown_layer(name: str, known: Collection[str]) -> str:
    """What to tell somebody who named a layer that is not there."""
    close = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean '{close[0]}'?" if close else ""
    return f"'{name}' is no attention layer of this model.{hint} Known: {', '.join(known)}"


def _recorder(name: str, maps: dict[str, Tensor]) -> Listener:
    def listen(query_BHTK: Tensor, key_BHSK: Tensor, mask_BS: Tensor | None) -> None:
        if name in maps:
            raise InputError(f"attention '{name}' was called twice in one record_attention(): open one context per call of the model")
        maps[name] = attention_weights(query_BHTK.detach(), key_BHSK.detach(), mask_BS)

    return listen
