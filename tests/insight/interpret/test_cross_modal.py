import itertools

import pytest
import torch
import torch.nn.functional as F

from insight.errors import InputError
from insight.interpret.coalitions import all_masks
from insight.interpret.cross_modal import check_joint_size, interaction_masks, interactions, joint_shapley, text_share
from insight.interpret.explain import explain
from insight.interpret.families import DualEncoder, Lacks, Target
from insight.stages import Call

EXACT = "insight.interpret.cross_modal.exact_joint_shapley"
PAIRS = "insight.interpret.cross_modal.banzhaf_interactions"


def vectors(players, seed, width=5):
    return F.normalize(torch.randn(2**players, width, generator=torch.Generator().manual_seed(seed)), dim=-1)


def pair_table(image_KE, text_LE, scale):
    """The value of every joint mask: index = image mask + 2 ** segments * text mask."""
    return (scale * (image_KE.double() @ text_LE.double().T)).T.flatten()


@pytest.mark.parametrize(("segments", "words"), [(1, 1), (4, 3), (2, 6), (6, 2)])
def test_joint_shapley_is_the_definition_over_all_pairs_of_masks(segments, words, shapley_by_definition):
    image, text = vectors(segments, 0), vectors(words, 1)
    found = joint_shapley(image, text, scale=14.0)
    expected = shapley_by_definition(pair_table(image, text, 14.0), segments + words)
    torch.testing.assert_close(torch.cat(found), expected, atol=1e-10, rtol=0)


def test_joint_shapley_is_complete_symmetric_linear_and_gives_a_dummy_nothing():
    image, text = vectors(5, 0), vectors(3, 1)
    found = joint_shapley(image, text, scale=3.0)
    total = 3 * (image[-1].double() @ text[-1].double() - image[0].double() @ text[0].double())
    assert float(torch.cat(found).sum()) == pytest.approx(float(total))
    other = vectors(3, 2)
    both = joint_shapley(image, text + 2 * other, scale=3.0)
    alone = joint_shapley(image, other, scale=3.0)
    for sum_, one, two in zip(both, found, alone, strict=True):
        torch.testing.assert_close(sum_, one + 2 * two)
    kept = all_masks(5)
    index = 2 ** torch.arange(5)
    without_2 = joint_shapley(image[((kept & (torch.arange(5) != 2)).long() * index).sum(dim=1)], text, scale=3.0)
    assert abs(float(without_2.image_I[2])) < 1e-12
    swapped = image[(kept[:, [3, 1, 2, 0, 4]].long() * index).sum(dim=1)]
    alike = joint_shapley(image + swapped, text, scale=3.0).image_I
    assert float(alike[0]) == pytest.approx(float(alike[3]))


@pytest.mark.parametrize("keep", [0.5, 0.7])
def test_interactions_are_those_of_the_weighted_regression_on_all_pairs_of_masks(keep):
    """FIxLIP's: a model with every single effect and every pair, fitted to all 2 ** 7 joint masks, weighted by how likely they are."""
    segments, words = 4, 3
    image, text = vectors(segments, 0), vectors(words, 1)
    kept = all_masks(segments + words).double()
    pairs = list(itertools.combinations(range(segments + words), 2))
    design = torch.cat([torch.ones(len(kept), 1), kept, *(kept[:, [a]] * kept[:, [b]] for a, b in pairs)], dim=1)
    size = kept.sum(dim=1)
    root = (keep**size * (1 - keep) ** (segments + words - size)).sqrt()[:, None]
    fit = torch.linalg.lstsq(root * design, root * pair_table(image, text, 9.0)[:, None]).solution[:, 0]
    sides = (interaction_masks(players, keep, 64, seed=0) for players in (segments, words))
    image_side, text_side = sides
    found = interactions(image_side, image, text_side, text, scale=9.0)
    of_pair = dict(zip(pairs, fit[1 + segments + words :].tolist(), strict=True))
    for i, j in itertools.product(range(segments), range(words)):
        assert float(found.pair_IW[i, j]) == pytest.approx(of_pair[i, segments + j], abs=1e-10)


def test_interactions_of_drawn_masks_are_the_regression_on_all_pairs_that_they_form():
    segments, words = 7, 6
    image_side, text_side = interaction_masks(segments, 0.6, 40, seed=0), interaction_masks(words, 0.6, 30, seed=0)
    assert len(image_side.kept_KM) == 40 and len(text_side.kept_KM) == 30
    image, text = (torch.randn(count, 5, generator=torch.Generator().manual_seed(count)).double() for count in (40, 30))
    one, other = ((torch.cat([torch.ones(len(side), 1), side], dim=1)).double() for side in (image_side.kept_KM, text_side.kept_KM))
    design = (one[:, None, :, None] * other[None, :, None, :]).flatten(0, 1).flatten(1)  # 1,200 pairs x 8 * 7 products
    fit = torch.linalg.lstsq(design, (image @ text.T).flatten()[:, None]).solution.view(1 + segments, 1 + words)
    torch.testing.assert_close(interactions(image_side, image, text_side, text, 1.0).pair_IW, fit[1:, 1:], atol=1e-10, rtol=0)


def test_pairs_are_how_fast_first_order_effects_grow_with_the_words_being_there():
    image, text = vectors(4, 0), vectors(3, 1)

    def effects(keep_words):
        kept = all_masks(3)
        chance = torch.where(kept, keep_words, 1 - keep_words).prod(dim=1)
        side = interaction_masks(3, 0.5, 8, seed=0)._replace(weight_K=chance)
        return interactions(interaction_masks(4, 0.5, 16, seed=0), image, side, text, 1.0)

    base = torch.full((3,), 0.5, dtype=torch.float64)
    for word in range(3):
        step = torch.zeros(3, dtype=torch.float64)
        step[word] = 0.25
        slope = (effects(base + step).image_I - effects(base - step).image_I) / 0.5  # multilinear: any step gives the slope
        torch.testing.assert_close(slope, effects(base).pair_IW[:, word])


@pytest.mark.parametrize("keep", [0.5, 0.8])
def test_first_order_effects_are_expected_additions(keep):
    image, text = vectors(4, 0), vectors(3, 1)
    found = interactions(interaction_masks(4, keep, 16, 0), image, interaction_masks(3, keep, 8, 0), text, 2.0)
    table, kept = pair_table(image, text, 2.0), all_masks(7)
    size = kept.sum(dim=1).double()
    chance = keep**size * (1 - keep) ** (7 - size)
    for player in range(7):
        without = (~kept[:, player]).nonzero()[:, 0]
        expected = (chance[without] / (1 - keep) * (table[without + 2**player] - table[without])).sum()
        assert float(torch.cat([found.image_I, found.text_W])[player]) == pytest.approx(float(expected))


def test_the_share_of_the_text_is_that_of_absolute_values():
    share = text_share(torch.tensor([[1.0, -2.0], [0, 0], [0, 0]]), torch.tensor([[-1.0], [4.0], [0.0]]))
    assert share[:2].tolist() == [0.25, 1.0] and share[2].isnan()


# --- through explain() ---
def test_exact_joint_values_are_those_of_the_whole_model_asked_for_every_joint_mask(
    dual_encoder, batch, scores_of_all_masks, shapley_by_definition
):
    found, row = explain(dual_encoder, batch, None, Call(EXACT, {"segments": 4})), 1
    words = int(batch.token_mask[row].sum())
    segment = torch.tensor([0, 0, 1, 0, 0, 1, 2, 2, 3])  # 3 x 3 patches: the middle line belongs to the first
    table = scores_of_all_masks(dual_encoder, batch, row, words, segment)
    expected = shapley_by_definition(table, 4 + words)
    by_segment = torch.stack([found.image[row].flatten()[segment == one].sum() for one in range(4)])
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(by_segment.double(), expected[:4], atol=1e-5, rtol=0)
    torch.testing.assert_close(found.text[row, :words].double(), expected[4:], atol=1e-5, rtol=0)
    share = expected[4:].abs().sum() / expected.abs().sum()
    assert float(found.diagnostics["text_share"][row]) == pytest.approx(float(share), abs=1e-5)


def test_interactions_of_patches_and_tokens_say_what_both_add_together(dual_encoder, batch):
    found = explain(dual_encoder, batch, None, Call(PAIRS, {"segments": 9, "masks": 512}))
    row, words = 1, 3
    assert found.pairs.shape == (4, 6, 3, 3) and not found.pairs[row, words:].any()
    patches, tokens = all_masks(9), all_masks(words)
    rows, _ = dual_encoder.rows(batch, None)
    both_on = torch.zeros(2, 2, dtype=torch.float64)
    inputs = dual_encoder.embed(rows)
    with torch.no_grad():
        mask = F.pad(patches, (1, 0), value=True)
        image = dual_encoder.read_image(inputs.image_RND[row].expand(512, -1, -1), mask)
        text = dual_encoder.read_text(inputs.text_RTD[row].expand(8, -1, -1), F.pad(tokens, (0, 3)))
        table = dual_encoder.model.scale * image @ text.T
    for i, j in itertools.product((False, True), repeat=2):  # means over the other players, each there with probability 1/2
        both_on[int(i), int(j)] = table[patches[:, 4] == i][:, tokens[:, 2] == j].mean()
    expected = both_on[1, 1] - both_on[1, 0] - both_on[0, 1] + both_on[0, 0]
    assert float(found.pairs[row, 2, 1, 1]) == pytest.approx(float(expected), abs=1e-5)


def test_captions_of_one_picture_share_its_encodings(dual_encoder, batch):
    cost = explain(dual_encoder, batch, None, Call(EXACT, {"segments": 4})).cost.forwards
    texts = 2**6 + 2**3 + 2**2 + 2**6
    assert cost == (2 * 2**4 + texts + 4) / 4  # two pictures, four captions, and the scores themselves


def test_an_exact_answer_that_would_cost_too_much_is_refused_before_it_starts(dual_encoder, batch, monkeypatch):
    with pytest.raises(InputError, match=r"16 segments and 8 words take 2\^16 \+ 2\^8 = 65,792 encodings.*max_encodings=4,096"):
        check_joint_size(16, 8)
    assert check_joint_size(16, 8, max_encodings=70_000) == 65_792
    monkeypatch.setattr(dual_encoder, "read_image", None)  # nothing may be computed
    with pytest.raises(InputError, match=r"9 segments and 6 words take .* = 576 encodings"):
        explain(dual_encoder, batch, None, Call(EXACT, {"max_encodings": 500}))


@pytest.mark.parametrize("method", [EXACT, PAIRS])
def test_only_scores_that_are_a_product_have_these_values(method, cross_attention, classifier, batch):
    for family in (cross_attention, classifier):
        with pytest.raises(Lacks, match="no product"):
            explain(family, batch, None, Call(method, {"segments": 4}))
    towers = explain(DualEncoder(cross_attention.model), batch, None, Call(method, {"segments": 4}))
    assert towers.image.abs().max() > 0


@pytest.mark.parametrize("method", [EXACT, PAIRS])
def test_a_caption_without_words_is_an_error(method, dual_encoder, batch):
    tokens = batch.tokens.clone()
    tokens[2, :2] = torch.tensor([1, 2])  # [START], [END]
    with pytest.raises(InputError, match="row 2: the text has no word that could be left out"):
        explain(dual_encoder, batch._replace(tokens=tokens), None, Call(method, {"segments": 4}))
    explain(dual_encoder, batch._replace(tokens=tokens), Target([0], [1]), Call(method, {"segments": 4}))


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda: joint_shapley(torch.zeros(3, 2), torch.zeros(2, 2), 1.0), "3 embeddings are not those of all masks"),
        (lambda: check_joint_size(0, 4), "0 segments and 4 words: a joint explanation needs at least one of each"),
        (lambda: interaction_masks(6, 0.0, 64, 0), r"keep=0\.0: a probability between 0 and 1"),
        (lambda: interaction_masks(9, 0.5, 19, 0), "masks=19: 9 players need at least 20"),
    ],
)
def test_what_cannot_be_asked_is_an_error_that_says_why(ask, message):
    with pytest.raises(InputError, match=message):
        ask()
