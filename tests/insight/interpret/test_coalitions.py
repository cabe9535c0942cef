from collections import Counter
from math import comb

import pytest
import torch

from insight.errors import InputError
from insight.interpret.coalitions import (
    ENUMERATED,
    all_masks,
    joining,
    leave_one_out,
    permutation_masks,
    random_masks,
    shapley_design,
    smallest_budget,
)


def rows(kept):
    return [tuple(row) for row in kept.int().tolist()]


def kernel(players, size):
    """Theorem 2 of https://arxiv.org/abs/1705.07874."""
    return (players - 1) / (comb(players, size) * size * (players - size))


def test_all_masks_are_all_numbers_in_binary():
    assert rows(all_masks(3)) == [(0, 0, 0), (1, 0, 0), (0, 1, 0), (1, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 1), (1, 1, 1)]
    with pytest.raises(InputError, match="21 players: all masks are listed for 1 to 20"):
        all_masks(21)


@pytest.mark.parametrize("players", [1, 2, 3, 5, 6])
def test_a_budget_for_all_lists_every_mask_once_with_the_weight_of_the_kernel(players):
    design = shapley_design(players, 2**players, seed=0)
    assert sorted(rows(design.kept_KM)) == sorted(rows(all_masks(players)))
    assert rows(design.kept_KM[:2]) == [(0,) * players, (1,) * players]
    assert (design.stratum_K == ENUMERATED).all()
    expected = torch.tensor([kernel(players, sum(row)) for row in rows(design.kept_KM[2:])], dtype=torch.float64)
    torch.testing.assert_close(design.weight_K[2:] / design.weight_K[2:].sum(), expected / expected.sum())


@pytest.mark.parametrize(("players", "budget"), [(16, 98), (16, 256), (16, 257), (16, 1024), (7, 60), (6, 40), (30, 400)])
def test_a_design_is_paired_without_repetition_and_as_heavy_as_the_kernel(players, budget):
    design = shapley_design(players, budget, seed=3)
    kept = rows(design.kept_KM)
    assert budget - 1 <= len(kept) + 1 <= budget + 1
    assert len(set(kept)) == len(kept)
    assert all(tuple(1 - bit for bit in one) == other for one, other in zip(kept[2::2], kept[3::2], strict=True))
    sizes = design.kept_KM.sum(dim=1)
    assert set(torch.minimum(sizes, players - sizes)[design.stratum_K != ENUMERATED].tolist()) == set(
        design.stratum_K[design.stratum_K != ENUMERATED].tolist()
    )
    counts = Counter(sizes[2:].tolist())
    weights = {size: float(design.weight_K[2:][sizes[2:] == size].sum()) for size in counts}
    assert counts[1] == players  # each alone and each left out: the fit is determined
    present = {size: kernel(players, size) * comb(players, size) for size in weights}
    if len(weights) == players - 1:  # every size has a mask: each weighs what all masks of its size weigh
        for size, mass in present.items():
            assert weights[size] / sum(weights.values()) == pytest.approx(mass / sum(present.values()))


def test_lots_follow_the_seed_and_leave_the_global_generator_alone():
    state = torch.get_rng_state()
    first, again, other = (shapley_design(16, 128, seed) for seed in (0, 0, 1))
    assert torch.equal(first.kept_KM, again.kept_KM) and not torch.equal(first.kept_KM, other.kept_KM)
    assert torch.equal(random_masks(5, 9, 0.5, 0), random_masks(5, 9, 0.5, 0))
    permutation_masks(4, 2, 0)
    assert torch.equal(torch.get_rng_state(), state)


def test_every_mask_of_a_size_is_as_likely_as_the_others():
    found = Counter()
    for seed in range(400):
        design = shapley_design(6, 38, seed)
        found.update(row for row, stratum in zip(rows(design.kept_KM), design.stratum_K.tolist(), strict=True) if stratum == 3)
    assert len(found) == comb(6, 3)
    expected = sum(found.values()) / len(found)
    assert all(abs(count - expected) < 5 * expected**0.5 for count in found.values())


def test_permutations_come_with_their_reverse_and_join_one_by_one():
    order, kept = permutation_masks(5, 6, seed=0)
    assert torch.equal(order[1::2], order[0::2].flip(1))
    for permutation, masks in zip(order.tolist(), kept, strict=True):
        assert sorted(permutation) == list(range(5))
        for number, mask in enumerate(masks):
            assert set(mask.nonzero()[:, 0].tolist()) == set(permutation[:number])
    assert rows(joining(torch.tensor([[2, 0, 1]]))[0]) == [(0, 0, 0), (0, 0, 1), (1, 0, 1), (1, 1, 1)]


def test_leave_one_out_starts_with_everybody():
    assert rows(leave_one_out(3)) == [(1, 1, 1), (0, 1, 1), (1, 0, 1), (1, 1, 0)]


def test_random_masks_keep_as_many_as_asked():
    assert random_masks(50, 200, 0.3, seed=0).float().mean() == pytest.approx(0.3, abs=0.02)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda: shapley_design(16, 97, 0), "budget=97: KernelSHAP over 16 players needs at least 98 masks"),
        (lambda: shapley_design(3, 7, 0), "needs at least 8 masks"),
        (lambda: shapley_design(0, 64, 0), "nothing to leave out"),
        (lambda: leave_one_out(0), "nothing to leave out"),
        (lambda: permutation_masks(4, 3, 0), "permutations=3: each comes with its reverse"),
        (lambda: random_masks(4, 0, 0.5, 0), "masks=0"),
        (lambda: random_masks(4, 8, 1.0, 0), r"keep=1\.0"),
    ],
)
def test_what_cannot_be_asked_is_an_error_that_says_why(ask, message):
    with pytest.raises(InputError, match=message):
        ask()


def test_the_smallest_budget_is_enough():
    for players in (1, 2, 3, 4, 5, 9, 25):
        assert len(shapley_design(players, smallest_budget(players), 0).kept_KM) <= smallest_budget(players)
