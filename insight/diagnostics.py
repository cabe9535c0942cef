"""Is a training healthy: what its embeddings look like, and which parts of the model its gradient reaches.

N pairs or embeddings, E width of an embedding. Embeddings have length 1.

Alignment and uniformity: T. Wang and P. Isola, https://arxiv.org/abs/2005.10242, equations 1 and 2 with alpha = t = 2.
Effective rank: O. Roy and M. Vetterli, "The effective rank" (EUSIPCO 2007), section 2. Why embeddings collapse to few directions:
https://arxiv.org/abs/2110.09348. Modality gap: https://arxiv.org/abs/2203.02053, section 2.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

ONE_POINT = -0.01  # uniformity above it: the mean cosine is above .9975 (untrained towers here begin near .98)
ONE_LINE = 2.0  # effective rank below it
FEWEST = 8  # embeddings; of fewer nothing is said


def alignment(image_NE: Tensor, text_NE: Tensor) -> Tensor:
    """Mean squared distance of row n to row n, from 0 (equal) to 4 (opposite): ().

    >>> alignment(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [0.0, -1.0]]))
    tensor(2.)
    """
    return (image_NE - text_NE).square().sum(dim=-1).mean()


def uniformity(embedding_NE: Tensor) -> Tensor:
    """log of the mean of ``exp(-2 * squared distance)`` over all pairs of rows: 0 where all are equal, near -4 on an evenly filled sphere.

    >>> uniformity(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
    tensor(-8.)
    """
    distance = torch.pdist(embedding_NE.float())
    return torch.logsumexp(-2 * distance.square(), dim=0) - torch.log(torch.tensor(float(len(distance)), device=distance.device))


def effective_rank(embedding_NE: Tensor) -> Tensor:
    """exp of the entropy of the singular values (their share in the sum) about the mean: from 1 (a line) to E; 1 where all are equal: ().

    >>> effective_rank(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]))
    tensor(2.)
    """
    values = torch.linalg.svdvals((embedding_NE - embedding_NE.mean(dim=0)).float())
    share = values / values.sum().clamp_min(torch.finfo(values.dtype).tiny)
    return torch.special.entr(share).sum().exp()


def modality_gap(image_NE: Tensor, text_NE: Tensor) -> Tensor:
    """Distance between the mean picture and the mean caption, from 0 to 2: ().

    >>> modality_gap(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [0.0, -1.0]]))
    tensor(1.)
    """
    return (image_NE.float().mean(dim=0) - text_NE.float().mean(dim=0)).norm()


def false_negative_rate(texts: Sequence[str], pictures: Sequence[int], overlap: float = 0.8) -> float:
    """Of all pairs of captions of different pictures, which a contrastive loss pushes apart, the part that says the same: the words that
    both have are at least ``overlap`` of the words that either has (Jaccard). 0 where there is no such pair.

    >>> false_negative_rate(["A dog runs.", "a dog runs", "Two men."], [0, 1, 2])
    0.3333333333333333
    """
    said = [set(re.findall(r"\w+", text.lower())) for text in texts]
    columns = {word: column for column, word in enumerate(sorted(set().union(*said)))}
    words_CW = torch.zeros(len(texts), len(columns))
    for row, words in enumerate(said):
        words_CW[row, [columns[word] for word in words]] = 1
    picture_C, count_C = torch.tensor(pictures), words_CW.sum(dim=1)
    both_CC = words_CW @ words_CW.T
    same_CC = both_CC >= overlap * (count_C[:, None] + count_C[None, :] - both_CC) - 1e-6
    negative_CC = picture_C[:, None] != picture_C[None, :]
    return int((same_CC & negative_CC).sum()) / max(1, int(negative_CC.sum()))


def embedding_figures(image_NE: Tensor, text_NE: Tensor) -> dict[str, float]:
    """All of the above, by the last part of their metric names."""
    figures = {"alignment": alignment(image_NE, text_NE), "modality_gap": modality_gap(image_NE, text_NE)}
    for tower, embedding_NE in (("image", image_NE), ("text", text_NE)):
        figures[f"uniformity_{tower}"] = uniformity(embedding_NE)
        figures[f"effective_rank_{tower}"] = effective_rank(embedding_NE)
    return {name: float(value) for name, value in figures.items()}


def collapsed(figures: Mapping[str, float], num_embeddings: int, width: int) -> dict[str, str]:
    """What is wrong, by tower; empty where nothing is."""
    found: dict[str, str] = {}
    if num_embeddings < FEWEST:
        return found
    for tower in ("image", "text"):
        even, rank = figures[f"uniformity_{tower}"], figures[f"effective_rank_{tower}"]
        if even > ONE_POINT:
            found[tower] = f"all {tower} embeddings are nearly one point (uniformity {even:.4f}; 0 is one point)"
        elif rank < ONE_LINE:
            found[tower] = f"the {tower} embeddings differ in one direction only (effective rank {rank:.2f} of {width})"
    return found


def part_of(name: str) -> str:
    """The part of the model that a parameter belongs to.

    >>> part_of("model.image.blocks.0.norm.weight"), part_of("model.logit_scale")
    ('image', 'logit_scale')
    """
    return name.removeprefix("model.").split(".")[0]


def trained_parts(named_parameters: Iterable[tuple[str, nn.Parameter]]) -> dict[str, list[nn.Parameter]]:
    """What trains, by part, in the order of the model."""
    parts: dict[str, list[nn.Parameter]] = {}
    for name, parameter in named_parameters:
        if parameter.requires_grad:
            parts.setdefault(part_of(name), []).append(parameter)
    return parts


def gradient_norms(parts: Mapping[str, list[nn.Parameter]]) -> dict[str, Tensor]:
    """Length of each part's gradient, () each; 0 where no gradient has arrived."""
    device = next(iter(next(iter(parts.values())))).device if parts else torch.device("cpu")
    norms = {}
    for part, parameters in parts.items():
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        norms[part] = get_total_norm(gradients) if gradients else torch.zeros((), device=device)
    return norms


def update_ratios(parts: Mapping[str, list[nn.Parameter]], before: Mapping[str, list[Tensor]]) -> dict[str, Tensor]:
    """Length of the last step in each part beside the length of its weights before it, () each. Near 0.001 is usual; far above, the rate
    is too high for the part, far below, it stands still.

    Args:
        before: The weights before the step, in the order of ``parts``.
    """
    ratios = {}
    for part, parameters in parts.items():
        moved = [now.detach() - old for now, old in zip(parameters, before[part], strict=True)]
        length = get_total_norm(before[part])
        ratios[part] = get_total_norm(moved) / length.clamp_min(torch.finfo(length.dtype).tiny)
    return ratios


def towers(parts: Mapping[str, list[nn.Parameter]]) -> set[str]:
    """The parts that hold a matrix: those that are dead without a gradient. (A bias on the logits may be in no loss of the stage.)"""
    return {part for part, parameters in parts.items() if any(parameter.ndim >= 2 for parameter in parameters)}
