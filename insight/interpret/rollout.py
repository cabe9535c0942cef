"""Attention rollout. B batch, H heads, N tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def rollout(weights: Sequence[Tensor]) -> Tensor:
    """What every output token draws from every input token, if values only ever were mixed by attention.

    https://arxiv.org/abs/2005.00928, equation 1 and section 3: with ``A_l`` the mean over heads of layer l and half of each token
    kept by the residual, ``R_l = (A_l + I) / 2 @ R_(l-1)``, ``R_0 = I``. It knows nothing of what the values hold, so it says where
    information may have come from, not what mattered.

    Args:
        weights: (B, H, N, N) per layer, the first layer first.

    Returns:
        (B, N, N), rows sum to 1.
    """
    if not weights:
        raise ValueError("rollout needs the weights of at least one layer, got none")
    batch, _, num_tokens, _ = weights[0].shape
    identity_NN = torch.eye(num_tokens, device=weights[0].device)
    rolled_BNN = identity_NN.expand(batch, -1, -1)
    for weight_BHNN in weights:
        rolled_BNN = (weight_BHNN.float().mean(dim=1) + identity_NN) / 2 @ rolled_BNN
    return rolled_BNN
