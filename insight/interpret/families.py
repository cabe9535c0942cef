"""The kinds of models that can be explained: each says how one row gets one score. A new kind is one class here.

B pictures, C captions, R rows that are explained (each a picture, a text, or a pair), H and W pixels, T text tokens, D width,
N = 1 + patches image tokens (row 0 = class token), g patches per side.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from insight.errors import InputError
from insight.models.cross_attention import CrossAttentionMultiModalTransformer
from insight.models.multimodal import MultiModalTransformer
from insight.models.vision_transformer import VisionOutput, VisionTransformer


@dataclasses.dataclass(frozen=True)
class Target:
    """What is explained, R rows.

    Args:
        picture: (R,) rows of ``batch.image``.
        index: (R,) what each is scored against: rows of ``batch.tokens`` (image-text models), outputs of the head (a classifier).
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

    x_RND: Tensor  # the embeddings that it starts from
    mask_RN: Tensor | None
    blocks: nn.ModuleList
    layers: tuple[str, ...]  # paths of the blocks' attentions
    norm: nn.LayerNorm
    readout_RN: Tensor  # weights of the final tokens
    projection: nn.Linear | None  # without bias; None = the embedding is what is read out


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
    def read_image(self, image_RND: Tensor, mask_RN: Tensor | None = None) -> Tensor:
        """What ``meet`` takes of the picture, (R, ...). Unless a family says more: all of it, and the score is left to ``meet``."""
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


class DualEncoder(Family):
    """Score: the logit ``scale * cosine`` of a picture and a caption (without the bias of the sigmoid loss, a constant)."""

    name = "dual encoder"
    meets_for_free = True
    model: MultiModalTransformer

    def __init__(self, model: MultiModalTransformer) -> None:
        self.model = model
        self.grid = model.image.grid_size

    def rows(self, batch: Any, target: Target | None) -> tuple[Rows, Target]:
        """``batch``: an ImageTextBatch. None = every caption with its own picture."""
        if target is None:
            target = Target(batch.caption_row, torch.arange(len(batch.tokens)))
        weight = self.model.image_projection.weight
        picture_R, caption_R = checked(target, ("picture", len(batch.image)), ("caption", len(batch.tokens)))
        mask_RT = batch.token_mask[caption_R].to(weight.device)
        if not mask_RT.any(dim=-1).all():
            row = int((~mask_RT.any(dim=-1)).nonzero()[0])
            raise InputError(f"caption {int(caption_R[row])} has no token to read: its mask is all zeros")
        tokens_RT = batch.tokens[caption_R].to(weight.device)
        return Rows(batch.image[picture_R].to(weight), tokens_RT, mask_RT, None), Target(picture_R, caption_R)

    def embed_image(self, pixels_R3HW: Tensor) -> Tensor:
        return self.model.image.embedding(pixels_R3HW)

    def embed_text(self, tokens_RT: Tensor) -> Tensor:
        return self.model.text.embedding(tokens_RT)

    def read_image(self, image_RND: Tensor, mask_RN: Tensor | None = None) -> Tensor:
        """(R, E), length 1."""
        return self.model.project_image(self.model.image.read(image_RND, mask_RN)).embedding

    def read_text(self, text_RTD: Tensor, mask_RT: Tensor) -> Tensor:
        """(R, E), length 1."""
        return self.model.project_text(self.model.text.read(text_RTD, mask_RT)).embedding

    def meet(self, inputs: Inputs) -> Tensor:
        image_RE, text_RE, _, _ = both(inputs)
        return self.logit(image_RE, text_RE)

    def score(self, inputs: Inputs) -> Tensor:
        image_RND, text_RTD, image_mask_RN, mask_RT = both(inputs)
        read = {"image_RND": self.read_image(image_RND, image_mask_RN), "text_RTD": self.read_text(text_RTD, mask_RT)}
        return self.meet(inputs._replace(**read))

    def logit(self, image_RE: Tensor, text_RE: Tensor) -> Tensor:
        """(R,)"""
        return self.model.scale.detach().float() * (image_RE * text_RE).sum(dim=-1)

    def layer_scores(self, inputs: Inputs) -> LayerScores:
        image_RND, text_RTD, image_mask_RN, mask_RT = both(inputs)
        images, texts = stopped(self.model.image.blocks, image_RND, image_mask_RN), stopped(self.model.text.blocks, text_RTD, mask_RT)
        text_REs = [self.model.project_text(self.model.text.finish(x_RTD, mask_RT)).embedding for x_RTD in texts]
        means = [VisionOutput(x_RND, self.model.image.norm(x_RND.mean(dim=1))) for x_RND in images]
        image_REs = [self.model.project_image(output).embedding for output in means]
        image_RE = self.model.project_image(self.model.image.finish(images[-1])).embedding.detach()
        text_RE = text_REs[-1].detach()
        return LayerScores(
            self.logit(image_RE, text_RE),
            [self.logit(one_RE, text_RE) for one_RE in image_REs],
            [self.logit(image_RE, one_RE) for one_RE in text_REs],
        )

    def tower(self, inputs: Inputs, side: str) -> Tower:
        image_RND, text_RTD, image_mask_RN, mask_RT = both(inputs)
        model, flow = self.model, self.flow
        if side == "image":
            return Tower(
                image_RND, image_mask_RN, model.image.blocks, flow.image, model.image.norm, class_token(image_RND), model.image_projection
            )
        if side == "text":
            return Tower(text_RTD, mask_RT, model.text.blocks, flow.text, model.text.norm, mean_of(mask_RT), model.text_projection)
        return super().tower(inputs, side)

    def directions(self, inputs: Inputs) -> dict[str, Tensor]:
        """The other side's embedding; the own length is taken as it is."""
        image_RND, text_RTD, image_mask_RN, mask_RT = both(inputs)
        image_RE = self.model.image_projection(self.model.image.read(image_RND, image_mask_RN).pooled).float()
        text_RE = self.model.text_projection(self.model.text.read(text_RTD, mask_RT).pooled).float()
        lengths_R1 = image_RE.norm(dim=-1, keepdim=True) * text_RE.norm(dim=-1, keepdim=True)
        factor_R1 = self.model.scale.float() / lengths_R1.clamp(min=1e-12)
        return {"image": factor_R1 * text_RE, "text": factor_R1 * image_RE}

    @property
    def flow(self) -> Flow:
        return Flow(
            tuple(f"image.blocks.{index}.attention" for index in range(len(self.model.image.blocks))),
            tuple(f"text.blocks.{index}.attention" for index in range(len(self.model.text.blocks))),
        )

    def readout(self, inputs: Inputs) -> Readout:
        """The class token, and the mean of the real text tokens."""
        image_RND, _, _, mask_RT = both(inputs)
        return Readout(class_token(image_RND), mean_of(mask_RT))


class CrossAttention(DualEncoder):
    """Score: the log-odds of the matching head, "this caption belongs to this picture" over "it does not"."""

    name = "cross-attention"
    meets_for_free = False
    model: CrossAttentionMultiModalTransformer

    def read_image(self, image_RND: Tensor, mask_RN: Tensor | None = None) -> Tensor:
        """(R, N, D)"""
        return self.model.image.read(image_RND, mask_RN).tokens

    def read_text(self, text_RTD: Tensor, mask_RT: Tensor) -> Tensor:
        """(R, T, D)"""
        return self.model.text.read(text_RTD, mask_RT).tokens

    def meet(self, inputs: Inputs) -> Tensor:
        image_RND, text_RTD, image_mask_RN, mask_RT = both(inputs)
        logits_R2 = self.model.match(text_RTD, mask_RT, image_RND, image_mask_RN).float()
        return logits_R2[:, 1] - logits_R2[:, 0]

    def layer_scores(self, inputs: Inputs) -> LayerScores:
        return Family.layer_scores(self, inputs)  # a tower's tokens are scored by the fusion, never by themselves

    def directions(self, inputs: Inputs) -> dict[str, Tensor]:
        return Family.directions(self, inputs)

    @property
    def flow(self) -> Flow:
        fusion = tuple((f"fusion.{index}.attention", f"fusion.{index}.cross_attention") for index in range(len(self.model.fusion)))
        return super().flow._replace(fusion=fusion)

    def readout(self, inputs: Inputs) -> Readout:
        """The mean of the real text tokens, which have read the image."""
        return super().readout(inputs)._replace(image_RN=None)


class Classifier(Family):
    """Score: one output of ``head`` over the pooled picture: the logit of a class, or any other scalar that a head computes.

    Args:
        head: (R, D) -> (R, outputs).
    """

    name = "classifier"
    meets_for_free = True

    def __init__(self, vision: VisionTransformer, head: nn.Module) -> None:
        self.vision, self.head = vision, head
        self.model = nn.ModuleDict({"image": vision, "head": head})
        self.grid = vision.grid_size

    def rows(self, batch: Any, target: Target | None) -> tuple[Rows, Target]:
        """``batch``: anything with ``image`` (B, 3, H, W). None = each picture's highest output."""
        position = self.vision.embedding.position
        if target is None:
            logits_BK = self.head(self.vision(batch.image.to(position)).pooled)
            target = Target(torch.arange(len(batch.image)), logits_BK.argmax(dim=-1))
        num_outputs = self.head(position[0, :1]).shape[-1]
        picture_R, index_R = checked(target, ("picture", len(batch.image)), ("output", num_outputs))
        return Rows(batch.image[picture_R].to(position), None, None, index_R.to(position.device)), Target(picture_R, index_R)

    def embed_image(self, pixels_R3HW: Tensor) -> Tensor:
        return self.vision.embedding(pixels_R3HW)

    def embed_text(self, tokens_RT: Tensor) -> Tensor:
        raise Lacks(f"a {self.name} reads no text")

    def read_image(self, image_RND: Tensor, mask_RN: Tensor | None = None) -> Tensor:
        """(R, D)"""
        return self.vision.read(image_RND, mask_RN).pooled

    def meet(self, inputs: Inputs) -> Tensor:
        assert inputs.image_RND is not None and inputs.index_R is not None, "rows() gave both"
        return self.logit(inputs.image_RND, inputs.index_R)

    def score(self, inputs: Inputs) -> Tensor:
        assert inputs.image_RND is not None, "rows() gave it"
        return self.meet(inputs._replace(image_RND=self.read_image(inputs.image_RND, inputs.image_mask_RN)))

    def logit(self, pooled_RD: Tensor, index_R: Tensor) -> Tensor:
        """(R,)"""
        return self.head(pooled_RD).float().gather(1, index_R[:, None])[:, 0]

    def layer_scores(self, inputs: Inputs) -> LayerScores:
        assert inputs.image_RND is not None and inputs.index_R is not None, "rows() gave both"
        layers = stopped(self.vision.blocks, inputs.image_RND, inputs.image_mask_RN)
        score_R = self.logit(self.vision.finish(layers[-1]).pooled.detach(), inputs.index_R)
        return LayerScores(score_R, [self.logit(self.vision.norm(x_RND.mean(dim=1)), inputs.index_R) for x_RND in layers], [])

    def tower(self, inputs: Inputs, side: str) -> Tower:
        if side != "image" or inputs.image_RND is None:
            return super().tower(inputs, side)
        image_RND, vision = inputs.image_RND, self.vision
        return Tower(image_RND, inputs.image_mask_RN, vision.blocks, self.flow.image, vision.norm, class_token(image_RND), None)

    def directions(self, inputs: Inputs) -> dict[str, Tensor]:
        """The head's row, if the head is one linear layer."""
        if not isinstance(self.head, nn.Linear):
            raise Lacks(f"the head of this {self.name} is a {type(self.head).__name__}, not one linear layer: the score is no product")
        assert inputs.index_R is not None, "rows() gave it"
        return {"image": self.head.weight[inputs.index_R].float()}

    @property
    def flow(self) -> Flow:
        return Flow(tuple(f"image.blocks.{index}.attention" for index in range(len(self.vision.blocks))))

    def readout(self, inputs: Inputs) -> Readout:
        assert inputs.image_RND is not None, "rows() gave it"
        return Readout(class_token(inputs.image_RND), None)


def family_of(model: nn.Module | Family) -> Family:
    """
    Raises:
        InputError: no family explains such a model.
    """
    if isinstance(model, Family):
        return model
    if isinstance(model, CrossAttentionMultiModalTransformer):
        return CrossAttention(model)
    if isinstance(model, MultiModalTransformer):
        return DualEncoder(model)
    if isinstance(model, VisionTransformer):
        raise InputError("a VisionTransformer alone has no score to explain: give Classifier(model, head)")
    raise InputError(
        f"cannot explain a {type(model).__name__}: give a MultiModalTransformer, a CrossAttentionMultiModalTransformer, "
        "or a Family, e.g. Classifier(model, head)"
    )


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


def both(inputs: Inputs) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """(image, text, image mask, text mask) of an image-text model."""
    assert inputs.image_RND is not None and inputs.text_RTD is not None and inputs.text_mask_RT is not None, "rows() gave them"
    return inputs.image_RND, inputs.text_RTD, inputs.image_mask_RN, inputs.text_mask_RT


def stopped(blocks: nn.ModuleList, x_RND: Tensor, mask_RN: Tensor | None) -> list[Tensor]:
    """The tokens after each block, each in a graph that begins before its own block."""
    layers = []
    for block in blocks:
        x_RND = block(x_RND.detach().requires_grad_(), mask_RN)
        layers.append(x_RND)
    return layers or [x_RND]  # a tower without blocks ends with its embedding


def mean_of(mask_RT: Tensor) -> Tensor:
    """(R, T): even weight on the real tokens."""
    return mask_RT.float() / mask_RT.sum(dim=-1, keepdim=True)


def class_token(image_RND: Tensor) -> Tensor:
    """(R, N): all weight on row 0."""
    weight_RN = torch.zeros(image_RND.shape[:2], device=image_RND.device)
    weight_RN[:, 0] = 1
    return weight_RN
