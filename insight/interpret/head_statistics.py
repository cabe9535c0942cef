"""What each attention head does, in a few numbers per picture, computed beside the fused kernel and without making whole maps.

B examples, H heads, Q queries that are looked at, S keys, N = 1 + patches image tokens (row 0 = class token), P patches, T text tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from insight.errors import InputError
from insight.interpret.explain import looking_at
from insight.interpret.family import Family, Target
from insight.interpret.record import record, weights_of
from insight.nn.attention import AttentionCall


class HeadRecord(NamedTuple):
    """One layer, one call, float32: a number for each query that is looked at."""

    stride: int  # query q is token q * stride
    entropy_BHQ: Tensor  # nats: log S = even attention, 0 = one key
    class_row_BHS: Tensor | None = None  # what the image's class token reads; None = the queries are words
    class_mass_BHQ: Tensor | None = None  # share that goes to the image's class token; None = the keys are words
    distance_BHQ: Tensor | None = None  # of a patch to the patches that it reads, in patches, weighted mean; of the class token: 0


@contextmanager
def record_heads(family: Family, num_patches: int = 4) -> Iterator[dict[str, HeadRecord]]:
    """Of every attention that is called inside the context, by module path; outputs are bit-identical. A layer may be called once.

    Args:
        num_patches: So many patches or a few more are looked at in each layer of the image tower, evenly spread, beside the class token.
            Words are all looked at.

    Raises:
        InputError: ``num_patches`` below 1.
    """
    if num_patches < 1:
        raise InputError(f"num_patches={num_patches}: must be at least 1")
    flow = family.flow
    keep: dict[str, Callable[[AttentionCall], HeadRecord]] = {}
    if family.grid is not None:
        stride, distance_QP = looked_at(family.grid, num_patches)
        keep |= dict.fromkeys(flow.image, _image_recorder(stride, distance_QP.to(next(family.model.parameters()).device)))
    keep |= dict.fromkeys([*flow.text, *(own for own, _ in flow.fusion)], of_words)
    keep |= dict.fromkeys([crossing for _, crossing in flow.fusion], of_words_reading_image)
    with record(family.model, keep) as found:
        yield found


def head_statistics(
    model: nn.Module | Family, batch: Any, target: Target | None = None, num_patches: int = 4
) -> dict[str, dict[str, Tensor]]:
    """Means over rows and queries by module path and name, (H,) each; padding is left out, the model is left as it was.

    Always ``entropy``; of what reads the image ``class_mass``; of the image tower ``class_entropy`` (of the class token's own row) and
    ``distance``, with entropy and mass over the patches; of words that read the image ``text_to_image``, the share that patches get.
    """
    with looking_at(model, batch, target) as subject, record_heads(subject.family, num_patches) as records:
        subject.score(subject.inputs)
        return {name: _summary(one, subject.rows.text_mask_RT) for name, one in records.items()}


def _summary(one: HeadRecord, mask_RT: Tensor | None) -> dict[str, Tensor]:
    if one.class_row_BHS is not None:
        assert one.class_mass_BHQ is not None and one.distance_BHQ is not None, "of an image tower"
        means = {name: value[..., 1:].mean(dim=(0, 2)) for name, value in one._asdict().items() if name.endswith("BHQ")}
        return {
            "entropy": means["entropy_BHQ"],
            "class_entropy": one.entropy_BHQ[..., 0].mean(dim=0),
            "class_mass": means["class_mass_BHQ"],
            "distance": means["distance_BHQ"],
        }
    assert mask_RT is not None, "words have a mask"
    weight_R1T = (mask_RT / mask_RT.sum(dim=-1, keepdim=True) / len(mask_RT))[:, None]
    found = {"entropy": (one.entropy_BHQ * weight_R1T).sum(dim=(0, 2))}
    if one.class_mass_BHQ is not None:
        found["class_mass"] = (one.class_mass_BHQ * weight_R1T).sum(dim=(0, 2))
        found["text_to_image"] = 1 - found["class_mass"]
    return found


# --- what is kept of one call ---
def _image_recorder(stride: int, distance_QP: Tensor) -> Callable[[AttentionCall], HeadRecord]:
    def keep(call: AttentionCall) -> HeadRecord:
        weights_BHQS = weights_of(call.of_queries(slice(None, None, stride)))
        class_mass_BHQ, on_patches_BHQP = weights_BHQS[..., 0], weights_BHQS[..., 1:]
        distance_BHQ = (on_patches_BHQP * distance_QP).sum(dim=-1) / on_patches_BHQP.sum(dim=-1).clamp(min=1e-12)
        return HeadRecord(stride, entropy(weights_BHQS), weights_BHQS[:, :, 0], class_mass_BHQ, distance_BHQ)

    return keep


def of_words(call: AttentionCall) -> HeadRecord:
    weights_BHTS = weights_of(call)
    return HeadRecord(1, entropy(weights_BHTS))


def of_words_reading_image(call: AttentionCall) -> HeadRecord:
    weights_BHTN = weights_of(call)
    return HeadRecord(1, entropy(weights_BHTN), class_mass_BHQ=weights_BHTN[..., 0])


def class_row(call: AttentionCall) -> Tensor:
    """(B, H, S): what the class token reads, and nothing else."""
    return weights_of(call.of_queries(slice(1)))[:, :, 0]


# --- the numbers themselves ---
def entropy(weights_BHTS: Tensor) -> Tensor:
    """``-sum_s A log A`` in nats, (B, H, T); 0 log 0 = 0."""
    smallest = torch.finfo(weights_BHTS.dtype).tiny
    return -weights_BHTS.clamp(min=smallest).log_().mul_(weights_BHTS).sum(dim=-1)  # three times faster than torch.special.entr


def mass(weights_BHTS: Tensor, queries_BT: Tensor, keys_BS: Tensor) -> Tensor:
    """(B, H): the share of their attention that some queries, on average, pay to some keys (both: True = belongs to the group); e.g. words
    to patches, where both stand in one sequence."""
    paid_BHT = (weights_BHTS * keys_BS[:, None, None]).sum(dim=-1)
    return (paid_BHT * queries_BT[:, None]).sum(dim=-1) / queries_BT.sum(dim=-1)[:, None].clamp(min=1)


def patch_distances(grid: int) -> Tensor:
    """(P, P): between the centres of patches, in patches."""
    place_g = torch.arange(grid, dtype=torch.float32)
    place_P2 = torch.cartesian_prod(place_g, place_g).reshape(-1, 2)
    return (place_P2[:, None] - place_P2).norm(dim=-1)


def looked_at(grid: int, num_patches: int) -> tuple[int, Tensor]:
    """A stride through the image tokens that begins at the class token, and the distances of those tokens to all patches (Q, P).

    A stride needs no copy of the queries. It is the largest that meets at least ``num_patches`` patches and has no divisor in common with
    the grid, so that they lie in different columns.
    """
    total = grid**2
    stride = next(step for step in range(max(1, total // num_patches), 0, -1) if math.gcd(step, grid) == 1)
    patches = torch.arange(stride - 1, total, stride)
    return stride, torch.cat([torch.zeros(1, total), patch_distances(grid)[patches]])
