"""Where a captioner looked while it wrote: judged by the boxes of the phrases, and drawn.

B pictures with a caption each, P phrases, T text tokens, N = 1 + patches image tokens, g patches per side.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from insight.data.batch import Box, ImageTextBatch, Phrase
from insight.data.text import Tokenizer
from insight.interpret.captioner import read_while_writing
from insight.interpret.capture import shown_pictures
from insight.interpret.localisation import PhraseScores, phrase_scores
from insight.interpret.probe import Probe, make_probe
from insight.models.cross_attention import CrossAttentionMultiModalTransformer


def probe_of_written(batch: ImageTextBatch, texts: Sequence[str], tokenizer: Tokenizer, context_length: int) -> Probe | None:
    """Captions that a model wrote of the batch's pictures, with those phrases in them that people have marked in the same picture, word for
    word. Pictures with an empty caption are left out; None: all are."""
    rows = [row for row, text in enumerate(texts) if text.strip()]
    if not rows:
        return None
    chosen = tuple(texts[row] for row in rows)
    tokens_BT, mask_BT = (part.to(batch.tokens.device) for part in tokenizer.encode(chosen, context_length))
    phrases: dict[tuple[int, int, int], Phrase] = {}
    for phrase in batch.phrases:
        picture = int(batch.caption_row[phrase.caption])
        if picture in rows and phrase.boxes:
            row = rows.index(picture)
            found = re.search(rf"\b{re.escape(phrase.text)}\b", chosen[row], re.IGNORECASE)
            if found:
                phrases.setdefault((row, *found.span()), phrase._replace(caption=row, start=found.start(), end=found.end(), text=found[0]))
    own = torch.arange(len(rows), device=batch.tokens.device)
    written = ImageTextBatch(
        batch.image[rows],
        None,
        tokens_BT,
        mask_BT,
        own,
        batch.image_id[rows],
        own,
        chosen,
        tuple(batch.filenames[row] for row in rows),
        tuple(phrases.values()),
    )
    probe = make_probe(written, tokenizer, context_length)
    return dataclasses.replace(probe, others=tuple(_others(one, rows[one.caption], batch) for one in probe.phrases))


def _others(phrase: Phrase, picture: int, batch: ImageTextBatch) -> tuple[Box, ...]:
    """Boxes of everything else that people marked in the picture, written of or not; each once."""
    marked = [one for one in batch.phrases if int(batch.caption_row[one.caption]) == picture and one.entity != phrase.entity]
    return tuple(dict.fromkeys(box for one in marked for box in one.boxes if box not in phrase.boxes))


def maps_of_phrases(read_BTN: Tensor, probe: Probe) -> np.ndarray:
    """(P, g, g): what was read while the phrase's words were written, summed over its tokens."""
    places = zip(probe.phrases, probe.positions, strict=True)
    maps_PP = torch.stack([read_BTN[one.caption, list(columns), 1:].sum(dim=0) for one, columns in places])
    grid = round(maps_PP.shape[1] ** 0.5)
    return maps_PP.unflatten(1, (grid, grid)).float().cpu().numpy()


def judge_writing(model: CrossAttentionMultiModalTransformer, probe: Probe) -> PhraseScores | None:
    """Protocol v1 for each marked phrase, by the attention of the decoder's last block; None: nothing is marked."""
    if not probe.phrases:
        return None
    _, read_BTN = read_while_writing(model, probe.batch.image, probe.batch.tokens)
    return phrase_scores(maps_of_phrases(read_BTN, probe), [one.boxes for one in probe.phrases], probe.others)


def arrays_of_writing(model: CrossAttentionMultiModalTransformer, probe: Probe) -> tuple[str, dict[str, np.ndarray]]:
    """The last block's name, and what ``draw.draw_word_sheet`` draws."""
    name, read_BTN = read_while_writing(model, probe.batch.image, probe.batch.tokens)
    return name, {"picture": shown_pictures(probe.batch.image).cpu().numpy(), f"words/{name}": read_BTN.float().cpu().numpy()}
