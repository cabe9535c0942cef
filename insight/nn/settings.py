"""How the blocks of a model are made: one set of plain values for all models."""

from __future__ import annotations

import dataclasses
from typing import Literal

from insight.errors import InputError

Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "silu", "relu"]
Position = Literal["learned", "sinusoidal", "rotary", "alibi", "none"]


@dataclasses.dataclass(frozen=True)
class BlockSettings:
    """Every block of a model, and how its tokens know their places. All blocks are pre-norm; the defaults are those of
    https://arxiv.org/abs/2010.11929.

    Args:
        kv_heads: Heads that keys and values have: groups of query heads share one (https://arxiv.org/abs/2305.13245). ``null``: as many as
            queries have; 1: one for all.
        bias: Whether the linear maps of attention and MLP have biases.
        rms_norm: RMSNorm (https://arxiv.org/abs/1910.07467) in the place of LayerNorm.
        norm_eps: Added to the variance in every norm.
        mlp_ratio: Hidden units of the MLP, as a multiple of the width.
        activation: Of the MLP; ``gelu_tanh`` is GPT-2's approximation, ``quick_gelu`` is x * sigmoid(1.702 x) of CLIP.
        gated: A second linear map multiplies the activations: with ``silu`` this is SwiGLU (https://arxiv.org/abs/2002.05202). It adds half
            of the MLP's weights, so that paper takes two thirds of the ``mlp_ratio``.
        drop_path: Chance that a sample skips a part of the last block in training (stochastic depth, https://arxiv.org/abs/1603.09382);
            earlier blocks are skipped less, in proportion to their depth, the first never.
        position: ``learned`` and ``sinusoidal`` vectors are added to the tokens (the latter: https://arxiv.org/abs/1706.03762);
            ``rotary`` turns queries and keys (https://arxiv.org/abs/2104.09864); ``alibi`` takes from a score the more the farther apart
            the two are (https://arxiv.org/abs/2108.12409), and is for texts alone.

    Raises:
        InputError: a number out of range.
    """

    kv_heads: int | None = None
    bias: bool = True
    rms_norm: bool = False
    norm_eps: float = 1e-5
    mlp_ratio: float = 4.0
    activation: Activation = "gelu"
    gated: bool = False
    drop_path: float = 0.0
    position: Position = "learned"

    def __post_init__(self) -> None:
        if self.kv_heads is not None and self.kv_heads < 1:
            raise InputError(f"block.kv_heads={self.kv_heads}: must be at least 1, or null for as many as there are heads")
        if not 0 <= self.drop_path < 1:
            raise InputError(f"block.drop_path={self.drop_path}: must be at least 0 and below 1")
        if self.norm_eps <= 0:
            raise InputError(f"block.norm_eps={self.norm_eps}: must be above 0, 1e-5 is usual")


PLAIN = BlockSettings()
