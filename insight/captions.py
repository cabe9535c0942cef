"""Captions of pictures by a model with a decoder. B pictures, N image tokens, D width."""

from __future__ import annotations

from torch import Tensor

from insight.data.text import END, START, Tokenizer
from insight.generation import beam_search, generate
from insight.models.cross_attention import CrossAttentionMultiModalTransformer


def write_captions(
    model: CrossAttentionMultiModalTransformer,
    tokenizer: Tokenizer,
    image_tokens_BND: Tensor,
    beams: int = 1,
    max_new_tokens: int | None = None,
) -> list[str]:
    """A caption for each picture.

    Args:
        image_tokens_BND: From ``model.encode_image``.
        beams: Candidates of the search; 1 = greedy.
        max_new_tokens: Most tokens of a caption, the end included; None: as many as the decoder can hold.

    Raises:
        InputError: a model without a decoder, ``beams`` below 1, or more tokens than the context holds.
    """
    reader = model.captions_of(image_tokens_BND, copies=max(1, beams))
    room = reader.context_length - 1 if max_new_tokens is None else max_new_tokens
    prompts = [[START]] * len(image_tokens_BND)
    if beams == 1:
        found = generate(reader, prompts, room, END, device=image_tokens_BND.device)
    else:
        found = beam_search(reader, prompts, room, END, beams, device=image_tokens_BND.device)
    return [tokenizer.decode(tokens) for tokens in found.tokens]
