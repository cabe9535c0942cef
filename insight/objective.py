"""The loss of a stage: its terms by name, what belongs to them, their weights through the stage, and their sum."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from insight.errors import InputError
from insight.stages import Call, LossTerm, load

BoundLoss = tuple[Callable[..., Tensor], LossTerm, list[str]]  # function or class, its term, the quantities that it needs
BALANCE = "balance"


class Objective(nn.Module):
    """Terms of the loss. A loss with parameters or state is a submodule by the name of its term, what balances the terms is ``balance``:
    all of it moves with this module and is in its ``state_dict``.

    Args:
        bound: What ``insight.stages.bind_losses`` returns.
        model: What trains, for losses whose constructor asks for ``model``.
        balance: Class that turns terms into one loss, by ``terms`` (their names) and its own arguments; None: their sum.
        key: Of the stage, for messages.

    Raises:
        InputError: a setting that a loss refuses, or a term whose name is taken.
    """

    def __init__(self, bound: Mapping[str, BoundLoss], model: nn.Module, balance: Call | None = None, key: str = "") -> None:
        super().__init__()
        self.bound: dict[str, tuple[Callable[..., Tensor], LossTerm, list[str]]] = {}
        for name, (function, term, needed) in bound.items():
            made: Any = function
            if inspect.isclass(function):
                if name == BALANCE or "." in name or hasattr(self, name):
                    raise InputError(f"{key}.losses.{name}: the name is taken; call the term otherwise, e.g. my_{name.replace('.', '_')}")
                supplied = {"model": model} if "model" in inspect.signature(function).parameters else {}
                made = function(**supplied, **term.arguments)
                self.add_module(name, made)
            self.bound[name] = (made, term, needed)
        if balance is not None:
            self.add_module(BALANCE, load(balance.function, f"{key}.balance.function")(terms=list(bound), **balance.arguments))

    @property
    def needs(self) -> set[str]:
        """Quantities that any term asks for."""
        return {need for _, _, needed in self.bound.values() for need in needed}

    def terms(self, quantities: Any, progress: float, lacking: Iterable[str] = ()) -> dict[str, Tensor]:
        """Weighted terms by name.

        Args:
            quantities: Has every quantity that is asked for as an attribute.
            progress: Through the stage, from 0 to 1. A term whose weight is 0 there is left out.
            lacking: Quantities that there are not: terms that need one are left out.
        """
        lacking, terms = set(lacking), {}
        for name, (function, term, needed) in self.bound.items():
            weight = term.weight_at(progress)
            if not weight or lacking & set(needed):
                continue
            settings = {} if isinstance(function, nn.Module) else term.arguments
            terms[name] = weight * function(**{need: getattr(quantities, need) for need in needed}, **settings)
        return terms

    def total(self, terms: Mapping[str, Tensor]) -> Tensor:
        """One loss of weighted terms: ()."""
        balance = self._modules.get(BALANCE)
        return torch.stack(list(terms.values())).sum() if balance is None else balance(terms)

    def changing_weights(self, progress: float) -> dict[str, Tensor | float]:
        """What each term is multiplied by, of those for which it changes during the stage."""
        balance = self._modules.get(BALANCE)
        learnt: dict[str, Any] = balance.weights() if balance is not None else {}  # type: ignore[operator]
        return {
            name: term.weight_at(progress) * learnt.get(name, 1.0)
            for name, (_, term, _) in self.bound.items()
            if balance is not None or term.schedule is not None
        }
