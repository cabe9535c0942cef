import copy

import pytest
import torch
from scipy.stats import spearmanr

from insight.errors import InputError
from insight.interpret.explain import explain
from insight.interpret.faithfulness import (
    cascade,
    deletion,
    infidelity,
    insertion,
    max_sensitivity,
    randomisation,
    shuffled_models,
    spearman,
)
from insight.interpret.families import DualEncoder
from insight.interpret.masks import MaskedRows
from insight.interpret.perturbation import game_of
from insight.interpret.players import grid_segments, num_players, token_words
from insight.stages import Call

WORTH = torch.tensor([[1.0, 2.0, 4.0, 8.0], [8.0, 0.0, 0.0, 0.0]])


def additive(kept):
    """Each kept player adds its worth: (2, K)."""
    return (kept.float() * WORTH[:, None]).sum(dim=-1)


def test_deletion_takes_the_most_important_away_first():
    curve = deletion(additive, WORTH, steps=4)
    assert curve.part_GX.tolist() == [[0, 0.25, 0.5, 0.75, 1]] * 2
    assert curve.value_GX.tolist() == [[15, 7, 3, 1, 0], [8, 0, 0, 0, 0]]
    assert curve.area_G.tolist() == [(7.5 + 7 + 3 + 1) / 4, 4 / 4]
    assert (deletion(additive, -WORTH, steps=4).area_G >= curve.area_G).all()


def test_insertion_brings_the_most_important_first():
    curve = insertion(additive, WORTH, steps=2)
    assert curve.value_GX.tolist() == [[0, 12, 15], [0, 8, 8]]
    assert curve.area_G.tolist() == [(0 + 12 + 7.5) / 2, (0 + 8 + 4) / 2]


def test_rows_may_have_unequal_numbers_of_players():
    present = torch.tensor([[True] * 4, [True, True, False, False]])
    asked = []
    curve = deletion(lambda kept: asked.append(kept) or additive(kept), torch.tensor([[1.0, 2, 3, 4], [1.0, 2, 99, 99]]), 4, 0, present)
    assert curve.part_GX[1].tolist() == [0, 0, 0.5, 1, 1]  # half a player rounds to the even number
    assert curve.value_GX[1].tolist() == [8, 8, 8, 0, 0]
    assert asked[0][1, :, 2:].all()  # what the row does not have is never asked for


def test_equal_importance_is_put_in_order_by_the_seeds_lot():
    flat, kept = torch.zeros(1, 30), []
    for seed in (0, 0, 1):
        deletion(lambda mask: kept.append(mask) or mask.float().sum(dim=-1), flat, 30, seed)
    assert torch.equal(kept[0], kept[1]) and not torch.equal(kept[0], kept[2])
    order = (~kept[0][0]).int().argmax(dim=0)
    assert order.unique().numel() == 30 and order.tolist() != sorted(order.tolist())


def test_a_curve_of_a_model_is_the_model_asked_with_patches_hidden(dual_encoder, batch):
    rows, _ = dual_encoder.rows(batch, None)
    masked = MaskedRows(dual_encoder, rows, grid_segments(3, 9))
    importance = torch.randn(4, 9, generator=torch.Generator().manual_seed(0))
    curve = deletion(game_of(masked), importance, steps=3)
    inputs = dual_encoder.embed(rows)
    for point, gone in enumerate([0, 3, 6, 9]):
        hidden = importance.argsort(dim=1, descending=True)[:, :gone]
        mask = torch.ones(4, 10, dtype=torch.bool).scatter(1, hidden + 1, False)
        torch.testing.assert_close(curve.value_GX[:, point], dual_encoder.score(inputs._replace(image_mask_RN=mask)).detach())


@pytest.mark.parametrize(
    ("importance", "steps", "present", "message"),
    [
        (WORTH, 0, None, "steps=0: a curve needs at least 1"),
        (WORTH.where(WORTH > 1, torch.nan), 4, None, "the map holds NaN"),
        (WORTH, 4, torch.tensor([[True] * 4, [False] * 4]), "row 1 has nothing that could be left out"),
    ],
)
def test_a_curve_that_cannot_be_drawn_is_an_error_that_says_why(importance, steps, present, message):
    with pytest.raises(InputError, match=message):
        deletion(additive, importance, steps, present_GM=present)


def test_rank_correlation_is_scipys_also_with_ties():
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.randint(0, 6, (5, 20), generator=generator).float() for _ in range(2))
    found = spearman(one, other)
    for row in range(5):
        assert float(found[row]) == pytest.approx(spearmanr(one[row], other[row]).statistic, abs=1e-12)


@pytest.mark.parametrize("bad", [torch.full((1, 4), 3.0), torch.tensor([[1.0, torch.nan, 2, 3]])])
def test_a_map_without_a_rank_has_no_correlation(bad):
    assert spearman(bad, torch.arange(4.0)[None]).isnan().all()


def test_the_cascade_goes_from_the_output_to_the_input(cross_attention, classifier):
    assert cascade(classifier.model) == (("head",), ("image.norm",), ("image.blocks.1",), ("image.blocks.0",), ("image.embedding",))
    stages = cascade(cross_attention.model)
    heads = ("masked_head.3", "masked_head.2", "masked_head.0", "match_head", "fusion_norm", "fusion.1", "fusion.0")
    assert stages[:7] == tuple((layer,) for layer in heads)
    assert stages[-4:] == tuple((f"image.{layer}", f"text.{layer}") for layer in ("norm", "blocks.1", "blocks.0", "embedding"))
    covered = [layer for stage in stages for layer in stage]
    for name, parameter in cross_attention.model.named_parameters():
        assert parameter.numel() == 1 or sum(name.startswith(f"{layer}.") for layer in covered) == 1


def test_shuffling_keeps_values_moves_them_and_leaves_the_model_alone(classifier):
    before = copy.deepcopy(classifier.model.state_dict())
    seen = []
    for name, shuffled in shuffled_models(classifier.model, cascade(classifier.model), seed=0):
        seen.append(name)
        for key, value in shuffled.state_dict().items():
            layer = next((one for one in seen if key.startswith(f"{one}.")), None)
            assert torch.equal(value.flatten().sort().values, before[key].flatten().sort().values)
            if layer is None:
                assert torch.equal(value, before[key])
            elif value.unique().numel() > 8:
                assert not torch.equal(value, before[key])
    assert all(torch.equal(value, before[key]) for key, value in classifier.model.state_dict().items())


def test_a_map_that_ignores_the_weights_fails_and_one_that_is_the_weights_passes(classifier):
    def blind(model, seed):
        return torch.arange(50.0).view(2, 5, 5)

    def first_layer(model, seed):
        return model["image"].embedding.projection.weight[:2].abs()

    failed = randomisation(blind, classifier.model)
    assert torch.allclose(failed.rho_SG, torch.ones(5, 2).double()) and failed.rho == pytest.approx(1) and not failed.passed
    passed = randomisation(first_layer, classifier.model)
    assert torch.allclose(passed.rho_SG[:-1], torch.ones(4, 2).double())  # what stands above it does not reach it
    assert passed.rho < 0.25 and passed.passed
    assert passed.stages[-1] == "image.embedding"


def test_a_constant_map_or_one_of_nan_counts_as_one_that_did_not_change(classifier):
    for value in (0.0, torch.nan):
        found = randomisation(lambda model, seed, value=value: torch.full((2, 9), value), classifier.model, stages=[["head"]])
        assert found.rho_SG.isnan().all() and found.rho == 1 and not found.passed


def test_a_map_of_lots_alone_passes_because_its_lots_are_drawn_anew(classifier):
    def lots(model, seed):
        return torch.rand(20, 64, generator=torch.Generator().manual_seed(seed))

    assert abs(randomisation(lots, classifier.model).rho) < 0.1


def test_a_path_without_weights_is_an_error_that_names_those_that_have_some(classifier):
    with pytest.raises(InputError, match=r"'image\.blocks\.7' holds no weights.*image\.blocks\.1"):
        randomisation(lambda model, seed: torch.rand(1, 4), classifier.model, stages=[["image.blocks.7"]])


def test_a_method_of_explain_is_checked_by_giving_it_the_shuffled_model(dual_encoder, batch):
    def occlusion(model, seed):
        return explain(DualEncoder(model), batch, None, Call("insight.interpret.perturbation.occlusion", {"segments": 9})).image

    found = randomisation(occlusion, dual_encoder.model)
    assert found.rho_SG.shape == (len(cascade(dual_encoder.model)), 4)
    assert found.rho_SG.abs().max() < 1  # every stage changed the maps of every row


def test_infidelity_is_zero_for_an_additive_value_and_its_own_worth_at_any_scale():
    assert infidelity(additive, WORTH, samples=20).abs().max() < 1e-4
    assert infidelity(additive, 100 * WORTH, samples=20).abs().max() < 1e-4
    assert infidelity(additive, WORTH.flip(1), samples=20).min() > 1


def test_infidelity_is_the_mean_squared_difference_under_the_best_scale():
    flipped, generator = WORTH.flip(1), torch.Generator().manual_seed(7)
    gone = (torch.rand(2 * 16, 4, generator=generator) < 0.5).view(2, 16, 4)
    said, lost = (gone * flipped[:, None]).sum(dim=-1), (gone * WORTH[:, None]).sum(dim=-1)
    scale = (said * lost).mean(dim=1, keepdim=True) / (said**2).mean(dim=1, keepdim=True)
    torch.testing.assert_close(infidelity(additive, flipped, samples=16, seed=7), ((scale * said - lost) ** 2).mean(dim=1))


def test_sensitivity_of_a_linear_map_is_the_largest_move():
    pixels = torch.randn(3, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    still = max_sensitivity(lambda moved, row: torch.ones(len(moved), 2, 2), pixels)
    assert still.tolist() == [0, 0, 0]
    rows_seen = []

    def own_pixels(moved, row):
        rows_seen.append(row.tolist())
        return moved

    found = max_sensitivity(own_pixels, pixels, radius=0.5, samples=4, seed=3)
    generator = torch.Generator().manual_seed(3)
    moves = torch.stack([torch.rand(pixels.shape, generator=generator) - 0.5 for _ in range(4)])
    expected = moves.flatten(2).norm(dim=2).max(dim=0).values / pixels.flatten(1).norm(dim=1)
    torch.testing.assert_close(found, expected)
    assert rows_seen == [[0, 1, 2]] * 5


def test_checks_leave_the_global_generator_alone(classifier):
    state = torch.get_rng_state()
    infidelity(additive, WORTH)
    max_sensitivity(lambda moved, row: moved, torch.randn(1, 3, 2, 2, generator=torch.Generator().manual_seed(0)))
    deletion(additive, WORTH, 4)
    randomisation(lambda model, seed: model["head"].weight, classifier.model)
    assert torch.equal(torch.get_rng_state(), state)


def test_words_are_deleted_like_patches_each_caption_its_own_number(dual_encoder, batch):
    rows, _ = dual_encoder.rows(batch, None)
    words = token_words(batch.tokens)
    present = torch.arange(6) < num_players(words)[:, None]
    importance = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    curve = deletion(game_of(MaskedRows(dual_encoder, rows, word_RT=words)), importance, steps=2, present_GM=present)
    inputs = dual_encoder.embed(rows)
    best_first = importance.masked_fill(~present, -torch.inf).argsort(dim=1, descending=True)
    for point, gone in ((1, [3, 2, 1, 3]), (2, [6, 3, 2, 6])):  # of 6, 3, 2 and 6 words; 1.5 rounds to 2
        mask = batch.token_mask.clone()
        for row, number in enumerate(gone):
            mask[row, best_first[row, :number]] = False
        torch.testing.assert_close(curve.value_GX[:, point], dual_encoder.score(inputs._replace(text_mask_RT=mask)).detach())
        assert curve.part_GX[:, point].tolist() == pytest.approx([number / whole for number, whole in zip(gone, (6, 3, 2, 6), strict=True)])
