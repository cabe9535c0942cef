"""Batches whose order and augmentation are pure functions of seeds, and a loader that goes on where a killed run stopped.

Facts behind it: Lightning makes the loader's iterator before it restores the loop's progress (Lightning #21938) and drops the state of
stateful loaders in some paths (#20550). So nothing is kept in a checkpoint: at the first ``next()`` the loader asks where training stands.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from insight.errors import InputError
from insight.stages import derive_seed

EpochOrder = Callable[[int, torch.Generator], list[int]]
SampleKey = tuple[int, int]  # index in the data set, seed of everything random about this sample


class EpochBatches(Sampler[list[SampleKey]]):
    """One rank's batches of (index, sample seed) for one epoch. Every rank takes its slice of the same global batch.

    Args:
        num_samples: Size of the data set.
        batch_size: Samples of a global batch, over all ranks. The last incomplete batch of an epoch is dropped.
        seed: Of the stage.
        rank: Of this process.
        world: Number of processes.
        order: ``(epoch, generator) -> indices``, from which the batches are cut; None: all, shuffled.

    Raises:
        InputError: ``batch_size`` is not a multiple of ``world``, or the data set has less than one batch.
    """

    def __init__(
        self, num_samples: int, batch_size: int, seed: int, rank: int = 0, world: int = 1, order: EpochOrder | None = None
    ) -> None:
        if batch_size < 1 or batch_size % world:
            raise InputError(f"batch_size={batch_size}: must be a positive multiple of {world}, the number of devices")
        if num_samples < batch_size:
            raise InputError(f"batch_size={batch_size} is more than the {num_samples} training pictures: choose a smaller one")
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world = world
        self.order = order
        self.epoch = 0
        self.start = 0  # first batch that is served

    def __len__(self) -> int:
        """Batches of a whole epoch, wherever ``start`` is."""
        return self.num_samples // self.batch_size

    def __iter__(self) -> Iterator[list[SampleKey]]:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, self.epoch))
        order = torch.randperm(self.num_samples, generator=generator).tolist() if self.order is None else self.order(self.epoch, generator)
        share = self.batch_size // self.world
        for batch in range(self.start, len(self)):
            first = batch * self.batch_size + self.rank * share
            yield [(index, derive_seed(self.seed, self.epoch, index)) for index in order[first : first + share]]


class ResumableLoader(DataLoader):
    """A training loader that asks ``position`` for (epoch, batch) at the first ``next()`` of every epoch."""

    def __init__(
        self,
        dataset: Dataset,
        batches: EpochBatches,
        position: Callable[[], tuple[int, int]],
        collate_fn: Callable[[list[Any]], Any],
        num_workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        super().__init__(
            dataset,
            batch_sampler=batches,
            collate_fn=collate_fn,
            num_workers=num_workers,
            pin_memory=pin_memory,
            persistent_workers=num_workers > 0,
            generator=torch.Generator().manual_seed(0),  # its own, so that iterating leaves the global random state alone
        )
        self._batches = batches
        self._position = position

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        def start_late() -> Iterator[Any]:
            self._batches.epoch, self._batches.start = self._position()
            yield from super(ResumableLoader, self).__iter__()

        return start_late()

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the position is the trainer's. Only its being there tells Lightning that this loader can resume."""
        return {"position": "of the trainer"}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to restore."""


def rank_share(num_samples: int, rank: int, world: int) -> list[int]:
    """Which samples a rank evaluates: every ``world``-th. All ranks get equally many, so that no collective waits for ever;
    the last ones may repeat a sample of the beginning, which the metrics count once."""
    rounds = math.ceil(num_samples / world)
    return [(step * world + rank) % num_samples for step in range(rounds)]


def evaluation_loader(
    dataset: Dataset,
    indices: list[int],
    batch_size: int,
    collate_fn: Callable[[list[Any]], Any],
    num_workers: int = 0,
    pin_memory: bool = False,
) -> DataLoader:
    """Samples in the order of ``indices``."""
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=indices,
        collate_fn=collate_fn,
        num_workers=num_workers,
        pin_memory=pin_memory,
        generator=torch.Generator().manual_seed(0),
    )
