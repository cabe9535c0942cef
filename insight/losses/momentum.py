"""Contrast with what slowly moving copies of the towers said of earlier batches.

B pictures, C captions, E width of the embedding, K places of the queue.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from insight.errors import InputError
from insight.losses.logits import LOWEST, cosine, mean_positive

NOBODY = -1  # picture of an empty place


class MomentumContrast(nn.Module):
    """InfoNCE against the keys of this batch and of a queue of earlier ones, both directions: equation 2 of
    https://arxiv.org/abs/1911.05722 for the pair of towers of https://arxiv.org/abs/2107.07651, equation 1.

    Keys come from a copy of the model that follows it: ``copy = momentum * copy + (1 - momentum) * model`` before every training step.
    Every key carries its picture, so that all keys of the own picture are positives, in the queue too. In evaluation nothing moves.
    Copy, queues and their place are in the checkpoint; the copy is not trained. A new stage begins with empty queues and a fresh copy.

    Args:
        model: The model that trains; copied.
        queue_size: Pictures, and captions, that are kept.
        momentum: Part of the copy that stays at a step.

    Raises:
        InputError: a setting out of range.
    """

    image_queue: Tensor  # (K, E)
    text_queue: Tensor  # (K, E)
    image_queue_id: Tensor  # (K,)
    text_queue_id: Tensor  # (K,)
    image_place: Tensor  # (), where the next key goes
    text_place: Tensor  # ()

    def __init__(self, model: nn.Module, queue_size: int = 4096, momentum: float = 0.995) -> None:
        super().__init__()
        if queue_size < 1:
            raise InputError(f"queue_size={queue_size}: must be at least 1, e.g. 4096")
        if not 0 <= momentum < 1:
            raise InputError(f"momentum={momentum}: must be from 0 to below 1, e.g. 0.995")
        self.queue_size, self.momentum = queue_size, momentum
        self.keys = copy.deepcopy(model).requires_grad_(False)
        width: int = model.embed_dim  # type: ignore[assignment]
        for kind in ("image", "text"):
            self.register_buffer(f"{kind}_queue", torch.zeros(queue_size, width))
            self.register_buffer(f"{kind}_queue_id", torch.full((queue_size,), NOBODY))
            self.register_buffer(f"{kind}_place", torch.zeros((), dtype=torch.int64))

    def train(self, mode: bool = True) -> MomentumContrast:
        super().train(mode)
        self.keys.eval()  # no dropout in the keys, and no statistics of their own
        return self

    def forward(
        self,
        image_embedding: Tensor,
        text_embedding: Tensor,
        image_id: Tensor,
        caption_image_id: Tensor,
        scale: Tensor,
        model: nn.Module,
        encode: Callable[[Any], tuple[Tensor, Tensor]],
    ) -> Tensor:
        """
        Args:
            image_embedding: (B, E)
            text_embedding: (C, E)
            image_id: (B,)
            caption_image_id: (C,)
            scale: (), factor of the cosine.
            model: The model that trains.
            encode: How a model encodes this batch: -> (B, E), (C, E), without gradient.
        """
        if self.training:
            self._follow(model)
        image_key, text_key = encode(self.keys)
        texts, text_ids = torch.cat([text_key, self.text_queue]), torch.cat([caption_image_id, self.text_queue_id])
        images, image_ids = torch.cat([image_key, self.image_queue]), torch.cat([image_id, self.image_queue_id])
        loss = (
            _among(image_embedding, image_id, texts, text_ids, scale) + _among(text_embedding, caption_image_id, images, image_ids, scale)
        ) / 2
        if self.training:  # after the loss has read them: nobody is his own negative
            self._keep("image", image_key, image_id)
            self._keep("text", text_key, caption_image_id)
        return loss

    @torch.no_grad()
    def _follow(self, model: nn.Module) -> None:
        for key, query in zip(self.keys.parameters(), model.parameters(), strict=True):
            key.lerp_(query.detach(), 1 - self.momentum)
        for kept, moved in zip(self.keys.buffers(), model.buffers(), strict=True):
            kept.copy_(moved)

    @torch.no_grad()
    def _keep(self, kind: str, key: Tensor, picture: Tensor) -> None:
        """Over the oldest; of more keys than there are places, the last."""
        key, picture = key[-self.queue_size :], picture[-self.queue_size :]
        place: Tensor = getattr(self, f"{kind}_place")
        rows = (place + torch.arange(len(key), device=place.device)) % self.queue_size
        queue: Tensor = getattr(self, f"{kind}_queue")
        queue.index_copy_(0, rows, key.to(queue.dtype))
        getattr(self, f"{kind}_queue_id").index_copy_(0, rows, picture)
        place.copy_((place + len(key)) % self.queue_size)


def _among(query_NE: Tensor, id_N: Tensor, key_ME: Tensor, key_id_M: Tensor, scale: Tensor) -> Tensor:
    logits_NM = (cosine(query_NE, key_ME) * scale.float()).masked_fill(key_id_M == NOBODY, LOWEST)
    return mean_positive(logits_NM, id_N[:, None] == key_id_M[None, :])
