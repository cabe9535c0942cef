"""From the vectors of a sequence to one. C sequences, T tokens, D width."""

from __future__ import annotations

from torch import Tensor


def masked_mean(x_CTD: Tensor, mask_CT: Tensor) -> Tensor:
    """Mean over the tokens whose mask is True; zero where there is none. Summed in float32, returned in x's precision."""
    weight_CT1 = mask_CT[..., None].float()
    return ((x_CTD.float() * weight_CT1).sum(dim=1) / weight_CT1.sum(dim=1).clamp(min=1.0)).to(x_CTD.dtype)
