"""The order of batches is a pure function of seeds; a resumed loader goes on where it stopped."""

from __future__ import annotations

import random

import pytest
import torch
from torch.utils.data import Dataset

from datamodules.loading import EpochBatches, ResumableLoader, evaluation_loader, rank_share
from insight.errors import InputError


class Noise(Dataset):
    """Every sample draws from its own seed."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, key: tuple[int, int]) -> tuple[int, float]:
        index, seed = key
        return index, random.Random(seed).random()


def collate(samples: list) -> torch.Tensor:
    return torch.tensor(samples)


def batches_of(epoch: int = 0, start: int = 0, **arguments: int) -> list[list[tuple[int, int]]]:
    batches = EpochBatches(**{"num_samples": 23, "batch_size": 4, "seed": 7, **arguments})
    batches.epoch, batches.start = epoch, start
    return list(batches)


def test_an_epoch_serves_every_sample_once_but_for_the_incomplete_batch() -> None:
    served = [index for batch in batches_of() for index, _ in batch]
    assert len(batches_of()) == len(EpochBatches(23, 4, 7)) == 5
    assert len(served) == len(set(served)) == 20 and set(served) < set(range(23))


def test_order_and_seeds_depend_on_stage_and_epoch_alone() -> None:
    assert batches_of() == batches_of()
    orders = [tuple(index for batch in batches_of(epoch, seed=seed) for index, _ in batch) for epoch in (0, 1) for seed in (7, 8)]
    assert len(set(orders)) == 4
    first, second = (dict(pair for batch in batches_of(epoch, batch_size=1) for pair in batch) for epoch in (0, 1))
    assert all(first[index] != second[index] for index in range(23))  # another crop in every epoch
    assert len(set(first.values())) == 23


def test_starting_late_serves_the_rest_of_the_same_epoch() -> None:
    for start in range(6):
        assert batches_of(epoch=2, start=start) == batches_of(epoch=2)[start:]


@pytest.mark.parametrize("world", [2, 4])
def test_the_ranks_slices_make_up_the_same_global_batch(world: int) -> None:
    ranks = [batches_of(epoch=1, rank=rank, world=world) for rank in range(world)]
    assert [[pair for part in parts for pair in part] for parts in zip(*ranks, strict=True)] == batches_of(epoch=1)


def test_batch_sizes_that_cannot_be_are_refused() -> None:
    with pytest.raises(InputError, match="batch_size=5: must be a positive multiple of 2"):
        EpochBatches(23, 5, 0, rank=0, world=2)
    with pytest.raises(InputError, match="batch_size=24 is more than the 23 training pictures"):
        EpochBatches(23, 24, 0)


def test_the_loader_asks_for_its_position_at_the_first_next_not_before() -> None:
    position = (0, 0)
    loader = ResumableLoader(Noise(23), EpochBatches(23, 4, 7), lambda: position, collate)
    whole = {epoch: [] for epoch in (0, 1)}  # type: dict[int, list[torch.Tensor]]
    for epoch in whole:
        position = (epoch, 0)
        whole[epoch] = list(loader)
    position = (0, 0)
    iterator = iter(loader)
    position = (1, 3)  # restored after the iterator was made, as Lightning does
    assert torch.equal(torch.stack(list(iterator)), torch.stack(whole[1][3:]))
    assert len(loader) == 5


def test_worker_processes_change_nothing() -> None:
    epochs = []
    for num_workers in (0, 2):
        position = [0, 0]
        loader = ResumableLoader(Noise(23), EpochBatches(23, 4, 7), lambda where=position: (where[0], where[1]), collate, num_workers)
        served = list(loader)
        position[:] = [1, 2]  # the same workers go on with the next epoch
        served += list(loader)
        epochs.append(torch.stack(served))
    assert torch.equal(epochs[0], epochs[1]) and len(epochs[0]) == 8


def test_iterating_leaves_the_global_random_state_alone() -> None:
    before = torch.get_rng_state()
    list(ResumableLoader(Noise(23), EpochBatches(23, 4, 7), lambda: (0, 0), collate))
    list(evaluation_loader(Noise(23), [], 4, collate))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("num", "world"), [(10, 1), (10, 3), (2, 4), (9, 3)])
def test_ranks_evaluate_everything_in_equally_many_steps(num: int, world: int) -> None:
    shares = [rank_share(num, rank, world) for rank in range(world)]
    assert len({len(share) for share in shares}) == 1
    assert set().union(*shares) == set(range(num))
    assert sum(map(len, shares)) < num + world
    if world == 1:
        assert shares[0] == list(range(num))
