"""Parts of a batch."""

from __future__ import annotations

import torch

from insight.data.batch import ImageTextBatch, Phrase, first_captions


def test_the_first_captions_of_every_picture_keep_their_rows():
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
        phrases=(Phrase(0, "a", 0, 1, "1", ()),),
    )
    part = first_captions(batch, 2)
    assert part.texts == ("a", "b", "d", "e", "f") and part.phrases == ()
    assert part.caption_row.tolist() == [0, 0, 1, 2, 2] and part.caption_id.tolist() == [10, 11, 13, 14, 15]
    assert part.tokens[:, 0].tolist() == [0, 1, 3, 4, 5] and part.image_id.tolist() == [7, 8, 9]
