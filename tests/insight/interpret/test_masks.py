import copy

import pytest
import torch
import torch.nn.functional as F

from insight.errors import InputError
from insight.interpret import masks
from insight.interpret.families import DualEncoder, Family, Inputs, Lacks, Target
from insight.interpret.masks import MaskedRows, pixels_blur, pixels_mean, pixels_zero, token_drop
from insight.interpret.players import grid_segments, token_words, whole_words

POSITIONS = [[[1], [2, 3]], [[1]], [[0]], [[1], [2], [3]]]  # words of the four captions; the other tokens are nobody's


def masked(family, batch, target=None, **settings):
    rows, _ = family.rows(batch, target)
    words = None if rows.tokens_RT is None else whole_words(POSITIONS, 6)
    return MaskedRows(family, rows, grid_segments(3, 9), words, **settings)


def some_masks(*shape, seed=0):
    kept = torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < 0.6
    kept[..., 0, :], kept[..., -1, :] = True, False  # everything and nothing are always asked for, too
    return kept


def one_by_one(family, rows, image_kept, text_kept, removal):
    """The definition: paint the pixels (or hide the patches), hide the words, ask the whole model for one row after the other."""
    found = torch.empty(image_kept.shape[:2])
    for row in range(found.shape[0]):
        for number in range(found.shape[1]):
            kept_gg = image_kept[row, number].view(3, 3)
            kept_HW = kept_gg.repeat_interleave(8, 0).repeat_interleave(8, 1)
            pixels = rows.pixels_R3HW[row : row + 1]
            filling = removal(pixels)
            image_mask = None
            if filling is None:
                image_mask = torch.cat([torch.ones(1, 1, dtype=torch.bool), kept_gg.view(1, 9)], dim=1)
            else:
                pixels = torch.where(kept_HW, pixels, filling)
            text, mask = None, None
            if rows.tokens_RT is not None:
                text, mask = family.embed_text(rows.tokens_RT[row : row + 1]), rows.text_mask_RT[row : row + 1].clone()
                for word, columns in enumerate(POSITIONS[row]):
                    mask[0, columns] &= text_kept[row, number, word]
            index = None if rows.index_R is None else rows.index_R[row : row + 1]
            with torch.no_grad():
                found[row, number] = family.score(Inputs(family.embed_image(pixels), text, image_mask, mask, index))[0]
    return found


@pytest.mark.parametrize("removal", [token_drop, pixels_zero, pixels_mean, pixels_blur])
def test_scores_are_those_of_the_whole_model_one_row_and_mask_at_a_time(family, batch, removal):
    asked = masked(family, batch, removal=removal)
    image_kept = some_masks(len(asked), 5, 9)
    text_kept = some_masks(len(asked), 5, 3, seed=1) if asked.num_words else None
    expected = one_by_one(family, asked.rows, image_kept, text_kept, removal)
    assert expected.std() > 0.05
    torch.testing.assert_close(asked.scores(image_kept, text_kept), expected, atol=2e-5, rtol=2e-5)


def test_masks_of_one_side_leave_the_other_whole(dual_encoder, batch):
    asked = masked(dual_encoder, batch)
    image_kept, text_kept = some_masks(4, 5, 9), some_masks(4, 5, 3, seed=1)
    whole_image, whole_text = torch.ones(4, 5, 9, dtype=torch.bool), torch.ones(4, 5, 3, dtype=torch.bool)
    torch.testing.assert_close(asked.scores(image_kept), asked.scores(image_kept, whole_text))
    torch.testing.assert_close(asked.scores(None, text_kept), asked.scores(whole_image, text_kept))
    torch.testing.assert_close(asked.scores(), dual_encoder.score(dual_encoder.embed(asked.rows)).detach()[:, None])


@pytest.mark.parametrize("removal", [token_drop, pixels_mean])
@pytest.mark.parametrize("tokens_per_pass", [1, 25, 10_000])
def test_how_rows_are_packed_into_passes_changes_nothing(cross_attention, batch, removal, tokens_per_pass):
    image_kept, text_kept = some_masks(9, 9), some_masks(9, 3, seed=1)
    reference = masked(cross_attention, batch, removal=removal).scores(image_kept, text_kept)
    found = masked(cross_attention, batch, removal=removal, tokens_per_pass=tokens_per_pass).scores(image_kept, text_kept)
    torch.testing.assert_close(found, reference, atol=1e-5, rtol=1e-5)


def test_equal_masks_of_equal_pictures_are_computed_once(dual_encoder, cross_attention, classifier, batch):
    kept = torch.cat([some_masks(6, 9)] * 3)
    for family, pairs in ((dual_encoder, 2 * 6), (cross_attention, 4 * 6)):
        asked = masked(family, batch)  # four captions of two pictures; the fusion sees each pair, the towers each picture
        assert len(kept.unique(dim=0)) == 6
        scores = asked.scores(kept)
        assert asked.forward_rows == pairs
        assert torch.equal(scores[:, :6], scores[:, 6:12])
    both_outputs = masked(classifier, batch, Target([0, 0, 1], [0, 2, 1]))
    both_outputs.scores(kept)
    assert both_outputs.forward_rows == 2 * 6


def test_fewer_patches_make_a_shorter_sequence(dual_encoder, batch, monkeypatch):
    lengths = []
    read_image = dual_encoder.read_image

    def watched(image_RND, mask_RN=None, place_RN=None):
        lengths.append(tuple(image_RND.shape[:2]))
        return read_image(image_RND, mask_RN, place_RN)

    monkeypatch.setattr(dual_encoder, "read_image", watched)
    kept = torch.zeros(6, 9, dtype=torch.bool)
    for row, count in enumerate([0, 2, 2, 5, 9, 9]):
        kept[row, torch.randperm(9)[:count]] = True
    kept[1], kept[2] = torch.arange(9) < 2, torch.arange(9) > 6
    masked(dual_encoder, batch).scores(kept)
    assert lengths == [(2, 1), (4, 3), (2, 6), (2, 10)]  # two pictures; the class token always stays


def test_vectors_of_one_side_are_what_the_towers_say(dual_encoder, batch):
    asked = masked(dual_encoder, batch, removal=pixels_zero)
    kept = some_masks(5, 9)
    image, text = asked.image_vectors(2, kept), asked.text_vectors(3, some_masks(5, 3))
    pixels = torch.where(kept.view(5, 1, 3, 3).repeat_interleave(8, 2).repeat_interleave(8, 3), batch.image[1], torch.tensor(0.0))
    with torch.no_grad():
        torch.testing.assert_close(image, dual_encoder.model.encode_image(pixels).embedding, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(text[0], dual_encoder.model.encode_text(batch.tokens[3:], batch.token_mask[3:]).embedding[0])


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_the_model_is_left_as_it_was_also_after_an_exception(family, batch, mode, dtype):
    model = family.model.train(mode == "train")
    next(model.children()).eval()  # a part that is frozen
    modes, state = [one.training for one in model.modules()], torch.get_rng_state()
    before = copy.deepcopy(model.state_dict())

    def broken(pixels):
        raise KeyError("no filling")

    asked = masked(family, batch, dtype=dtype)
    assert torch.equal(asked.scores(some_masks(4, 9)), asked.scores(some_masks(4, 9)))  # no dropout
    with pytest.raises(KeyError, match="no filling"):
        masked(family, batch, dtype=dtype, removal=broken).scores(some_masks(4, 9))
    assert [one.training for one in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16_is_near_and_only_where_it_was_asked_for(family, batch, autocast):
    kept = some_masks(6, 9)
    reference = masked(family, batch).scores(kept)
    rough = masked(family, batch, dtype=torch.bfloat16).scores(kept)
    assert 1e-6 < (rough - reference).norm() / reference.norm() < 0.1
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        assert torch.equal(masked(family, batch).scores(kept), reference)
    family.model.bfloat16()
    torch.testing.assert_close(masked(family, batch).scores(kept), rough)


def test_every_removal_shows_what_its_name_says():
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert token_drop(pixels) is None
    assert pixels_zero(pixels).shape == pixels.shape and not pixels_zero(pixels).any()
    torch.testing.assert_close(pixels_mean(pixels)[1, 2, 3, 4], pixels[1, 2].mean())
    line = torch.exp(-(torch.arange(-4, 5.0) ** 2) / (2 * 2.0**2))  # an eighth of 16 pixels, cut at two deviations
    kernel = torch.outer(line, line) / line.sum() ** 2
    padded = F.pad(pixels, (4, 4, 4, 4), mode="reflect")
    expected = F.conv2d(padded.view(6, 1, 24, 24), kernel[None, None]).view(2, 3, 16, 16)
    torch.testing.assert_close(pixels_blur(pixels), expected, atol=1e-5, rtol=1e-5)
    assert pixels_blur(pixels[..., :2, :2]).shape == (2, 3, 2, 2)


def test_a_removal_of_ones_own_serves_as_well(dual_encoder, batch):
    kept = some_masks(3, 9)
    own = masked(dual_encoder, batch, removal=lambda pixels: 0 * pixels).scores(kept)
    assert torch.equal(own, masked(dual_encoder, batch, removal=pixels_zero).scores(kept))


@pytest.mark.parametrize(
    ("image_kept", "text_kept", "message"),
    [
        (torch.ones(2, 8, dtype=torch.bool), None, r"masks over segments: expected bool \(masks, 9\)"),
        (torch.ones(2, 9), None, "got torch.float32"),
        (torch.ones(0, 9, dtype=torch.bool), None, "at least one mask"),
        (torch.ones(3, 2, 9, dtype=torch.bool), None, r"or \(4, masks, 9\)"),
        (torch.ones(9, dtype=torch.bool), None, r"got torch.bool \(9,\)"),
        (None, torch.ones(2, 4, dtype=torch.bool), r"masks over words: expected bool \(masks, 3\)"),
        (torch.ones(2, 9, dtype=torch.bool), torch.ones(3, 3, dtype=torch.bool), r"as many of each, but got \[2, 3\]"),
    ],
)
def test_masks_that_do_not_fit_are_an_error_that_says_what_would(dual_encoder, batch, image_kept, text_kept, message):
    with pytest.raises(InputError, match=message):
        masked(dual_encoder, batch).scores(image_kept, text_kept)


def test_labels_that_do_not_fit_are_an_error(dual_encoder, classifier, batch):
    rows, _ = dual_encoder.rows(batch, None)
    with pytest.raises(InputError, match=r"a label from 0 for each of the 9 patches, got \(16,\)"):
        MaskedRows(dual_encoder, rows, grid_segments(4, 4))
    with pytest.raises(InputError, match="a label from 0"):
        MaskedRows(dual_encoder, rows, grid_segments(3, 9) - 1)
    with pytest.raises(InputError, match=r"a label for each token, \(4, 6\), got \(4, 5\)"):
        MaskedRows(dual_encoder, rows, word_RT=token_words(batch.tokens[:, :5]))
    with pytest.raises(Lacks, match="a classifier reads no text"):
        MaskedRows(classifier, classifier.rows(batch, None)[0], word_RT=token_words(batch.tokens))
    with pytest.raises(Lacks, match="reads no picture"):
        MaskedRows(dual_encoder, rows._replace(pixels_R3HW=None), grid_segments(3, 9))


def test_values_that_are_not_finite_are_an_error(dual_encoder, batch):
    broken = batch._replace(image=torch.where(torch.arange(24) == 5, torch.nan, batch.image))
    with pytest.raises(InputError, match="a picture holds NaN or infinity"):
        masked(dual_encoder, broken)
    with torch.no_grad():
        dual_encoder.model.image_projection.weight.fill_(torch.nan)
    with pytest.raises(InputError, match="8 of 8 values under masks are NaN or infinite"):
        masked(dual_encoder, batch).scores(some_masks(2, 9))


def test_more_players_than_bits_of_a_number_are_told_apart():
    kept = torch.ones(1, 3, 130, dtype=torch.bool)
    kept[0, 1, 129] = kept[0, 2, 64] = False
    different, _, which = masks._distinct(kept, torch.zeros(1, dtype=torch.int64))
    assert len(different) == 3 and len(set(which.tolist())) == 3
    assert torch.equal(different[which], kept[0])


class Whole(DualEncoder):
    """A family that says nothing of reading its sides apart."""

    read_image, read_text, meet, meets_for_free = Family.read_image, Family.read_text, Family.meet, False

    def score(self, inputs):
        return DualEncoder(self.model).score(inputs)


def test_a_family_that_only_scores_whole_rows_is_masked_as_well(dual_encoder, batch):
    image_kept, text_kept = some_masks(5, 9), some_masks(5, 3, seed=1)
    found = masked(Whole(dual_encoder.model), batch).scores(image_kept, text_kept)
    torch.testing.assert_close(found, masked(dual_encoder, batch).scores(image_kept, text_kept), atol=1e-5, rtol=1e-5)
