"""What a loss may ask for by the name of a parameter, computed once, and only when asked.

B pictures and C captions over all devices, E width of the embedding, M pairs that are matched, N image tokens, T text tokens, D width.
"""

from __future__ import annotations

from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from insight.data.batch import ImageTextBatch
from insight.errors import InputError
from insight.gather import gather, rank, world_size
from insight.losses import NO_NEGATIVE, hard_negatives
from insight.models.cross_attention import CrossAttentionMultiModalTransformer
from insight.models.multimodal import ImageFeatures, MultiModalTransformer, TextFeatures


class Quantities:
    """Quantities of a dual encoder. Embeddings are gathered over devices, gradients included, before a loss sees them.

    Args:
        model: The model that trains.
        batch: This device's share of the batch.
        generator: CPU generator for what is drawn; equal on all devices.
        previous: The model as the stage before left it, for consistency terms.
    """

    def __init__(
        self,
        model: MultiModalTransformer,
        batch: ImageTextBatch,
        generator: torch.Generator,
        previous: MultiModalTransformer | None = None,
    ) -> None:
        self._model, self._batch, self._generator, self._previous = model, batch, generator, previous

    @classmethod
    def names(cls) -> set[str]:
        """Every quantity that a loss may name."""
        return {name for kind in cls.__mro__ for name, value in vars(kind).items() if isinstance(value, cached_property) and name[0] != "_"}

    @cached_property
    def _image(self) -> ImageFeatures:
        return self._model.encode_image(self._batch.image)

    @cached_property
    def _text(self) -> TextFeatures:
        return self._model.encode_text(self._batch.tokens, self._batch.token_mask)

    @cached_property
    def image_embedding(self) -> Tensor:
        """(B, E)"""
        return gather(self._image.embedding)

    @cached_property
    def text_embedding(self) -> Tensor:
        """(C, E)"""
        return gather(self._text.embedding)

    @cached_property
    def view_embedding(self) -> Tensor:
        """(B, E): the pictures' second view."""
        if self._batch.view is None:
            raise InputError("a loss asks for view_embedding, but the batch has one view: set the stage's data.views=2")
        return gather(self._model.encode_image(self._batch.view).embedding)

    @cached_property
    def scale(self) -> Tensor:
        """(): factor of the cosine."""
        return self._model.scale

    @cached_property
    def bias(self) -> Tensor:
        """()"""
        return self._model.logit_bias

    @cached_property
    def image_id(self) -> Tensor:
        """(B,)"""
        return gather(self._batch.image_id)

    @cached_property
    def caption_image_id(self) -> Tensor:
        """(C,)"""
        return gather(self._batch.image_id[self._batch.caption_row])

    @cached_property
    def positives(self) -> Tensor:
        """(B, C) bool: the caption is one of the picture's."""
        return self.image_id[:, None] == self.caption_image_id[None, :]

    @cached_property
    def previous_image_embedding(self) -> Tensor:
        """(B, E): by the model that the stage before left."""
        with torch.no_grad():
            return gather(self._before.encode_image(self._batch.image).embedding)

    @cached_property
    def previous_text_embedding(self) -> Tensor:
        """(C, E): by the model that the stage before left."""
        with torch.no_grad():
            return gather(self._before.encode_text(self._batch.tokens, self._batch.token_mask).embedding)

    @property
    def _before(self) -> MultiModalTransformer:
        assert self._previous is not None, "the module keeps the previous model whenever a loss of the stage needs it"
        return self._previous


class CrossAttentionQuantities(Quantities):
    """Adds the matched pairs: each caption with its own picture, with a hard other picture, and each picture with a hard other caption."""

    _model: CrossAttentionMultiModalTransformer

    @cached_property
    def _pairs(self) -> tuple[Tensor, Tensor]:
        """Logits (M, 2) and targets (M,) of this device's share."""
        batch, (tokens_BND, _), (tokens_CTD, _), mask_CT = self._batch, self._image, self._text, self._batch.token_mask
        if world_size() > 1:  # the devices' longest captions differ
            missing = self._model.text.embedding.context_length - tokens_CTD.shape[1]
            tokens_CTD, mask_CT = F.pad(tokens_CTD, (0, 0, 0, missing)), F.pad(mask_CT, (0, missing))
        own_images, own_captions = len(batch.image_id), len(batch.caption_id)
        with torch.no_grad():
            similarity_BC = self.image_embedding.detach() @ self.text_embedding.detach().T * self.scale.detach()
            caption_of_image_B, image_of_caption_C = hard_negatives(similarity_BC, self.positives, self._generator)
        caption_of_image_B = caption_of_image_B[rank() * own_images :][:own_images]
        image_of_caption_C = image_of_caption_C[rank() * own_captions :][:own_captions]
        some_B, some_C = caption_of_image_B != NO_NEGATIVE, image_of_caption_C != NO_NEGATIVE  # all are, but for a batch of one picture
        caption_of_image_B, image_of_caption_C = caption_of_image_B[some_B], image_of_caption_C[some_C]
        all_images_BND, all_text_CTD, all_mask_CT = gather(tokens_BND), gather(tokens_CTD), gather(mask_CT)
        logits_M2 = self._model.match(
            torch.cat([tokens_CTD, tokens_CTD[some_C], all_text_CTD[caption_of_image_B]]),
            torch.cat([mask_CT, mask_CT[some_C], all_mask_CT[caption_of_image_B]]),
            torch.cat([tokens_BND[batch.caption_row], all_images_BND[image_of_caption_C], tokens_BND[some_B]]),
        )
        targets_M = torch.zeros(len(logits_M2), dtype=torch.int64, device=logits_M2.device)
        targets_M[:own_captions] = 1
        return logits_M2, targets_M

    @cached_property
    def match_logits(self) -> Tensor:
        """(M, 2)"""
        return self._pairs[0]

    @cached_property
    def match_targets(self) -> Tensor:
        """(M,): 1 = the pair belongs together."""
        return self._pairs[1]
