"""How the terms of a stage's loss are added up, where their plain sum will not do: a stage's ``balance``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from insight.errors import InputError
from insight.gather import gather


class UncertaintyWeighting(nn.Module):
    """A learnt weight for each term: ``sum of exp(-s) * term + s / 2``, s = log variance.

    Equation 10 of https://arxiv.org/abs/1705.07115 (section 3.2: with s for numerical stability), for terms that are cross-entropies.

    Args:
        terms: Names of the terms.
    """

    def __init__(self, terms: Sequence[str]) -> None:
        super().__init__()
        self.terms = tuple(terms)
        self.log_variance = nn.Parameter(torch.zeros(len(self.terms)))

    def forward(self, values: Mapping[str, Tensor]) -> Tensor:
        """The terms of this step by name, () each -> ()."""
        own = [self.terms.index(name) for name in values]
        s = self.log_variance.float()[own]
        return ((-s).exp() * torch.stack(list(values.values())).float() + s / 2).sum()

    def weights(self) -> dict[str, Tensor]:
        """What each term is multiplied by."""
        return dict(zip(self.terms, (-self.log_variance.detach()).exp(), strict=True))


class LossScaleWeighting(nn.Module):
    """Each term divided by its running mean, so that all pull alike whatever their size; the weights average 1.

    The running mean is ``decay * mean + (1 - decay) * term`` over training steps, from the first value on, and is in the checkpoint. No
    gradient flows through it. (Equal relative pull is what GradNorm, https://arxiv.org/abs/1711.02257, reaches with alpha = 0 where a
    term's gradient grows with its value; this needs no second backward pass.)

    Args:
        terms: Names of the terms, none of which may fall to 0 or below.
        decay: Of the running mean.

    Raises:
        InputError: ``decay`` out of range.
    """

    mean: Tensor

    def __init__(self, terms: Sequence[str], decay: float = 0.99) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise InputError(f"decay={decay}: must be from 0 to below 1, e.g. 0.99")
        self.terms, self.decay = tuple(terms), decay
        self.register_buffer("mean", torch.zeros(len(self.terms)))  # 0: not seen yet

    def forward(self, values: Mapping[str, Tensor]) -> Tensor:
        """The terms of this step by name, () each -> ()."""
        own, value = [self.terms.index(name) for name in values], torch.stack(list(values.values())).float()
        if self.training:
            before, now = self.mean[own], gather(value.detach().abs()[None]).mean(dim=0)  # the same on all devices
            self.mean[own] = torch.where(before > 0, self.decay * before + (1 - self.decay) * now, now)
        return (self._weight(own) * value).sum()

    def weights(self) -> dict[str, Tensor]:
        """What each term is multiplied by."""
        return dict(zip(self.terms, self._weight(list(range(len(self.terms)))), strict=True))

    def _weight(self, own: list[int]) -> Tensor:
        inverse = 1 / torch.where(self.mean[own] > 0, self.mean[own], 1.0)
        return inverse / inverse.mean()
