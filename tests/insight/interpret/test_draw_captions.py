from __future__ import annotations

import numpy as np

import insight.interpret.draw_captions as draw
from insight.interpret.draw_captions import HEADER, HEIGHT, MARGIN, SIDE, WIDTH, Captioned, draw_captions


def entry(number: int, generated: str = "a red circle") -> Captioned:
    picture = np.full((16, 16, 3), (number * 37 % 200, 30, 120), dtype=np.uint8)
    return Captioned(picture, f"{number}.jpg", generated, ("A red circle on grey.", "A disc."), 1.25)


def test_every_picture_lies_in_its_own_cell_row_by_row():
    entries = [entry(number) for number in range(3)]
    sheet = np.asarray(draw_captions(entries, "Captions", "greedy"))
    for place, one in enumerate(entries):
        left, top = MARGIN + place % 2 * WIDTH, HEADER + place // 2 * HEIGHT
        cell = sheet[top + 5 : top + SIDE - 5, left + 5 : left + SIDE - 5]
        assert np.abs(cell.astype(int) - one.picture[0, 0]).max() <= 1


def test_another_caption_makes_another_sheet_and_no_more_entries_are_shown_than_fit(monkeypatch):
    monkeypatch.setattr(draw, "MOST", 1)
    first = np.asarray(draw_captions([entry(0)], "Captions", ""))
    assert (np.asarray(draw_captions([entry(0, "a blue star")], "Captions", "")) != first).any()
    assert (np.asarray(draw_captions([entry(0), entry(1), entry(2)], "Captions", "")) == first).all()
