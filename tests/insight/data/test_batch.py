"""Parts of a batch."""

from __future__ import annotations

import torch

from insight.data.batch import ImageTextBatch, Phrase, first_captions


def test_the_first_captions_of_every_picture_keep_their_rows_and_phrases():
    batch = ImageTextBatch(
        image=torch.zeros(3, 3, 2, 2),
        view=None,
        tokens=torch.arange(6)[:, None].expand(6, 4),
        token_mask=torch.ones(6, 4, dtype=torch.bool),
        caption_row=torch.tensor([0, 0, 0, 1, 2, 2]),
        image_id=torch.tensor([7, 8, 9]),
        caption_id=torch.tensor([10, 11, 12, 13, 14, 15]),
        texts=tuple("abcdef"),
        filenames=("x", "y", "z"),
        phrases=tuple(Phrase(caption, "abcdef"[caption], 0, 1, "1", ()) for caption in (0, 2, 3, 5, 5)),
    )
    part = first_captions(batch, 2)
    assert part.texts == ("a", "b", "d", "e", "f")
    assert [(phrase.caption, phrase.text) for phrase in part.phrases] == [(0, "a"), (2, "d"), (4, "f"), (4, "f")]
    assert part.caption_row.tolist() == [0, 0, 1, 2, 2] and part.caption_id.tolist() == [10, 11, 13, 14, 15]
    assert part.tokens[:, 0].tolist() == [0, 1, 3, 4, 5] and part.image_id.tolist() == [7, 8, 9]
