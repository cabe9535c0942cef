"""The kinds of models that can be explained. A new kind is one class here, and two lines in ``family_of``.

B pictures, C captions, R rows that are explained (each a picture, a text, or a pair), H and W pixels, T text tokens, D width,
N = 1 + patches image tokens (row 0 = class token), E width of an embedding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from insight.errors import InputError
from insight.interpret.family import Family, Flow, Inputs, Lacks, LayerScores, Readout, Rows, Target, Tower, checked
from insight.interpret.language import Language
from insight.models.cross_attention import CrossAttentionMultiModalTransformer
from insight.models.language_model import LanguageModel
from insight.models.multimodal import MultiModalTransformer
from insight.models.text_transformer import TextTransformer
from insight.models.tower import ImageTower, TextTower
from insight.models.vision_transformer import VisionOutput, VisionTransformer

AnyTower = VisionTransformer | TextTransformer | ImageTower | TextTower


class ImageText(Family):
    """What families of picture and caption share: two towers."""

    model: MultiModalTransformer

    def __init__(self, model: MultiModalTransformer) -> None:
        self.model = model
        self.grid = grid_of(model.image)

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
        return self.model.image.embed(pixels_R3HW)

    def embed_text(self, tokens_RT: Tensor) -> Tensor:
        return self.model.text.embed(tokens_RT)

    def score(self, inputs: Inputs) -> Tensor:
        image_RND, text_RTD, image_mask_RN, mask_RT = both(inputs)
        read = {"image_RND": self.read_image(image_RND, image_mask_RN), "text_RTD": self.read_text(text_RTD, mask_RT)}
        return self.meet(inputs._replace(**read))

    def tower(self, inputs: Inputs, side: str) -> Tower:
        image_RND, text_RTD, image_mask_RN, mask_RT = both(inputs)
        model, flow = self.model, self.flow
        if side == "image":
            return tower_of(model.image, image_RND, image_mask_RN, flow.image, model.image_projection)
        if side == "text":
            return tower_of(model.text, text_RTD, mask_RT, flow.text, model.text_projection)
        return super().tower(inputs, side)

    @property
    def flow(self) -> Flow:
        return Flow(
            tuple(f"image.blocks.{index}.attention" for index in range(len(self.model.image.blocks))),
            tuple(f"text.blocks.{index}.attention" for index in range(len(self.model.text.blocks))),
            closed=isinstance(self.model.image, ImageTower) or isinstance(self.model.text, TextTower),
        )


class DualEncoder(ImageText):
    """Score: the logit ``scale * cosine`` of a picture and a caption (without the bias of the sigmoid loss, a constant)."""

    name = "dual encoder"
    meets_for_free = True

    def read_image(self, image_RND: Tensor, mask_RN: Tensor | None = None, place_RN: Tensor | None = None) -> Tensor:
        """(R, E), length 1."""
        return self.model.project_image(self.model.image.read(image_RND, mask_RN, place_RN)).embedding

    def read_text(self, text_RTD: Tensor, mask_RT: Tensor) -> Tensor:
        """(R, E), length 1."""
        return self.model.project_text(self.model.text.read(text_RTD, mask_RT)).embedding

    def meet(self, inputs: Inputs) -> Tensor:
        image_RE, text_RE, _, _ = both(inputs)
        return self.logit(image_RE, text_RE)

    def logit(self, image_RE: Tensor, text_RE: Tensor) -> Tensor:
        """(R,)"""
        return self.model.scale.detach().float() * (image_RE * text_RE).sum(dim=-1)

    def layer_scores(self, inputs: Inputs) -> LayerScores:
        image_RND, text_RTD, image_mask_RN, mask_RT = both(inputs)
        images, texts = stopped(self.model.image, image_RND, image_mask_RN), stopped(self.model.text, text_RTD, mask_RT)
        text_REs = [self.model.project_text(self.model.text.finish(x_RTD, mask_RT)).embedding for x_RTD in texts]
        means = [VisionOutput(x_RND, self.model.image.norm(x_RND.mean(dim=1))) for x_RND in images]
        image_REs = [self.model.project_image(output).embedding for output in means]
        image_RE = self.model.project_image(self.model.image.finish(images[-1], image_mask_RN)).embedding.detach()
        text_RE = text_REs[-1].detach()
        return LayerScores(
            self.logit(image_RE, text_RE),
            [self.logit(one_RE, text_RE) for one_RE in image_REs],
            [self.logit(image_RE, one_RE) for one_RE in text_REs],
        )

    def directions(self, inputs: Inputs) -> dict[str, Tensor]:
        """The other side's embedding; the own length is taken as it is."""
        image_RND, text_RTD, image_mask_RN, mask_RT = both(inputs)
        image_RE = self.model.image_projection(self.model.image.read(image_RND, image_mask_RN).pooled).float()
        text_RE = self.model.text_projection(self.model.text.read(text_RTD, mask_RT).pooled).float()
        lengths_R1 = image_RE.norm(dim=-1, keepdim=True) * text_RE.norm(dim=-1, keepdim=True)
        factor_R1 = self.model.scale.float() / lengths_R1.clamp(min=1e-12)
        return {"image": factor_R1 * text_RE, "text": factor_R1 * image_RE}

    def readout(self, inputs: Inputs) -> Readout:
        """What the towers pool: the class token, and the mean of the real text tokens, unless they are told otherwise."""
        image_RND, text_RTD, image_mask_RN, mask_RT = both(inputs)
        return Readout(pooled_of(self.model.image, image_RND, image_mask_RN), pooled_of(self.model.text, text_RTD, mask_RT))


class CrossAttention(ImageText):
    """Score: the log-odds of the matching head, "this caption belongs to this picture" over "it does not"."""

    name = "cross-attention"
    model: CrossAttentionMultiModalTransformer

    def read_image(self, image_RND: Tensor, mask_RN: Tensor | None = None, place_RN: Tensor | None = None) -> Tensor:
        """(R, N, D)"""
        return self.model.image.read(image_RND, mask_RN, place_RN).tokens

    def read_text(self, text_RTD: Tensor, mask_RT: Tensor) -> Tensor:
        """(R, T, D)"""
        return self.model.text.read(text_RTD, mask_RT).tokens

    def meet(self, inputs: Inputs) -> Tensor:
        image_RND, text_RTD, image_mask_RN, mask_RT = both(inputs)
        logits_R2 = self.model.match(text_RTD, mask_RT, image_RND, image_mask_RN).float()
        return logits_R2[:, 1] - logits_R2[:, 0]

    @property
    def flow(self) -> Flow:
        fusion = tuple((f"fusion.{index}.attention", f"fusion.{index}.cross_attention") for index in range(len(self.model.fusion)))
        return super().flow._replace(fusion=fusion)

    def readout(self, inputs: Inputs) -> Readout:
        """The mean of the real text tokens, which have read the image."""
        return Readout(None, mean_of(both(inputs)[-1]))


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
        self.grid = grid_of(vision)

    def rows(self, batch: Any, target: Target | None) -> tuple[Rows, Target]:
        """``batch``: anything with ``image`` (B, 3, H, W). None = each picture's highest output."""
        weight = next(self.vision.parameters())
        if target is None:
            logits_BK = self.head(self.vision(batch.image.to(weight)).pooled)
            target = Target(torch.arange(len(batch.image)), logits_BK.argmax(dim=-1))
        num_outputs = self.head(weight.new_zeros(1, self.vision.dim)).shape[-1]
        picture_R, index_R = checked(target, ("picture", len(batch.image)), ("output", num_outputs))
        return Rows(batch.image[picture_R].to(weight), None, None, index_R.to(weight.device)), Target(picture_R, index_R)

    def embed_image(self, pixels_R3HW: Tensor) -> Tensor:
        return self.vision.embedding(pixels_R3HW)

    def embed_text(self, tokens_RT: Tensor) -> Tensor:
        raise Lacks(f"a {self.name} reads no text")

    def read_image(self, image_RND: Tensor, mask_RN: Tensor | None = None, place_RN: Tensor | None = None) -> Tensor:
        """(R, D)"""
        return self.vision.read(image_RND, mask_RN, place_RN).pooled

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
        layers = stopped(self.vision, inputs.image_RND, inputs.image_mask_RN)
        score_R = self.logit(self.vision.finish(layers[-1], inputs.image_mask_RN).pooled.detach(), inputs.index_R)
        return LayerScores(score_R, [self.logit(self.vision.norm(x_RND.mean(dim=1)), inputs.index_R) for x_RND in layers], [])

    def tower(self, inputs: Inputs, side: str) -> Tower:
        if side != "image" or inputs.image_RND is None:
            return super().tower(inputs, side)
        return tower_of(self.vision, inputs.image_RND, inputs.image_mask_RN, self.flow.image, None)

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
        return Readout(pooled_of(self.vision, inputs.image_RND, inputs.image_mask_RN), None)


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
    if isinstance(model, LanguageModel):
        return Language(model)
    if isinstance(model, VisionTransformer):
        raise InputError("a VisionTransformer alone has no score to explain: give Classifier(model, head)")
    raise InputError(
        f"cannot explain a {type(model).__name__}: give a MultiModalTransformer, a CrossAttentionMultiModalTransformer, a LanguageModel, "
        "or a Family, e.g. Classifier(model, head)"
    )


def both(inputs: Inputs) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """(image, text, image mask, text mask) of an image-text model."""
    assert inputs.image_RND is not None and inputs.text_RTD is not None and inputs.text_mask_RT is not None, "rows() gave them"
    return inputs.image_RND, inputs.text_RTD, inputs.image_mask_RN, inputs.text_mask_RT


def grid_of(vision: VisionTransformer | ImageTower) -> int:
    """Patches per side.

    Raises:
        InputError: there is no class token; maps leave the first image token out.
    """
    if vision.num_prefix != 1:
        raise InputError(
            "cannot explain an image tower without class token: maps of patches leave out the first token. "
            "In a run leave out what explains: ~callbacks.score_card ~callbacks.drift"
        )
    return vision.grid_size


def tower_of(tower: AnyTower, x_RND: Tensor, mask_RN: Tensor | None, layers: tuple[str, ...], projection: nn.Linear | None) -> Tower:
    """From what the tower's embedding returned."""
    tower = own_blocks(tower)
    readout_RN, turn = pooled_of(tower, x_RND, mask_RN), tower.rotation(x_RND)
    return Tower(tower.start(x_RND), mask_RN, tower.blocks, layers, tower.norm, readout_RN, projection, turn)


def own_blocks(tower: AnyTower) -> VisionTransformer | TextTransformer:
    """The tower itself.

    Raises:
        Lacks: it is an encoder of another library, whose layers are not this project's.
    """
    if isinstance(tower, (ImageTower, TextTower)):
        raise Lacks(f"the layers of a {type(tower).__name__} are another library's and are not taken apart here")
    return tower


def pooled_of(tower: AnyTower, x_RND: Tensor, mask_RN: Tensor | None) -> Tensor:
    """(R, N): how much each token counts in what the tower pools.

    Raises:
        Lacks: it pools by attention.
    """
    try:
        return tower.pool.readout(x_RND, mask_RN)
    except InputError as error:
        raise Lacks(str(error)) from error


def stopped(tower: AnyTower, x_RND: Tensor, mask_RN: Tensor | None) -> list[Tensor]:
    """The tokens after each block, each in a graph that begins before its own block."""
    tower = own_blocks(tower)
    layers: list[Tensor] = []
    turn, x_RND = tower.rotation(x_RND), tower.start(x_RND)
    for block in tower.blocks:
        x_RND = block(x_RND.detach().requires_grad_(), mask_RN, turn)
        layers.append(x_RND)
    return layers or [x_RND]  # a tower without blocks ends with its embedding


def mean_of(mask_RT: Tensor) -> Tensor:
    """(R, T): even weight on the real tokens."""
    return mask_RT.float() / mask_RT.sum(dim=-1, keepdim=True)
