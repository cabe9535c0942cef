"""One modality against itself: two views of a picture, several captions of a picture.

B pictures, C captions, E width of the embedding, V = 2B views. Embeddings have length 1.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from insight.errors import InputError
from insight.losses.logits import check_temperature, cosine, same_picture


def image_views(image_embedding: Tensor, view_embedding: Tensor, image_id: Tensor, temperature: float = 0.1) -> Tensor:
    """Two views of a picture find each other among all views: NT-Xent, equation 1 of https://arxiv.org/abs/2002.05709.

    Other copies of the same picture in the batch are neither positives nor negatives. A batch of one picture gives 0.

    Args:
        image_embedding: (B, E)
        view_embedding: (B, E), another view of the same pictures.
        image_id: (B,)
        temperature: Divides the cosine.

    Raises:
        InputError: ``temperature`` is not above 0.
    """
    check_temperature(temperature)
    views_VE, rows = torch.cat([image_embedding.float(), view_embedding.float()]), len(image_embedding)
    logits_VV = cosine(views_VE, views_VE) / temperature
    id_V, row_V = torch.cat([image_id, image_id]), torch.arange(2 * rows, device=image_id.device)
    partner_V = (row_V + rows) % (2 * rows)
    ignored_VV = (id_V[:, None] == id_V[None, :]) & (row_V[None, :] != partner_V[:, None])
    return F.cross_entropy(logits_VV.masked_fill(ignored_VV, -math.inf), partner_V)


def caption_pairs(text_embedding: Tensor, caption_image_id: Tensor, temperature: float = 0.1) -> Tensor:
    """Captions of one picture find each other among all captions: L_out, equation 2 of https://arxiv.org/abs/2004.11362.

    Captions that have no other caption of their picture in the batch only serve as negatives.

    Args:
        text_embedding: (C, E)
        caption_image_id: (C,)
        temperature: Divides the cosine.

    Raises:
        InputError: no picture of the batch has two captions, or ``temperature`` is not above 0.
    """
    check_temperature(temperature)
    if len(caption_image_id.unique()) == len(caption_image_id):
        raise InputError("caption_pairs: no picture of this batch has two captions; set the stage's data.captions_per_image to 2 or more")
    return same_picture(cosine(text_embedding, text_embedding) / temperature, caption_image_id)
