"""The dual encoder with fusion layers as a LightningModule: retrieval by the towers, re-ranking by the matching head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from insight.data.batch import ImageTextBatch
from insight.errors import InputError
from insight.metrics import Ranks, rerank, retrieval_ranks, retrieval_scores
from insight.models.cross_attention import CrossAttentionMultiModalTransformer
from insight.models.multimodal import ImageFeatures, TextFeatures
from insight.models.tower import ImageTower, TextTower
from insight.nn.settings import PLAIN, BlockSettings
from insight.objective import BoundLoss
from insight.stages import Stage
from lightning_modules.base import ImageTextModule
from lightning_modules.quantities import CrossAttentionQuantities

PAIRS_AT_ONCE = 1024
Features = TypeVar("Features", ImageFeatures, TextFeatures)


class CrossAttentionModule(ImageTextModule):
    """Trains a CrossAttentionMultiModalTransformer. Retrieval uses the uni-modal embeddings; re-ranking has its own names.

    Args:
        vocab_size: Rows of the token embedding; at least the tokenizer's size.
        image_size: Side of the square picture, in pixels.
        patch_size: Side of a patch, in pixels; divides ``image_size``.
        context_length: Most tokens of a caption.
        dim: Width of both towers and of the fusion.
        image_depth: Blocks of the image tower.
        text_depth: Blocks of the text tower.
        heads: Attention heads; divides ``dim``.
        embed_dim: Width of the common embedding.
        dropout: Dropout in the blocks.
        fusion_depth: Blocks in which text reads the image.
        rerank_top_k: Candidates of each query that the matching head re-orders in the test; 0 = no re-ranking.
        fuse_every: In training the fusion reads every n-th picture of a batch; 1 = all.
        block: How the blocks of both towers and of the fusion are made.
        image: The image tower, instead of one of our own: a class of ``insight.towers``; ``patch_size``, ``image_depth`` are then unused.
        text: The text tower, instead of one of our own; ``text_depth`` is then unused.
        decoder_depth: Blocks of the decoder that writes captions; 0 = there is none.
    """

    quantities = CrossAttentionQuantities
    model: CrossAttentionMultiModalTransformer

    def __init__(
        self,
        vocab_size: int,
        image_size: int = 64,
        patch_size: int = 8,
        context_length: int = 32,
        dim: int = 128,
        image_depth: int = 4,
        text_depth: int = 4,
        heads: int = 4,
        embed_dim: int = 128,
        dropout: float = 0.0,
        fusion_depth: int = 2,
        rerank_top_k: int = 16,
        fuse_every: int = 1,
        block: BlockSettings = PLAIN,
        image: ImageTower | None = None,
        text: TextTower | None = None,
        decoder_depth: int = 0,
    ) -> None:
        if rerank_top_k < 0:
            raise InputError(f"model.init_args.rerank_top_k={rerank_top_k}: must be 0 (none) or more")
        if fuse_every < 1:
            raise InputError(f"model.init_args.fuse_every={fuse_every}: must be 1 (every picture) or more")
        super().__init__(
            CrossAttentionMultiModalTransformer(
                vocab_size,
                image_size,
                patch_size,
                context_length,
                dim,
                image_depth,
                text_depth,
                heads,
                embed_dim,
                dropout=dropout,
                fusion_depth=fusion_depth,
                block=block,
                image=image,
                text=text,
                decoder_depth=decoder_depth,
            )
        )
        self.rerank_top_k, self.fuse_every = rerank_top_k, fuse_every

    def check_stage(self, name: str, stage: Stage) -> dict[str, BoundLoss]:
        bound = super().check_stage(name, stage)
        for loss, (_, _, needed) in bound.items():
            if self.model.decoder is None and "caption_logits" in needed:
                raise InputError(f"stages.{name}.losses.{loss}: this model has no decoder; set model.init_args.decoder_depth=2")
        return bound

    def quantities_of(self, batch: ImageTextBatch, generator: torch.Generator) -> CrossAttentionQuantities:
        return CrossAttentionQuantities(self.model, batch, generator, self._before, self.fuse_every)

    def on_test_epoch_start(self) -> None:
        super().on_test_epoch_start()
        self._test_batches: list[ImageTextBatch] = []

    def test_step(self, batch: ImageTextBatch, batch_idx: int) -> None:
        super().test_step(batch, batch_idx)
        if self.rerank_top_k:
            self._test_batches.append(batch)

    def on_test_epoch_end(self) -> None:
        super().on_test_epoch_end()
        if self.rerank_top_k:
            self.log_dict({f"test/reranked_{name}": value for name, value in self.reranked().items()})
            self.log_dict({name.replace("test/", "test/reranked_"): value for name, value in self.matched_hard_negatives().items()})
        self._test_batches = []

    def reranked(self) -> dict[str, float]:
        """Retrieval scores after the pair scores have re-ordered the top candidates of the towers, both directions."""
        return retrieval_scores(SplitFeatures.of(self.model, self._test_batches).reranked(self.model, self.rerank_top_k))

    def matched_hard_negatives(self) -> dict[str, float]:
        """Hard negatives told apart by the pair scores."""
        names = [name for batch in self._test_batches for name in batch.filenames]
        pixels = dict(zip(names, torch.cat([batch.image for batch in self._test_batches]), strict=True))

        def match(filenames: list[str], texts: list[str]) -> Tensor:
            tokens, mask = self.trainer.datamodule.tokenizer.encode(texts, self.model.text.context_length)  # type: ignore[attr-defined]
            tokens, mask = tokens.to(self.device), mask.to(self.device)
            scores = []
            for start in range(0, len(texts), PAIRS_AT_ONCE):
                part = slice(start, start + PAIRS_AT_ONCE)
                image = self.model.encode_image(torch.stack([pixels[name] for name in filenames[part]]))
                scores.append(self.model.pair_scores(self.model.encode_text(tokens[part], mask[part]), mask[part], image))
            return torch.cat(scores)

        return self.hard_negative_scores(match)


class SplitFeatures(NamedTuple):
    """Of all pictures and captions of a split, as re-ranking needs them. B pictures, C captions, T tokens of the longest."""

    image: ImageFeatures
    text: TextFeatures
    mask_CT: Tensor
    image_id_B: Tensor
    caption_id_C: Tensor
    caption_image_id_C: Tensor

    @classmethod
    def of(cls, model: CrossAttentionMultiModalTransformer, batches: Sequence[ImageTextBatch]) -> SplitFeatures:
        images = [model.encode_image(batch.image) for batch in batches]
        longest = max(batch.tokens.shape[1] for batch in batches)
        texts, masks = [], []
        for batch in batches:
            missing, features = longest - batch.tokens.shape[1], model.encode_text(batch.tokens, batch.token_mask)
            texts.append(features._replace(tokens=F.pad(features.tokens, (0, 0, 0, missing))))
            masks.append(F.pad(batch.token_mask, (0, missing)))
        return cls(
            ImageFeatures(*map(torch.cat, zip(*images, strict=True))),
            TextFeatures(*map(torch.cat, zip(*texts, strict=True))),
            torch.cat(masks),
            torch.cat([batch.image_id for batch in batches]),
            torch.cat([batch.caption_id for batch in batches]),
            torch.cat([batch.image_id[batch.caption_row] for batch in batches]),
        )

    def ranks(self) -> Ranks:
        """By the towers alone."""
        return retrieval_ranks(self.image.embedding, self.text.embedding, self.image_id_B, self.caption_image_id_C)

    def reranked(self, model: CrossAttentionMultiModalTransformer, k: int) -> Ranks:
        """After the pair scores have re-ordered the ``k`` best candidates of the towers, both directions."""

        def match(image_rows: Tensor, caption_rows: Tensor) -> Tensor:
            return model.pair_scores(_rows(self.text, caption_rows), self.mask_CT[caption_rows], _rows(self.image, image_rows))

        scores_BC = self.image.embedding @ self.text.embedding.T
        return rerank(scores_BC, self.image_id_B, self.caption_image_id_C, match, k, PAIRS_AT_ONCE)


def _rows(features: Features, rows: Tensor) -> Features:
    return type(features)(*(tensor[rows] for tensor in features))
