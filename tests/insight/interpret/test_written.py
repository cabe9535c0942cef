"""Where a captioner looked while it wrote, beside the model asked word by word."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from insight.data.batch import ImageTextBatch, Phrase
from insight.data.text import Tokenizer
from insight.interpret.captioner import read_while_writing
from insight.interpret.localisation import centres_inside
from insight.interpret.written import arrays_of_writing, judge_writing, maps_of_phrases, probe_of_written
from insight.models.cross_attention import CrossAttentionMultiModalTransformer

LEFT, RIGHT = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)
LENGTH = 16


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(["a red star and a blue box.", "a red star", "blue box"], 300)


@pytest.fixture(scope="module")
def batch():
    phrases = (
        Phrase(0, "A red star", 0, 10, "1", (LEFT,)),
        Phrase(0, "a blue box", 15, 25, "2", (RIGHT,)),
        Phrase(1, "a blue box", 0, 10, "3", (RIGHT,)),
        Phrase(2, "a grey backdrop", 0, 15, "4", ()),
    )
    image = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    rows = torch.arange(3)
    return ImageTextBatch(
        image, None, torch.zeros(3, 4), torch.ones(3, 4), rows, rows, rows, ("",) * 3, ("a.jpg", "b.jpg", "c.jpg"), phrases
    )


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(0)
    built = CrossAttentionMultiModalTransformer(tokenizer.size, 32, 8, LENGTH, 16, 1, 1, 2, 8, fusion_depth=1, decoder_depth=2)
    for parameter in built.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.4)
    return built.eval()


def test_phrases_of_people_are_found_in_what_was_written_of_the_same_picture(tokenizer, batch):
    probe = probe_of_written(batch, ["a blue box, then a red star.", "", "a blue box"], tokenizer, LENGTH)
    found = [
        (probe.batch.filenames[one.caption], one.text, one.boxes, others) for one, others in zip(probe.phrases, probe.others, strict=True)
    ]
    assert found == [("a.jpg", "a red star", (LEFT,), (RIGHT,)), ("a.jpg", "a blue box", (RIGHT,), (LEFT,))]  # c has no such box
    assert probe.batch.filenames == ("a.jpg", "c.jpg")
    alone = probe_of_written(batch, ["a red star", "x", "x"], tokenizer, LENGTH)
    assert alone.others == ((RIGHT,),)  # the box is another object though nothing was written of it
    for one in probe.phrases:
        assert probe.batch.texts[one.caption][one.start : one.end] == one.text
    assert probe_of_written(batch, ["", " ", ""], tokenizer, LENGTH) is None
    assert probe_of_written(batch, ["boxed in", "bluebox", "x"], tokenizer, LENGTH).phrases == ()  # whole words only


def test_a_phrase_points_where_its_words_looked_while_they_were_written(model, tokenizer, batch):
    probe = probe_of_written(batch, ["a red star and a blue box", "a blue box", "x"], tokenizer, LENGTH)
    name, read = read_while_writing(model, probe.batch.image, probe.batch.tokens)
    maps = maps_of_phrases(read, probe)
    scores = judge_writing(model, probe)
    assert len(probe.phrases) == 3
    for row, (phrase, columns) in enumerate(zip(probe.phrases, probe.positions, strict=True)):
        text = tokenizer.decode(probe.batch.tokens[phrase.caption, list(columns)].tolist())
        assert text == phrase.text
        by_hand = sum(read[phrase.caption, column, 1:].reshape(4, 4).numpy() for column in columns)
        np.testing.assert_allclose(maps[row], by_hand, rtol=1e-5)
        best = np.unravel_index(by_hand.argmax(), by_hand.shape)
        assert scores.pointing[row] == centres_inside(phrase.boxes, 4)[best]
    drawn, arrays = arrays_of_writing(model, probe)
    assert drawn == name and arrays["picture"].shape == (3, 32, 32, 3)
    np.testing.assert_allclose(arrays[f"words/{name}"], read.numpy())
    assert judge_writing(model, probe_of_written(batch, ["x"] * 3, tokenizer, LENGTH)) is None
