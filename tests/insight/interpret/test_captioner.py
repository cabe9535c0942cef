"""What is said of a captioner, beside the model asked by hand."""

from __future__ import annotations

import pytest
import torch

from insight.errors import InputError
from insight.interpret.capabilities import tiny_batch, tiny_families
from insight.interpret.captioner import Captioner, read_while_writing, written_so_far
from insight.interpret.explain import explain
from insight.interpret.family import Target
from insight.interpret.methods import METHODS
from insight.interpret.record import record_attention
from insight.models.cross_attention import CrossAttentionMultiModalTransformer


@pytest.fixture(scope="module")
def captioner():
    (family,) = (one for one in tiny_families() if isinstance(one, Captioner))
    return family


@pytest.fixture
def batch():
    return tiny_batch()


def test_every_token_but_the_first_gets_a_row_of_what_was_written_before_it(batch):
    so_far, target, place = written_so_far(batch)
    expected = [(row, column) for row in range(4) for column in range(1, int(batch.token_mask[row].sum()))]
    assert [tuple(one) for one in place.tolist()] == expected and target.picture.tolist() == list(range(len(expected)))
    for row, (caption, column) in enumerate(expected):
        assert target.index[row] == batch.tokens[caption, column] and so_far.caption_row[row] == batch.caption_row[caption]
        assert torch.equal(so_far.tokens[row][so_far.token_mask[row]], batch.tokens[caption, :column])


@torch.no_grad()
def test_the_score_is_the_logit_of_the_next_token_whatever_comes_later(captioner, batch):
    so_far, target, place = written_so_far(batch)
    found = explain(captioner, so_far, target, METHODS["raw_attention"])
    for row, (caption, column) in enumerate(place.tolist()):
        picture = batch.image[batch.caption_row[caption]][None]
        image_tokens = captioner.model.encode_image(picture).tokens
        logits = captioner.model.write(batch.tokens[caption, :column][None], image_tokens).logits[0, -1]
        torch.testing.assert_close(found.score[row], logits[batch.tokens[caption, column]], atol=1e-4, rtol=1e-4)
    likeliest = explain(captioner, so_far, None, METHODS["raw_attention"])
    assert (likeliest.score >= found.score - 1e-5).all()


@torch.no_grad()
def test_the_map_of_a_written_word_is_what_the_token_before_it_read(captioner, batch):
    so_far, target, place = written_so_far(batch)
    found = explain(captioner, so_far, target, METHODS["raw_attention"])
    pictures = batch.image[batch.caption_row]
    name, read = read_while_writing(captioner.model, pictures, batch.tokens)
    with record_attention(captioner.model, [name]) as maps:
        captioner.model.write(batch.tokens, captioner.model.encode_image(pictures).tokens)
    assert name == "decoder.blocks.1.cross_attention" and not read[:, 0].any()
    for row, (caption, column) in enumerate(place.tolist()):
        by_hand = maps[name][caption, :, column - 1].mean(dim=0)
        torch.testing.assert_close(read[caption, column], by_hand)
        torch.testing.assert_close(found.image[row].flatten(), by_hand[1:], atol=1e-5, rtol=1e-4)


def test_maps_that_know_the_word_differ_from_word_to_word_and_attention_alone_does_not(captioner, batch):
    so_far, _, _ = written_so_far(batch)
    first, second = Target([0, 4], [5, 5]), Target([0, 4], [9, 9])
    for name, same in (("raw_attention", True), ("rollout", True), ("chefer", False), ("grad_eclip", False), ("saliency", False)):
        one, other = (explain(captioner, so_far, target, METHODS[name]).image for target in (first, second))
        assert torch.equal(one, other) == same, name


def test_rollout_through_the_decoder_shares_every_row_out(captioner, batch):
    so_far, target, _ = written_so_far(batch)
    found = explain(captioner, so_far, target, METHODS["rollout"])
    shared = found.text.sum(dim=1) + found.image.flatten(1).sum(dim=1)  # the rest lies on the class token
    assert (found.text >= 0).all() and (shared <= 1 + 1e-5).all() and (shared > 0.5).all()


def test_a_model_without_a_decoder_and_captions_without_a_token_are_refused(captioner, batch):
    plain = CrossAttentionMultiModalTransformer(20, 32, 8, 6, 16, 1, 1, 2, 12)
    with pytest.raises(InputError, match="writes no captions: build it with decoder_depth"):
        Captioner(plain)
    mask = batch.token_mask.clone()
    mask[1] = False
    with pytest.raises(InputError, match="caption 1 has no token to read"):
        explain(captioner, batch._replace(token_mask=mask), None, METHODS["raw_attention"])
    with pytest.raises(InputError, match="token 20 in row 0 is out of range: there are 20"):
        explain(captioner, batch, Target([0], [20]), METHODS["raw_attention"])
