"""All-gather that carries gradients, for losses over the global batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

MAX_DIMS = 8
_ALONE: ContextVar[bool] = ContextVar("alone", default=False)


@contextmanager
def alone() -> Iterator[None]:
    """Within, this process counts as the only one: a loss is that of its own batch, and asks the others for nothing."""
    token = _ALONE.set(True)
    try:
        yield
    finally:
        _ALONE.reset(token)


def _in_group() -> bool:
    return not _ALONE.get() and dist.is_available() and dist.is_initialized()


def world_size() -> int:
    """Processes of the default group; 1 when ``torch.distributed`` is not in use."""
    return dist.get_world_size() if _in_group() else 1


def rank() -> int:
    """This process in the default group; 0 when ``torch.distributed`` is not in use."""
    return dist.get_rank() if _in_group() else 0


class GatherWithGradient(torch.autograd.Function):
    """Forward: concatenate every process's rows. Backward: sum the gradients of all processes, keep this process's rows.

    When every process computes the same loss over the gathered batch, the mean of the parameters' gradients over processes (what
    DistributedDataParallel takes) is the gradient of that loss in one process. ``torch.distributed.nn.functional.all_gather`` did the
    same until torch 2.14 deprecated it.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.rows = len(x)
        return _all_gather(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.clone(memory_format=torch.contiguous_format)  # the reduction writes in place; the incoming one isn't ours
        dist.all_reduce(gradient)
        return gradient[rank() * ctx.rows :][: ctx.rows]


def gather(x: Tensor) -> Tensor:
    """Rows of all processes in order of rank: (N, ...) -> (processes * N, ...), with gradients; ``x`` itself in one process.

    Raises:
        ValueError: the processes hold different shapes.

    >>> gather(torch.tensor([1.0, 2.0]))
    tensor([1., 2.])
    """
    if world_size() == 1:
        return x
    _check_equal_shapes(x)
    if x.dtype == torch.bool:  # not every backend sends booleans
        return _all_gather(x.to(torch.uint8)).to(torch.bool)
    return GatherWithGradient.apply(x) if x.requires_grad else _all_gather(x)


def count_per_device(chosen: Tensor) -> Tensor:
    """(): how many are True on all processes, divided by their number. What a sum is divided by so that the mean over processes is the mean
    over all that were counted."""
    return gather(chosen.sum()[None]).sum() / world_size()


def _all_gather(x: Tensor) -> Tensor:
    parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(world_size())]
    dist.all_gather(parts, x.contiguous())
    return torch.cat(parts)


def _check_equal_shapes(x: Tensor) -> None:
    """A collective over unequal shapes hangs or mixes up rows, so all processes compare first and all raise together."""
    own = torch.full((MAX_DIMS,), -1, dtype=torch.int64, device=x.device)
    own[: x.ndim] = torch.tensor(x.shape, dtype=torch.int64, device=x.device)
    shapes = [[size for size in row if size >= 0] for row in _all_gather(own[None]).tolist()]
    if any(shape != shapes[0] for shape in shapes):
        listed = ", ".join(f"process {process}: {tuple(shape)}" for process, shape in enumerate(shapes))
        raise ValueError(
            f"gather needs equal shapes on all processes, got {listed}; give every process as many pictures and captions "
            "(captions_per_image as a number, not 'all', and the short last batch dropped)"
        )
