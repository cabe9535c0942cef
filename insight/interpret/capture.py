"""What a model looks at in a few pictures, as plain arrays (named in ``maps.py``).

B examples, H heads, T text tokens, N image tokens (row 0 = class token).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from insight.data.batch import ImageTextBatch
from insight.data.images import denormalise
from insight.errors import InputError
from insight.interpret.maps import BoxedPhrase, Example, WordSpan
from insight.interpret.record import attention_layers, record_attention, unknown_layer
from insight.interpret.rollout import rollout
from insight.interpret.untouched import evaluating
from insight.models.cross_attention import CrossAttentionMultiModalTransformer
from insight.models.multimodal import MultiModalTransformer

LARGEST_PICTURE = 144  # pixels a side


def image_layers(model: MultiModalTransformer) -> list[str]:
    """Module paths of the image tower's attention layers, the first first."""
    return [name for name in attention_layers(model) if name.startswith("image.")]


def shown_layers(model: MultiModalTransformer, layers: Collection[str] | None) -> tuple[str, ...]:
    """Image layers by module path, the path of the block (``image.blocks.3``) will do; None = the last.

    Raises:
        InputError: a name is no attention layer of the image tower.
    """
    known = image_layers(model)
    if layers is None:
        return tuple(known[-1:])  # an encoder of another library has none
    found = []
    for name in layers:
        full = name if name in known else f"{name}.attention"
        if full not in known:
            raise InputError(f"layers: {unknown_layer(name, known)}")
        found.append(full)
    return tuple(found)


def capture(model: MultiModalTransformer, image_B3HW: Tensor, tokens_BT: Tensor, mask_BT: Tensor) -> dict[str, np.ndarray]:
    """One pass over B pictures with a caption each; the model is left as it was found. The most wanted arrays come first."""
    if len(image_B3HW) != len(tokens_BT):
        raise InputError(f"{len(image_B3HW)} pictures but {len(tokens_BT)} captions: capture() needs one caption for each picture")
    towers = image_layers(model)
    crossings = [name for name in attention_layers(model) if name.endswith("cross_attention")]
    with evaluating(model), record_attention(model, [*towers, *crossings]) as maps:
        if isinstance(model, CrossAttentionMultiModalTransformer):
            output = model(image_B3HW, tokens_BT, mask_BT)
            model.fuse(output.text.tokens, mask_BT, output.image.tokens)
        else:
            model.encode_image(image_B3HW)
    found: dict[str, Tensor] = {"rollout": rollout([maps[name] for name in towers])[:, 0]} if towers else {}
    found.update({f"class/{name}": maps[name][:, :, 0] for name in reversed(towers)})
    found.update({f"words/{name}": maps[name].mean(dim=1) for name in reversed(crossings)})
    found.update({f"heads/{name}": maps[name] for name in reversed(crossings)})
    arrays = {name: tensor.half().cpu().numpy() for name, tensor in found.items()}
    return {"picture": shown_pictures(image_B3HW).cpu().numpy(), **arrays}


def shown_pictures(image_B3HW: Tensor, largest: int = LARGEST_PICTURE) -> Tensor:
    """(B, height, width, 3) uint8, at most ``largest`` pixels a side: enough to draw on, small enough to keep."""
    picture_B3HW = denormalise(image_B3HW.float())
    if picture_B3HW.shape[-1] > largest:
        picture_B3HW = F.interpolate(picture_B3HW, size=(largest, largest), mode="bilinear", antialias=True)
    return (picture_B3HW.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)


def examples_of(batch: ImageTextBatch, words: Sequence[Sequence[tuple[str, int, int, Sequence[int]]]]) -> tuple[Example, ...]:
    """The probe's facts. ``words``: for every caption, (word, first character, end, token positions) as the tokenizer gives them."""
    return tuple(
        Example(
            filename=batch.filenames[int(batch.caption_row[row])],
            caption=caption,
            words=tuple(WordSpan(text, start, end, tuple(positions)) for text, start, end, positions in words[row]),
            phrases=tuple(BoxedPhrase(one.text, one.start, one.end, one.entity, one.boxes) for one in batch.phrases if one.caption == row),
        )
        for row, caption in enumerate(batch.texts)
    )
