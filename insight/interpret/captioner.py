"""Why a captioner writes a word: the kind of model for ``explain``, and what its decoder reads while it writes.

R rows (a picture, a caption so far, and a token that might follow it), B pictures, C captions, T text tokens, N = 1 + patches image tokens,
D width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from insight.data.batch import ImageTextBatch
from insight.errors import InputError
from insight.interpret.families import both, grid_of
from insight.interpret.family import Family, Flow, Inputs, Readout, Rows, Target, checked
from insight.interpret.record import record_attention
from insight.interpret.untouched import evaluating
from insight.models.cross_attention import CrossAttentionMultiModalTransformer
from insight.models.encoder_decoder import Decoder
from insight.models.tower import ImageTower


class Captioner(Family):
    """Score: the logit of a token as the next one of a caption. ``pairs``: what each token so far reads in the picture.

    A caption without its last words is read out at the last that is left.
    """

    name = "captioner"
    model: CrossAttentionMultiModalTransformer

    def __init__(self, model: CrossAttentionMultiModalTransformer) -> None:
        if model.decoder is None:
            raise InputError("this model writes no captions: build it with decoder_depth of 1 or more (model=captioner)")
        self.model, self.decoder = model, model.decoder
        self.grid = grid_of(model.image)

    def rows(self, batch: Any, target: Target | None) -> tuple[Rows, Target]:
        """``batch``: an ImageTextBatch of captions so far (see ``written_so_far``), each of its own picture. ``target.picture`` are rows of
        the captions, ``target.index`` ids of the vocabulary; None = the likeliest next token of each caption."""
        weight = self.decoder.head.weight
        if target is None:
            caption_C = torch.arange(len(batch.tokens))
            pixels_C3HW, tokens_CT, mask_CT = self._given(batch, caption_C)
            logits_CTV = self.model.write(tokens_CT, self.model.image(pixels_C3HW).tokens).logits
            target = Target(caption_C, last_of(logits_CTV, mask_CT).argmax(dim=-1))
        caption_R, index_R = checked(target, ("caption", len(batch.tokens)), ("token", len(weight)))
        pixels_R3HW, tokens_RT, mask_RT = self._given(batch, caption_R)
        return Rows(pixels_R3HW, tokens_RT, mask_RT, index_R.to(weight.device)), Target(caption_R, index_R)

    def _given(self, batch: Any, caption_R: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        weight = self.decoder.head.weight
        mask_RT = batch.token_mask[caption_R].to(weight.device)
        if not mask_RT.any(dim=-1).all():
            row = int((~mask_RT.any(dim=-1)).nonzero()[0])
            raise InputError(f"caption {int(caption_R[row])} has no token to read: its mask is all zeros")
        return batch.image[batch.caption_row[caption_R]].to(weight), batch.tokens[caption_R].to(weight.device), mask_RT

    def embed_image(self, pixels_R3HW: Tensor) -> Tensor:
        return self.model.image.embed(pixels_R3HW)

    def embed_text(self, tokens_RT: Tensor) -> Tensor:
        return self.decoder.embedding(tokens_RT)

    def read_image(self, image_RND: Tensor, mask_RN: Tensor | None = None, place_RN: Tensor | None = None) -> Tensor:
        """(R, N, D)"""
        return self.model.image.read(image_RND, mask_RN, place_RN).tokens

    def meet(self, inputs: Inputs) -> Tensor:
        image_RND, text_RTD, image_mask_RN, mask_RT = both(inputs)
        assert inputs.index_R is not None, "rows() gave it"
        logits_RTV = self.decoder.read(text_RTD, self.model.image_adapter(image_RND), mask_RT, image_mask_RN).logits
        return last_of(logits_RTV, mask_RT).float().gather(1, inputs.index_R[:, None])[:, 0]

    def score(self, inputs: Inputs) -> Tensor:
        image_RND, _, image_mask_RN, _ = both(inputs)
        return self.meet(inputs._replace(image_RND=self.read_image(image_RND, image_mask_RN)))

    @property
    def flow(self) -> Flow:
        blocks = [f"decoder.blocks.{place}" for place in range(len(self.decoder.blocks))]
        return Flow(
            tuple(f"image.blocks.{place}.attention" for place in range(len(self.model.image.blocks))),
            fusion=tuple((f"{block}.attention", f"{block}.cross_attention") for block in blocks),
            closed=isinstance(self.model.image, ImageTower),
        )

    def readout(self, inputs: Inputs) -> Readout:
        """Each caption's last token."""
        mask_RT = both(inputs)[-1]
        return Readout(None, torch.nn.functional.one_hot(last_place(mask_RT), mask_RT.shape[1]).float())


def last_place(mask_RT: Tensor) -> Tensor:
    """(R,): column of the last token that may be read; 0 where there is none."""
    return (mask_RT * torch.arange(mask_RT.shape[1], device=mask_RT.device)).argmax(dim=-1)


def last_of(x_RTX: Tensor, mask_RT: Tensor) -> Tensor:
    """(R, X): at each row's last token."""
    return x_RTX[torch.arange(len(x_RTX), device=x_RTX.device), last_place(mask_RT)]


def written_so_far(batch: ImageTextBatch) -> tuple[ImageTextBatch, Target, Tensor]:
    """Every beginning of every caption, and the token that follows it: one row for each token but the first.

    Returns:
        The batch, the target, and where each row's token stands: (caption, column) of the given batch, (R, 2).
    """
    place_R2 = batch.token_mask[:, 1:].nonzero() + torch.tensor([0, 1], device=batch.tokens.device)
    caption_R, column_R = place_R2.unbind(dim=1)
    mask_RT = torch.arange(batch.tokens.shape[1], device=batch.tokens.device) < column_R[:, None]
    beginnings = batch._replace(
        tokens=batch.tokens[caption_R],
        token_mask=mask_RT,
        caption_row=batch.caption_row[caption_R],
        caption_id=batch.caption_id[caption_R],
        texts=tuple(batch.texts[caption] for caption in caption_R.tolist()),
        phrases=(),
    )
    return beginnings, Target(torch.arange(len(place_R2)), batch.tokens[caption_R, column_R]), place_R2


def read_while_writing(
    model: CrossAttentionMultiModalTransformer, image_B3HW: Tensor, tokens_BT: Tensor, layer: int = -1
) -> tuple[str, Tensor]:
    """What a block of the decoder paid to the picture while each token was written, mean over heads: its name, and (B, T, N).

    Row t is the attention of the token before, from which token t was named; the first token was given, its row is zero. The model is left
    as it was found.
    """
    decoder = model.decoder
    assert isinstance(decoder, Decoder), "only a captioner is asked"
    name = f"decoder.blocks.{range(len(decoder.blocks))[layer]}.cross_attention"
    with torch.no_grad(), evaluating(model), record_attention(model, [name]) as maps:
        model.write(tokens_BT, model.encode_image(image_B3HW).tokens)
    return name, torch.nn.functional.pad(maps[name].mean(dim=1)[:, :-1], (0, 0, 1, 0))
