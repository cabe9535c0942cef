"""Why a causal language model names a token: the kind of model for ``explain``.

R rows (a text and a token that might follow it), T text tokens, D width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from insight.errors import InputError
from insight.interpret.family import Family, Flow, Inputs, Lacks, LayerScores, Readout, Rows, Target, Tower, checked
from insight.models.language_model import LanguageModel


class Language(Family):
    """Score: the logit of a token as the next one after a text.

    Methods that leave parts out need ``segments=0, words=True``; a text without its last words is read out at the last that is left.
    """

    name = "language model"
    model: LanguageModel
    grid = None

    def __init__(self, model: LanguageModel) -> None:
        self.model = model

    def rows(self, batch: Any, target: Target | None) -> tuple[Rows, Target]:
        """``batch``: anything with ``tokens`` (C, T) and ``token_mask``, the texts so far: see ``beginnings``. ``target.picture`` are rows
        of it, ``target.index`` ids of the vocabulary; None = the most probable next token of each text."""
        weight = self.model.classes
        if target is None:
            text_C = torch.arange(len(batch.tokens))
            tokens_CT, mask_CT = self._texts(batch, text_C)
            logits_CV = self.model.name(self._last(self.model.read(self.model.embed(tokens_CT), mask_CT), mask_CT))
            target = Target(text_C, logits_CV.argmax(dim=-1))
        text_R, index_R = checked(target, ("text", len(batch.tokens)), ("token", len(weight)))
        tokens_RT, mask_RT = self._texts(batch, text_R)
        return Rows(None, tokens_RT, mask_RT, index_R.to(weight.device)), Target(text_R, index_R)

    def _texts(self, batch: Any, text_R: Tensor) -> tuple[Tensor, Tensor]:
        device = self.model.classes.device
        mask_RT = batch.token_mask[text_R].to(device)
        if not mask_RT.any(dim=-1).all():
            row = int((~mask_RT.any(dim=-1)).nonzero()[0])
            raise InputError(f"text {int(text_R[row])} has no token to read: its mask is all zeros")
        return batch.tokens[text_R].to(device), mask_RT

    def _last(self, x_RTD: Tensor, mask_RT: Tensor) -> Tensor:
        """(R, D): each text's last token."""
        return x_RTD[torch.arange(len(x_RTD), device=x_RTD.device), last_place(mask_RT)]

    def embed_image(self, pixels_R3HW: Tensor) -> Tensor:
        raise Lacks(f"a {self.name} reads no picture")

    def embed_text(self, tokens_RT: Tensor) -> Tensor:
        return self.model.embed(tokens_RT)

    def score(self, inputs: Inputs) -> Tensor:
        text_RTD, mask_RT, index_R = given(inputs)
        return self.logit(self._last(self.model.read(text_RTD, mask_RT), mask_RT), index_R)

    def logit(self, x_RD: Tensor, index_R: Tensor) -> Tensor:
        """(R,) from final tokens."""
        return (x_RD.float() * self.model.classes[index_R].float()).sum(dim=-1)

    @property
    def flow(self) -> Flow:
        return Flow(text=tuple(f"blocks.{place}.attention" for place in range(len(self.model.blocks))))

    def readout(self, inputs: Inputs) -> Readout:
        """Each text's last token."""
        return Readout(None, self._weights(given(inputs)[1]))

    def _weights(self, mask_RT: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(last_place(mask_RT), mask_RT.shape[1]).float()

    def layer_scores(self, inputs: Inputs) -> LayerScores:
        """What the final norm and the classes say of the last token after each block."""
        text_RTD, mask_RT, index_R = given(inputs)
        turn, x_RTD, scores = self.model.rotation(text_RTD, 0), self.model.dropout(text_RTD), []
        for block in self.model.blocks:
            x_RTD = block(x_RTD.detach().requires_grad_(), mask_RT, turn)
            scores.append(self.logit(self._last(self.model.norm(x_RTD), mask_RT), index_R))
        whole_R = scores[-1] if scores else self.score(inputs)
        return LayerScores(whole_R.detach(), [], scores)

    def tower(self, inputs: Inputs, side: str) -> Tower:
        if side != "text":
            return super().tower(inputs, side)
        text_RTD, mask_RT, _ = given(inputs)
        turn = self.model.rotation(text_RTD, 0)
        start_RTD, weights_RT = self.model.dropout(text_RTD), self._weights(mask_RT)
        return Tower(start_RTD, mask_RT, self.model.blocks, self.flow.text, self.model.norm, weights_RT, None, turn)

    def directions(self, inputs: Inputs) -> dict[str, Tensor]:
        """The class of the token that is explained."""
        return {"text": self.model.classes[given(inputs)[2]].float()}


def beginnings(batch: Any, length: int) -> Any:
    """The batch with no more than the first ``length`` tokens of each text: what stands at place ``length`` can then be explained.

    Args:
        batch: A NamedTuple with ``tokens`` and ``token_mask``.

    Raises:
        InputError: ``length`` is below 1.
    """
    if length < 1:
        raise InputError(f"length={length}: a text begins with at least 1 token")
    return batch._replace(tokens=batch.tokens[:, :length], token_mask=batch.token_mask[:, :length])


def last_place(mask_RT: Tensor) -> Tensor:
    """(R,): column of the last token that may be read; 0 where there is none."""
    return (mask_RT * torch.arange(mask_RT.shape[1], device=mask_RT.device)).argmax(dim=-1)


def given(inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    """(text, mask, index) of a language model."""
    assert inputs.text_RTD is not None and inputs.text_mask_RT is not None and inputs.index_R is not None, "rows() gave them"
    return inputs.text_RTD, inputs.text_mask_RT, inputs.index_R
