"""What losses ask for, against the model called by hand."""

from __future__ import annotations

import pytest
import torch

from insight import losses
from insight.data.batch import ImageTextBatch, Phrase
from insight.data.text import END, MASK, PAD, START
from insight.interpret.record import record_attention
from insight.losses import IGNORED
from insight.models.cross_attention import CrossAttentionMultiModalTransformer
from lightning_modules.quantities import CrossAttentionQuantities

CAPTION_ROW = [0, 0, 1, 2, 2, 2]


@pytest.fixture
def model() -> CrossAttentionMultiModalTransformer:
    torch.manual_seed(0)
    return CrossAttentionMultiModalTransformer(
        vocab_size=20, image_size=16, context_length=9, dim=16, image_depth=1, text_depth=1, heads=2, embed_dim=12, fusion_depth=1
    )


def batch(rows: list[int] = CAPTION_ROW) -> ImageTextBatch:
    """Three pictures; captions of two to six words."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.full((len(rows), 8), PAD)
    for row in range(len(rows)):
        words = torch.randint(4, 20, (2 + row % 5,), generator=generator).tolist()
        tokens[row, : len(words) + 2] = torch.tensor([START, *words, END])
    pictures = max(rows) + 1
    image = torch.randn(pictures, 3, 16, 16, generator=generator)
    ids = torch.arange(pictures), torch.arange(len(rows))
    texts, names = tuple("x" for _ in rows), tuple(f"{row}.jpg" for row in range(pictures))
    return ImageTextBatch(image, None, tokens, tokens != PAD, torch.tensor(rows), *ids, texts, names, ())


def quantities(model, served, seed=0, fuse_every=1) -> CrossAttentionQuantities:
    return CrossAttentionQuantities(model, served, torch.Generator().manual_seed(seed), fuse_every=fuse_every)


def test_word_counts_are_those_of_a_loop_over_the_captions(model):
    served = batch()
    expected = torch.zeros(3, 20)
    for caption, row in enumerate(CAPTION_ROW):
        for token in served.tokens[caption].tolist():
            if token > MASK:
                expected[row, token] += 1
    assert torch.equal(quantities(model, served).word_counts, expected)


def test_word_logits_know_nothing_of_the_captions(model):
    served = batch()
    other = served._replace(tokens=served.tokens.flip(0))
    assert torch.equal(quantities(model, served).word_logits, quantities(model, other).word_logits)


def test_the_first_caption_of_each_picture_is_matched_with_its_picture_and_two_wrong_partners(model):
    served = batch()
    values = quantities(model, served)
    assert values.match_targets.tolist() == [1] * 3 + [0] * 6
    image, text = model.encode_image(served.image).tokens, model.encode_text(served.tokens, served.token_mask).tokens
    first = [0, 2, 3]
    own = torch.stack([model.match(text[[c]], served.token_mask[[c]], image[[b]])[0] for b, c in enumerate(first)])
    torch.testing.assert_close(values.match_logits[:3], own, atol=1e-5, rtol=1e-5)
    every = {
        (b, c): model.match(text[[c]], served.token_mask[[c]], image[[b]])[0]
        for b in range(3)
        for n, c in enumerate(first)
        if n != b  # only other pictures' captions may serve as wrong ones
    }
    for row, logits in enumerate(values.match_logits[3:]):
        wrong = [(b, c) for (b, c), expected in every.items() if torch.allclose(expected, logits, atol=1e-5)]
        assert any(c == first[row] if row < 3 else b == row - 3 for b, c in wrong)


def test_fusing_every_second_picture_gives_what_fusing_all_gives_for_those(model):
    served = batch()
    every, second = quantities(model, served), quantities(model, served, fuse_every=2)
    assert second.match_targets.tolist() == [1] * 2 + [0] * 4
    kept = [row + 3 * part for part in range(3) for row in (0, 2)]  # own pairs, wrong pictures, wrong captions
    torch.testing.assert_close(second.match_logits, every.match_logits[kept], atol=1e-5, rtol=1e-5)
    # the lots of the hidden words are drawn after those of the wrong partners, so that they are equal too
    assert torch.equal(second._hidden.tokens, every._hidden.tokens[[0, 2]])
    torch.testing.assert_close(second.masked_logits, every.masked_logits[[0, 2]], atol=1e-5, rtol=1e-5)
    assert torch.equal(second.masked_targets, every.masked_targets[[0, 2]])
    assert float(second.masked_count) == float((every.masked_targets[[0, 2]] != IGNORED).sum())
    assert torch.equal(second.image_embedding, every.image_embedding)


def test_a_batch_of_one_picture_has_no_wrong_pairs(model):
    values = quantities(model, batch([0, 0]))
    assert values.match_targets.tolist() == [1]
    assert torch.isfinite(losses.image_text_matching(values.match_logits, values.match_targets))


def test_hidden_words_are_named_by_the_fusion_that_reads_the_own_picture(model):
    served = batch()
    values = quantities(model, served)
    hidden, first = values._hidden, [0, 2, 3]
    assert (hidden.tokens == MASK).sum(dim=1).tolist() == [1, 1, 2]  # a quarter of 2, 4 and 5 words, rounded up
    image = model.encode_image(served.image).tokens
    for row, caption in enumerate(first):
        mask = served.token_mask[[caption]]
        fused = model.fuse(model.encode_text(hidden.tokens[[row]], mask).tokens, mask, image[[row]])[0]
        for place, column in enumerate(hidden.position[row].tolist()):
            torch.testing.assert_close(values.masked_logits[row, place], model.masked_head(fused[column]), atol=1e-5, rtol=1e-5)
            target = int(values.masked_targets[row, place])
            assert target == (int(served.tokens[caption, column]) if int(hidden.tokens[row, column]) == MASK else IGNORED)
    assert float(values.masked_count) == 4


def test_what_is_hidden_depends_on_the_seed_alone_and_not_on_the_padding(model):
    served = batch()
    wider = served._replace(
        tokens=torch.nn.functional.pad(served.tokens, (0, 1), value=PAD), token_mask=torch.nn.functional.pad(served.token_mask, (0, 1))
    )
    same, again = quantities(model, served)._hidden.tokens, quantities(model, wider)._hidden.tokens
    assert torch.equal(again[:, :8], same)
    assert not torch.equal(quantities(model, served, seed=1)._hidden.tokens, same)


def test_hidden_words_are_named_by_the_text_tower_alone_in_every_caption(model):
    served = batch()
    values = quantities(model, served)
    hidden = values._hidden_alone
    assert (hidden.tokens == MASK).sum(dim=1).tolist() == [1, 1, 1, 2, 2, 1]  # a quarter of 2 to 6 words, rounded up
    for row in range(len(CAPTION_ROW)):
        encoded = model.encode_text(hidden.tokens[[row]], served.token_mask[[row]]).tokens[0]
        for place, column in enumerate(hidden.position[row].tolist()):
            torch.testing.assert_close(values.text_masked_logits[row, place], model.masked_head(encoded[column]), atol=1e-5, rtol=1e-5)
            target = int(values.text_masked_targets[row, place])
            assert target == (int(served.tokens[row, column]) if int(hidden.tokens[row, column]) == MASK else IGNORED)
    assert float(values.text_masked_count) == 8
    blank = served._replace(image=torch.zeros_like(served.image))
    assert torch.equal(quantities(model, blank).text_masked_logits, values.text_masked_logits)


BOXES = ((0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 0.5))
PHRASES = (
    Phrase(1, "of a second caption", 0, 1, "1", BOXES[:1], (1,)),
    Phrase(2, "x", 0, 1, "2", BOXES[:1], (1, 2)),
    Phrase(3, "without boxes", 0, 1, "3", (), (2,)),
    Phrase(3, "x", 0, 1, "4", BOXES[1:], (2,)),
)


def test_each_phrase_is_compared_with_the_patches_of_its_own_picture(model):
    served = batch()._replace(phrases=PHRASES)
    found = quantities(model, served)
    image, text = model.encode_image(served.image), model.encode_text(served.tokens, served.token_mask)
    expected = []
    for phrase in (PHRASES[0], PHRASES[1], PHRASES[3]):
        words = model.text_projection(text.tokens[phrase.caption, list(phrase.positions)].mean(dim=0))
        patches = model.image_projection(image.tokens[CAPTION_ROW[phrase.caption], 1:])
        expected.append(torch.nn.functional.cosine_similarity(patches, words[None], dim=1))
    assert torch.allclose(found.region_similarity, torch.stack(expected), atol=1e-6)
    assert found.region_targets.tolist() == [[True, False, True, False], [True, False, True, False], [False, True, False, False]]
    assert found.region_count.item() == 3


@pytest.mark.parametrize(("fuse_every", "expected"), [(1, [(1, PHRASES[1]), (2, PHRASES[3])]), (2, [(1, PHRASES[3])])])
def test_what_a_phrase_reads_is_the_attention_that_a_recording_shows(model, fuse_every, expected):
    served = batch()._replace(phrases=PHRASES)
    found = quantities(model, served, fuse_every=fuse_every)
    first = [CAPTION_ROW.index(picture) for picture in range(0, 3, fuse_every)]
    image, text = model.encode_image(served.image), model.encode_text(served.tokens, served.token_mask)
    with record_attention(model, ["fusion.0.cross_attention"]) as maps:
        model.match(text.tokens[first], served.token_mask[first], image.tokens[::fuse_every])
    read = [maps["fusion.0.cross_attention"][row][:, list(phrase.positions), 1:].mean(dim=(0, 1)) for row, phrase in expected]
    assert torch.allclose(found.fused_region_logits.exp(), torch.stack(read), atol=1e-6)
    boxes = [[True, False, True, False], [False, True, False, False]]
    assert found.fused_region_targets.tolist() == boxes[-len(expected) :] and found.fused_region_count.item() == len(expected)
    loss = losses.fused_phrase_regions(found.fused_region_logits, found.fused_region_targets, found.fused_region_count)
    loss.backward()
    assert model.fusion[0].cross_attention.query.weight.grad.abs().sum() > 0
