"""Where each caption of a split finds its own picture, by the towers' embeddings. C captions, B pictures, E width of the embedding."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from insight.data.batch import ImageTextBatch
from insight.errors import InputError
from insight.interpret.untouched import untouched
from insight.metrics import DIRECTIONS, retrieval_ranks


def pair_ranks(model: nn.Module, batches: Iterable[ImageTextBatch]) -> dict[tuple[int, int], dict[str, int]]:
    """By (``image_id``, ``caption_id``): rank of the picture among all pictures for the caption (``text_to_image``), and of the best of the
    picture's captions among all captions (``image_to_text``), 1 = first.

    Args:
        model: With ``encode_image`` and ``encode_text``; it is left as it was.
        batches: The whole split, each picture with all of its captions.

    Raises:
        InputError: no batch, or an embedding that is not finite.
    """
    tower: Any = model
    device, dtype = next(model.parameters()).device, next(model.parameters()).dtype
    images, texts, image_ids, caption_ids, owners = [], [], [], [], []
    with untouched(model):
        for batch in batches:
            images.append(tower.encode_image(batch.image.to(device, dtype)).embedding.cpu())
            texts.append(tower.encode_text(batch.tokens.to(device), batch.token_mask.to(device)).embedding.cpu())
            image_ids.append(batch.image_id)
            caption_ids.append(batch.caption_id)
            owners.append(batch.image_id[batch.caption_row])
    if not images:
        raise InputError("no picture to rank: is the split empty?")
    image_id_B, owner_C = torch.cat(image_ids), torch.cat(owners)
    ranks = retrieval_ranks(torch.cat(images), torch.cat(texts), image_id_B, owner_C)
    of_picture = dict(zip(image_id_B.tolist(), ranks.image_to_text_B.tolist(), strict=True))
    pairs = zip(owner_C.tolist(), torch.cat(caption_ids).tolist(), ranks.text_to_image_C.tolist(), strict=True)
    return {(picture, caption): dict(zip(DIRECTIONS, (of_picture[picture], rank), strict=True)) for picture, caption, rank in pairs}
