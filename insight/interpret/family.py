"""What every method of explanation knows of a model: how one row gets one score, and what it passes on the way.

B pictures, C captions, R rows that are explained (each a picture, a text, or a pair), H and W pixels, T text tokens, D width,
N = 1 + patches image tokens (row 0 = class token), E width of an embedding.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from insight.errors import InputError
from insight.nn.position import Rotation


@dataclasses.dataclass(frozen=True)
class Target:
    """What is explained, R rows.

    Args:
        picture: (R,) rows of ``batch.image``; of ``batch.tokens`` for a language model.
        index: (R,) what each is scored against: rows of ``batch.tokens`` (image-text models), outputs of the head (a classifier), tokens
            of the vocabulary (a language model).
    """

    picture: Tensor | Sequence[int]
    index: Tensor | Sequence[int]


class Rows(NamedTuple):
    """What the model is given, row by row; None = this family reads no such thing."""

    pixels_R3HW: Tensor | None
    tokens_RT: Tensor | None
    text_mask_RT: Tensor | None  # True = a real token
    index_R: Tensor | None  # output of a head


class Inputs(NamedTuple):
    """The same after the embeddings. A score is a function of these alone: methods change them, take gradients to them, or leave parts out.

    Any number of rows: n variants of the R rows make n * R rows. ``image_RND`` may hold fewer patches than the picture has.
    """

    image_RND: Tensor | None  # with positions; row 0 = class token
    text_RTD: Tensor | None  # with positions
    image_mask_RN: Tensor | None = None  # True = may be read; None = all
    text_mask_RT: Tensor | None = None
    index_R: Tensor | None = None


class Flow(NamedTuple):
    """Module paths of the attentions, in the order in which they run."""

    image: tuple[str, ...] = ()  # self-attention of the image tower
    text: tuple[str, ...] = ()  # self-attention of the text tower
    fusion: tuple[tuple[str, str], ...] = ()  # (self-attention of the text, text reads image)
    closed: bool = False  # a tower is an encoder of another library, whose attention nobody records


class Readout(NamedTuple):
    """Which final tokens make up what is scored: weights that sum to 1; None = no token of this kind is read out."""

    image_RN: Tensor | None
    text_RT: Tensor | None


class LayerScores(NamedTuple):
    """Scores if the towers ended after one of their layers, the first layer first: read out by the mean of its tokens.

    The graph of each begins before its own block, so that all gradients together cost one pass back."""

    score_R: Tensor  # of the whole model
    image: list[Tensor]  # (R,) per layer of the image tower
    text: list[Tensor]


class Tower(NamedTuple):
    """One tower as a sum: what ``heads.py`` takes apart."""

    x_RND: Tensor  # what its first block is given
    mask_RN: Tensor | None
    blocks: nn.ModuleList
    layers: tuple[str, ...]  # paths of the blocks' attentions
    norm: nn.LayerNorm | nn.RMSNorm
    readout_RN: Tensor  # weights of the final tokens
    projection: nn.Linear | None  # without bias; None = the embedding is what is read out
    turn: Rotation | None = None  # of queries and keys, where positions are rotary


class Lacks(InputError):
    """A family has no such thing as the method needs."""


class Family(ABC):
    """One kind of model. ``model`` holds every module that takes part; the paths in ``flow`` are paths in it."""

    name: ClassVar[str]  # in messages, and in the README's table
    model: nn.Module
    grid: int | None  # patches per side; None = reads no picture
    meets_for_free: ClassVar[bool] = False  # ``meet`` costs nothing beside ``read_image`` and ``read_text``

    @abstractmethod
    def rows(self, batch: Any, target: Target | None) -> tuple[Rows, Target]:
        """Check the target and gather its rows, on the model's device and in its precision. None = what the family says is usual.

        Raises:
            InputError: an index out of range, a caption without a token.
        """

    @abstractmethod
    def embed_image(self, pixels_R3HW: Tensor) -> Tensor:
        """(R, N, D)

        Raises:
            Lacks: reads no picture.
        """

    @abstractmethod
    def embed_text(self, tokens_RT: Tensor) -> Tensor:
        """(R, T, D)

        Raises:
            Lacks: reads no text.
        """

    @abstractmethod
    def score(self, inputs: Inputs) -> Tensor:
        """(R,) float32: each from its own row alone."""

    # the same score in two steps, for methods that leave parts out: each side is read once, however many variants of the other it meets
    def read_image(self, image_RND: Tensor, mask_RN: Tensor | None = None, place_RN: Tensor | None = None) -> Tensor:
        """What ``meet`` takes of the picture, (R, ...). Unless a family says more: all of it, and the score is left to ``meet``.

        ``place_RN``: which tokens of the whole picture these are, where some are left out.
        """
        return image_RND

    def read_text(self, text_RTD: Tensor, mask_RT: Tensor) -> Tensor:
        """What ``meet`` takes of the text, (R, ...)."""
        return text_RTD

    def meet(self, inputs: Inputs) -> Tensor:
        """``score``, where ``image_RND`` and ``text_RTD`` are what ``read_image`` and ``read_text`` returned."""
        return self.score(inputs)

    @property
    @abstractmethod
    def flow(self) -> Flow: ...

    @abstractmethod
    def readout(self, inputs: Inputs) -> Readout: ...

    def layer_scores(self, inputs: Inputs) -> LayerScores:
        """What each layer of the towers alone would score.

        Raises:
            Lacks: a layer of this family has no score of its own.
        """
        raise Lacks(f"no single layer of a {self.name} model has a score of its own: use a method that needs the whole score alone")

    def tower(self, inputs: Inputs, side: str) -> Tower:
        """``side``: image or text.

        Raises:
            Lacks: no such tower.
        """
        raise Lacks(f"a {self.name} model has no {side} tower that ends in an embedding")

    def directions(self, inputs: Inputs) -> dict[str, Tensor]:
        """By side, (R, E): the score is the product of this and the tower's embedding before it is scaled to length one (plus a constant).

        Raises:
            Lacks: the score is no such product.
        """
        raise Lacks(f"the score of a {self.name} model is no product of an embedding and a direction")

    def embed(self, rows: Rows) -> Inputs:
        image_RND = None if rows.pixels_R3HW is None else self.embed_image(rows.pixels_R3HW)
        text_RTD = None if rows.tokens_RT is None else self.embed_text(rows.tokens_RT)
        return Inputs(image_RND, text_RTD, text_mask_RT=rows.text_mask_RT, index_R=rows.index_R)


def checked(target: Target, *ranges: tuple[str, int]) -> list[Tensor]:
    """The target's rows as (R,) int64 on the CPU, each within its (name, count).

    Raises:
        InputError: none, unequal numbers, or an index out of range.
    """
    columns = [torch.as_tensor(column).cpu() for column in (target.picture, target.index)]
    for column, (name, count) in zip(columns, ranges, strict=True):
        if column.ndim != 1 or len(column) == 0 or column.dtype not in (torch.int64, torch.int32):
            raise InputError(
                f"target: {name} must be one or more whole numbers in a row, but is {column.dtype} of shape {tuple(column.shape)}"
            )
        if len(column) != len(columns[0]):
            raise InputError(f"target: {len(columns[0])} rows of {ranges[0][0]} but {len(column)} of {name}: give one for each row")
        wrong = ((column < 0) | (column >= count)).nonzero()
        if len(wrong):
            row = int(wrong[0])
            raise InputError(f"target: {name} {int(column[row])} in row {row} is out of range: there are {count}, 0 to {count - 1}")
    return [column.long() for column in columns]
