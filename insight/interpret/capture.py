"""What a model looks at in a few pictures, as plain arrays (named in ``maps.py``).

B examples, H heads, T text tokens, N image tokens (row 0 = class token).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from insight.data.batch import ImageTextBatch, LabelledBatch
from insight.data.images import denormalise
from insight.errors import InputError
from insight.interpret.maps import BoxedPhrase, Example, WordSpan
from insight.interpret.record import attention_layers, record_attention, unknown_layer
from insight.interpret.rollout import rollout
from insight.interpret.untouched import evaluating
from insight.models.classifier import ImageClassifier
from insight.models.cross_attention import CrossAttentionMultiModalTransformer
from insight.models.multimodal import MultiModalTransformer

LARGEST_PICTURE = 144  # pixels a side
POOL = "image.pool.attend.attention"


def image_layers(model: MultiModalTransformer | ImageClassifier) -> list[str]:
    """Module paths of the image tower's attention layers, the first first."""
    return [name for name in attention_layers(model) if name.startswith("image.blocks.")]


def image_attentions(model: MultiModalTransformer | ImageClassifier) -> list[str]:
    """The same, and the attention by which the tower pools, where it does so."""
    return [*image_layers(model), *([POOL] if POOL in attention_layers(model) else [])]


def shown_layers(model: MultiModalTransformer | ImageClassifier, layers: Collection[str] | None) -> tuple[str, ...]:
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
    crossings = [name for name in attention_layers(model) if name.startswith("fusion.") and name.endswith("cross_attention")]
    with evaluating(model), record_attention(model, [*image_attentions(model), *crossings]) as maps:
        if isinstance(model, CrossAttentionMultiModalTransformer):
            output = model(image_B3HW, tokens_BT, mask_BT)
            model.fuse(output.text.tokens, mask_BT, output.image.tokens)
        else:
            model.encode_image(image_B3HW)
    found = _of_tower(model, maps) if image_layers(model) else {}
    found.update({f"words/{name}": maps[name].mean(dim=1) for name in reversed(crossings)})
    found.update({f"heads/{name}": maps[name] for name in reversed(crossings)})
    return _as_arrays(image_B3HW, found, model.image.num_prefix)


def capture_classes(model: ImageClassifier, image_B3HW: Tensor) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The same of a classifier, and the probability of each class (B, K)."""
    with evaluating(model), record_attention(model, image_attentions(model)) as maps:
        logits_BK = model(image_B3HW).logits
    return _as_arrays(image_B3HW, _of_tower(model, maps), model.image.num_prefix), logits_BK.float().softmax(dim=-1).cpu().numpy()


def _of_tower(model: MultiModalTransformer | ImageClassifier, maps: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rollout, and what the class token reads in each layer, the last one first; of a tower that pools otherwise, what it pools reads."""
    towers = image_layers(model)
    if not towers:
        return {}
    if POOL in maps:
        read_BN = maps[POOL].mean(dim=1)[:, 0]
    else:
        read_BN = model.image.pool.readout(maps[towers[-1]][:, 0])
    found = {"rollout": (read_BN[:, None] @ rollout([maps[name] for name in towers]))[:, 0]}
    return found | {f"class/{name}": (read_BN[:, None, None] @ maps[name])[:, :, 0] for name in reversed(towers)}


def _as_arrays(image_B3HW: Tensor, found: Mapping[str, Tensor], num_prefix: int) -> dict[str, np.ndarray]:
    """Over the class token and the patches; where there is no class token, it gets zero."""
    arrays = {name: F.pad(tensor, (1 - num_prefix, 0)).half().cpu().numpy() for name, tensor in found.items()}
    return {"picture": shown_pictures(image_B3HW).cpu().numpy(), **arrays}


def shown_pictures(image_B3HW: Tensor, largest: int = LARGEST_PICTURE) -> Tensor:
    """(B, height, width, 3) uint8, at most ``largest`` pixels a side: enough to draw on, small enough to keep."""
    picture_B3HW = denormalise(image_B3HW.float())
    if picture_B3HW.shape[-1] > largest:
        picture_B3HW = F.interpolate(picture_B3HW, size=(largest, largest), mode="bilinear", antialias=True)
    return (picture_B3HW.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)


def labelled_examples(batch: LabelledBatch, classes: Sequence[str], probability_BK: np.ndarray) -> tuple[Example, ...]:
    """The probe's facts for a classifier: where captions stand, the true class and the one that the model names."""
    named = [f"the model names {classes[int(row.argmax())]} ({float(row.max()):.0%})" for row in probability_BK]
    return tuple(
        Example(filename, f"{classes[label]}; {said}")
        for filename, label, said in zip(batch.filenames, batch.label.tolist(), named, strict=True)
    )


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
