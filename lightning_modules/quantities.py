"""What a loss may ask for by the name of a parameter, computed once, and only when asked.

B pictures and C captions over all devices, E width of the embedding, M pairs that are matched, N image tokens, T text tokens, D width,
V vocabulary, P hidden places of a caption; of regions: P phrases with boxes, N patches.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from insight.data.batch import ImageTextBatch
from insight.data.regions import PhraseRegions, phrase_regions_of
from insight.data.text import SPECIAL
from insight.errors import InputError
from insight.gather import count_per_device, gather, rank, world_size
from insight.interpret.record import record
from insight.losses import IGNORED, NO_NEGATIVE, hard_negatives
from insight.masking import HiddenWords, hide_words
from insight.models.cross_attention import CrossAttentionMultiModalTransformer
from insight.models.multimodal import ImageFeatures, MultiModalTransformer, TextFeatures
from insight.nn.attention import AttentionCall
from insight.nn.pool import masked_mean
from lightning_modules.staged import NamedQuantities


class Quantities(NamedQuantities):
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
    def word_logits(self) -> Tensor:
        """(B, V): by the image tower alone."""
        return gather(self._model.classify_words(self._image))

    @cached_property
    def word_counts(self) -> Tensor:
        """(B, V): tokens of the captions in the batch, special ones left out."""
        batch, vocab_size = self._batch, self._model.text.vocab_size
        place_CT = batch.caption_row[:, None] * vocab_size + batch.tokens
        counts = torch.zeros(len(batch.image_id) * vocab_size, device=batch.tokens.device)
        counts = counts.scatter_add(0, place_CT.flatten(), (batch.tokens >= len(SPECIAL)).flatten().float())
        return gather(counts.view(-1, vocab_size))

    @cached_property
    def _regions(self) -> PhraseRegions:
        return phrase_regions_of(self._batch, self._model.image.grid_size)

    @cached_property
    def region_similarity(self) -> Tensor:
        """(P, N): cosine of each phrase of this device's captions with each patch of its picture."""
        regions = self._regions
        phrase_PE = self._model.embed_phrases(self._text, regions.caption, regions.words)
        patch_BNE = self._model.embed_regions(self._image)
        return (patch_BNE[self._batch.caption_row[regions.caption]] @ phrase_PE[:, :, None])[:, :, 0]

    @cached_property
    def region_targets(self) -> Tensor:
        """(P, N) bool: the patch lies inside a box of the phrase."""
        return self._regions.inside

    @cached_property
    def region_count(self) -> Tensor:
        """(): phrases of all devices divided by the number of devices."""
        return count_per_device(self.region_targets.any(dim=1))  # at least one patch of each

    @cached_property
    def model(self) -> MultiModalTransformer:
        """The model that trains."""
        return self._model

    @cached_property
    def encode(self) -> Callable[[MultiModalTransformer], tuple[Tensor, Tensor]]:
        """How another model encodes the batch: pictures (B, E) and captions (C, E), without gradient."""

        def encode(model: MultiModalTransformer) -> tuple[Tensor, Tensor]:
            with torch.no_grad():
                image, text = model.encode_image(self._batch.image), model.encode_text(self._batch.tokens, self._batch.token_mask)
                return gather(image.embedding), gather(text.embedding)

        return encode

    @cached_property
    def _previous_embeddings(self) -> tuple[Tensor, Tensor]:
        return self.encode(self._before)

    @cached_property
    def previous_image_embedding(self) -> Tensor:
        """(B, E): by the model that the stage before left."""
        return self._previous_embeddings[0]

    @cached_property
    def previous_text_embedding(self) -> Tensor:
        """(C, E): by the model that the stage before left."""
        return self._previous_embeddings[1]

    @cached_property
    def previous_scale(self) -> Tensor:
        """(): factor of the cosine in the model that the stage before left."""
        return self._before.scale.detach()

    @property
    def _before(self) -> MultiModalTransformer:
        assert self._previous is not None, "the module keeps the previous model whenever a loss of the stage needs it"
        return self._previous


class Matched(NamedTuple):
    """Pairs that the matching head was asked about."""

    logits: Tensor  # (M, 2)
    targets: Tensor  # (M,)
    reading: AttentionCall  # of the last fusion layer


class CrossAttentionQuantities(Quantities):
    """Adds what the fusion layers compute. They are the dear part, so they read one caption of each picture, the first one of the batch,
    and may read every n-th picture only: F pictures on this device.

    Matched are each caption with its own picture, each with a hard other picture, and each picture with a hard other caption. The others
    are found among all pictures of the batch.

    Args:
        fuse_every: n.
    """

    _model: CrossAttentionMultiModalTransformer

    def __init__(
        self,
        model: CrossAttentionMultiModalTransformer,
        batch: ImageTextBatch,
        generator: torch.Generator,
        previous: MultiModalTransformer | None = None,
        fuse_every: int = 1,
    ) -> None:
        super().__init__(model, batch, generator, previous)
        self._fuse_every = fuse_every

    @cached_property
    def _first(self) -> Tensor:
        """(B,): row of each picture's first caption, on this device."""
        batch = self._batch
        return torch.searchsorted(batch.caption_row, torch.arange(len(batch.image_id), device=batch.caption_row.device))

    @cached_property
    def _fused(self) -> Tensor:
        """(F,): rows of the pictures that are fused, on this device."""
        return torch.arange(0, len(self._batch.image_id), self._fuse_every, device=self._batch.image_id.device)

    @cached_property
    def _pairs(self) -> Matched:
        """This device's share; the captions with their own pictures come first."""
        tokens_BTD, mask_BT = self._text.tokens[self._first], self._batch.token_mask[self._first]
        if world_size() > 1:  # the devices' longest captions differ
            missing = self._model.text.context_length - mask_BT.shape[1]
            tokens_BTD, mask_BT = F.pad(tokens_BTD, (0, 0, 0, missing)), F.pad(mask_BT, (0, missing))
        own = len(mask_BT)
        with torch.no_grad():
            text_BE = gather(self._text.embedding[self._first])
            similarity_BB = self.image_embedding @ text_BE.T * self.scale
            positives_BB = self.image_id[:, None] == self.image_id[None, :]
            caption_of_image_B, image_of_caption_B = hard_negatives(similarity_BB, positives_BB, self._generator)
        own_F = rank() * own + self._fused
        caption_of_image_F, image_of_caption_F = caption_of_image_B[own_F], image_of_caption_B[own_F]
        some_F = caption_of_image_F != NO_NEGATIVE  # all are, but for a batch of one picture
        all_text_BTD, all_mask_BT = gather(tokens_BTD), gather(mask_BT)
        tokens_FTD, mask_FT = tokens_BTD[self._fused], mask_BT[self._fused]
        last = f"fusion.{len(self._model.fusion) - 1}.cross_attention"
        with record(self._model, {last: lambda call: call}) as calls:
            logits_M2 = self._model.match(
                torch.cat([tokens_FTD, tokens_FTD[some_F], all_text_BTD[caption_of_image_F[some_F]]]),
                torch.cat([mask_FT, mask_FT[some_F], all_mask_BT[caption_of_image_F[some_F]]]),
                gather(self._image.tokens),
                image_row_C=torch.cat([own_F, image_of_caption_F[some_F], own_F[some_F]]),
            )
        targets_M = torch.zeros(len(logits_M2), dtype=torch.int64, device=logits_M2.device)
        targets_M[: len(own_F)] = 1
        return Matched(logits_M2, targets_M, calls[last])

    @cached_property
    def match_logits(self) -> Tensor:
        """(M, 2)"""
        return self._pairs.logits

    @cached_property
    def match_targets(self) -> Tensor:
        """(M,): 1 = the pair belongs together."""
        return self._pairs.targets

    @cached_property
    def _fused_regions(self) -> PhraseRegions:
        """Phrases of the captions that are fused; ``caption`` is the row among those."""
        regions, caption_F = self._regions, self._first[self._fused]
        found_PF = regions.caption[:, None] == caption_F
        some_P = found_PF.any(dim=1)
        return PhraseRegions(found_PF[some_P].int().argmax(dim=1), regions.words[some_P], regions.inside[some_P])

    @cached_property
    def fused_region_logits(self) -> Tensor:
        """(P, N): logarithm of what a phrase's words read from each patch of their own picture in the last fusion layer, mean over heads
        and words."""
        call, regions, num_patches = self._pairs.reading, self._fused_regions, self._model.image.grid_size**2
        query_FHTK, key_FHSK = (of[: len(self._fused)].float() for of in (call.query_BHTK, call.key_BHSK))
        score_FHTS = query_FHTK @ key_FHSK.transpose(-2, -1) / query_FHTK.shape[-1] ** 0.5
        weight_FTN = score_FHTS.softmax(dim=-1).mean(dim=1)[:, : regions.words.shape[1], -num_patches:]
        read_PN = masked_mean(weight_FTN[regions.caption], regions.words)
        return read_PN.clamp(min=torch.finfo(read_PN.dtype).tiny).log()

    @cached_property
    def fused_region_targets(self) -> Tensor:
        """(P, N) bool: the patch lies inside a box of the phrase."""
        return self._fused_regions.inside

    @cached_property
    def fused_region_count(self) -> Tensor:
        """(): phrases of the fused captions of all devices divided by the number of devices."""
        return count_per_device(self.fused_region_targets.any(dim=1))

    @cached_property
    def _lots(self) -> Tensor:
        """(B, T): which places of each picture's captions are hidden; equal for every number of devices."""
        own, context_length = len(self._batch.image_id), self._model.text.context_length
        lots = torch.rand(own * world_size(), context_length, generator=self._generator)
        return lots[rank() * own :][:own, : self._batch.tokens.shape[1]].to(self._batch.tokens.device)

    @cached_property
    def _hidden(self) -> HiddenWords:
        """The fused captions with a quarter of their words hidden."""
        return hide_words(self._batch.tokens[self._first[self._fused]], self._lots[self._fused])

    @cached_property
    def masked_logits(self) -> Tensor:
        """(F, P, V): what stands at the hidden places of this device's captions."""
        mask_FT, hidden = self._batch.token_mask[self._first[self._fused]], self._hidden
        text_FTD = self._model.encode_text(hidden.tokens, mask_FT).tokens
        return self._model.name_words(self._model.fuse(text_FTD, mask_FT, self._image.tokens[self._fused]), hidden.position)

    @cached_property
    def masked_targets(self) -> Tensor:
        """(F, P)"""
        return self._hidden.target

    @cached_property
    def masked_count(self) -> Tensor:
        """(): hidden words of all devices divided by the number of devices."""
        return count_per_device(self.masked_targets != IGNORED)

    @cached_property
    def _hidden_alone(self) -> HiddenWords:
        """All captions with a quarter of their words hidden."""
        return hide_words(self._batch.tokens, self._lots[self._batch.caption_row])

    @cached_property
    def text_masked_logits(self) -> Tensor:
        """(C, P, V): what stands at the hidden places of this device's captions, by the text tower alone."""
        hidden = self._hidden_alone
        return self._model.name_words(self._model.encode_text(hidden.tokens, self._batch.token_mask).tokens, hidden.position)

    @cached_property
    def text_masked_targets(self) -> Tensor:
        """(C, P)"""
        return self._hidden_alone.target

    @cached_property
    def text_masked_count(self) -> Tensor:
        """(): hidden words of all devices divided by the number of devices."""
        return count_per_device(self.text_masked_targets != IGNORED)

    @cached_property
    def caption_logits(self) -> Tensor:
        """(C, T, V): what the decoder writes after each token of this device's captions, their last place left out."""
        batch = self._batch
        return self._model.write(batch.tokens[:, :-1], self._image.tokens, image_row_C=batch.caption_row).logits

    @cached_property
    def caption_targets(self) -> Tensor:
        """(C, T): the next token."""
        batch = self._batch
        return batch.tokens[:, 1:].masked_fill(~batch.token_mask[:, 1:], IGNORED)

    @cached_property
    def caption_count(self) -> Tensor:
        """(): tokens to write on all devices divided by the number of devices."""
        return count_per_device(self.caption_targets != IGNORED)
