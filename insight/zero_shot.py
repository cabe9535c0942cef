"""Classification by captions alone (https://arxiv.org/abs/2103.00020, section 3.1). B pictures, K classes, P prompts, E embedding."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from insight.data.text import Tokenizer
from insight.errors import InputError
from insight.models.multimodal import MultiModalTransformer


@torch.no_grad()
def class_embeddings(model: MultiModalTransformer, tokenizer: Tokenizer, names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """The mean over the templates of a class's caption embeddings, of length 1 again: (K, E) (section 3.1.4: an ensemble over the
    embeddings, so that it costs no more than one prompt).

    Args:
        names: Of the classes.
        templates: Captions with ``{}`` where the name goes, e.g. ``a photo of a {}.``

    Raises:
        InputError: no class, no template, or a template without ``{}``.
    """
    if not names or not templates:
        raise InputError(f"{len(names)} class names and {len(templates)} templates: give at least one of each")
    for template in templates:
        if "{}" not in template:
            raise InputError(f"template '{template}' has no {{}} where the name of the class goes")
    device = model.logit_scale.device
    rows = []
    for name in names:
        tokens_PT, mask_PT = tokenizer.encode([template.replace("{}", name) for template in templates], model.text.context_length)
        rows.append(model.encode_text(tokens_PT.to(device), mask_PT.to(device)).embedding.mean(dim=0))
    return F.normalize(torch.stack(rows), dim=-1)


def zero_shot_logits(image_BE: Tensor, class_KE: Tensor, scale: Tensor | float = 1.0) -> Tensor:
    """Scaled cosines (B, K) of pictures' and classes' embeddings, both of length 1; their softmax is over the classes."""
    return scale * image_BE @ class_KE.T
