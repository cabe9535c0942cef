import itertools

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from insight.errors import InputError
from insight.interpret.coalitions import all_masks, leave_one_out, permutation_masks, random_masks, shapley_design
from insight.interpret.readout import read_kernel_shap, read_lime, read_occlusion, read_rise, read_shapley_sampling


def table(players, games=2, seed=0):
    """A value for every mask of some games: (G, 2 ** M), in the order of all_masks."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(games, 2**players, generator=generator, dtype=torch.float64)


def look_up(table_GX, kept):
    index = (kept.long() * 2 ** torch.arange(kept.shape[-1])).sum(dim=-1)
    return table_GX[:, index]


def kernel_shap(table_GX, players, budget, seed=0):
    design = shapley_design(players, budget, seed)
    return read_kernel_shap(design, look_up(table_GX, design.kept_KM))


@pytest.mark.parametrize("players", [1, 2, 3, 6])
def test_kernel_shap_with_every_mask_is_the_shapley_value(players, shapley_by_definition):
    games = table(players)
    found = kernel_shap(games, players, 2**players)
    for value, game in zip(found.value_GM, games, strict=True):
        torch.testing.assert_close(value, shapley_by_definition(game, players), atol=1e-10, rtol=0)
    assert found.standard_error_GM.abs().max() == 0


@pytest.mark.parametrize("budget", [60, 200, 512])
def test_kernel_shap_is_complete_linear_symmetric_and_gives_a_dummy_nothing(budget):
    players, masks = 9, all_masks(9)
    one, other = table(players, seed=1)
    games = torch.stack([one, other, 2 * one - 3 * other])
    found = kernel_shap(games, players, budget).value_GM
    torch.testing.assert_close(found.sum(dim=1), games[:, -1] - games[:, 0])  # completeness, also when sampled
    torch.testing.assert_close(found[2], 2 * found[0] - 3 * found[1])  # the same masks for all games: linear, also when sampled
    additive = (masks.double() @ torch.arange(9).double())[None]  # player 0 adds nothing to anybody
    torch.testing.assert_close(kernel_shap(additive, players, budget).value_GM[0], torch.arange(9).double(), atol=1e-9, rtol=0)
    if budget == 2**players:
        swapped = look_up(one[None], masks[:, [1, 0, *range(2, 9)]])
        symmetric = kernel_shap(one + swapped, players, budget).value_GM[0]
        assert symmetric[0] == pytest.approx(float(symmetric[1]))
        dummy = kernel_shap(look_up(one[None], masks & ~torch.eye(9, dtype=torch.bool)[4]), players, budget).value_GM[0]
        assert dummy[4] == pytest.approx(0, abs=1e-10)


def quadratic_game(players, seed):
    """Effects of single players and of pairs, a little of the rest: what pictures are like."""
    generator = torch.Generator().manual_seed(seed)
    kept = all_masks(players).double()
    pairs = torch.randn(players, players, generator=generator, dtype=torch.float64)
    single = torch.randn(players, generator=generator, dtype=torch.float64)
    noise = torch.randn(2**players, generator=generator, dtype=torch.float64)
    return (kept @ single + ((kept @ pairs) * kept).sum(dim=1) / 2 + noise / 2)[None]


@pytest.mark.parametrize("budget", [120, 300])
def test_the_standard_error_of_kernel_shap_is_how_far_estimates_scatter(budget, shapley_by_definition):
    game = quadratic_game(10, seed=0)
    found = [kernel_shap(game, 10, budget, seed) for seed in range(80)]
    scatter = torch.stack([one.value_GM[0] for one in found]).std(dim=0).square().mean().sqrt()
    claimed = torch.stack([one.standard_error_GM[0] for one in found]).square().mean().sqrt()
    assert claimed / scatter == pytest.approx(1, abs=0.2)
    truth = shapley_by_definition(game[0], 10)
    inside = torch.stack([(one.value_GM[0] - truth).abs() < 2 * one.standard_error_GM[0] for one in found])
    assert 0.88 < inside.double().mean() < 0.99


def test_shapley_sampling_over_all_orders_is_the_shapley_value(shapley_by_definition):
    games = table(4)
    order = torch.tensor([half for one in itertools.permutations(range(4)) if one < one[::-1] for half in (one, one[::-1])])
    place = order.argsort(dim=1)
    kept = place[:, None] < torch.arange(5)[:, None]
    found = read_shapley_sampling(order, look_up(games, kept))
    for value, game in zip(found.value_GM, games, strict=True):
        torch.testing.assert_close(value, shapley_by_definition(game, 4))


def test_shapley_sampling_scatters_around_the_shapley_value_as_far_as_it_says(shapley_by_definition):
    game, found = quadratic_game(7, seed=1), []
    for seed in range(80):
        order, kept = permutation_masks(7, 16, seed)
        found.append(read_shapley_sampling(order, look_up(game, kept)))
    values = torch.stack([one.value_GM[0] for one in found])
    claimed = torch.stack([one.standard_error_GM[0] for one in found]).square().mean(dim=0).sqrt()
    assert ((values.mean(dim=0) - shapley_by_definition(game[0], 7)).abs() < 4 * claimed / 80**0.5).all()
    assert (claimed / values.std(dim=0)).mean() == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize(("width", "ridge"), [(0.25, 1.0), (0.7, 0.01)])
def test_lime_is_scikit_learns_weighted_ridge(width, ridge):
    kept = random_masks(6, 40, 0.5, seed=0)
    kept[0] = False  # the empty mask has no direction: as far away as can be
    values = look_up(table(6), kept)
    cosine = np.array([row.sum() / max(np.sqrt(row.sum()) * np.sqrt(6), 1e-12) for row in kept.double().numpy()])
    weights = np.exp(-((1 - cosine) ** 2) / (2 * width**2))
    found = read_lime(kept, values, width, ridge)
    for game in range(2):
        theirs = Ridge(alpha=ridge).fit(kept.double().numpy(), values[game].numpy(), sample_weight=weights)
        np.testing.assert_allclose(found.value_GM[game], theirs.coef_, atol=1e-9)


def test_the_standard_error_of_lime_is_how_far_estimates_scatter():
    game, found = quadratic_game(7, seed=2), []
    for seed in range(80):
        kept = random_masks(7, 100, 0.5, seed)
        found.append(read_lime(kept, look_up(game, kept), kernel_width=0.5, ridge=0.01))
    scatter = torch.stack([one.value_GM[0] for one in found]).std(dim=0)
    claimed = torch.stack([one.standard_error_GM[0] for one in found]).square().mean(dim=0).sqrt()
    assert (claimed / scatter).mean() == pytest.approx(1, abs=0.15)


def test_rise_is_the_mean_over_masks_that_keep_the_player():
    kept = random_masks(5, 30, 0.5, seed=0)
    values = look_up(table(5), kept)
    found = read_rise(kept, values)
    for player in range(5):
        chosen = values[:, kept[:, player]]
        torch.testing.assert_close(found.value_GM[:, player], chosen.mean(dim=1))
        torch.testing.assert_close(found.standard_error_GM[:, player], chosen.std(dim=1) / chosen.shape[1] ** 0.5)


def test_rise_needs_every_player_twice():
    kept = torch.tensor([[True, True], [True, False]])
    with pytest.raises(InputError, match="masks=2: a player is kept by 1 of them"):
        read_rise(kept, torch.zeros(1, 2))


def test_occlusion_is_what_the_whole_loses():
    games = table(3)
    found = read_occlusion(look_up(games, leave_one_out(3)))
    expected = torch.stack([games[:, 7] - games[:, 7 - 2**player] for player in range(3)], dim=1)
    torch.testing.assert_close(found.value_GM, expected)
    assert found.standard_error_GM.abs().max() == 0


def test_a_single_player_gets_everything():
    design = shapley_design(1, 2, seed=0)
    assert len(design.kept_KM) == 2
    assert read_kernel_shap(design, torch.tensor([[1.0, 4.0]])).value_GM.tolist() == [[3.0]]
