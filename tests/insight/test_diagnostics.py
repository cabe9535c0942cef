"""Figures of embeddings and gradients beside loops written by hand and shapes whose figures are known."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from insight.diagnostics import (
    alignment,
    collapsed,
    effective_rank,
    embedding_figures,
    false_negative_rate,
    gradient_norms,
    modality_gap,
    part_of,
    towers,
    trained_parts,
    uniformity,
    update_ratios,
)


def unit(rows: int, width: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_alignment_and_uniformity_are_those_of_the_paper_by_loops():
    image, text = unit(13, 5), unit(13, 5, seed=1)
    distances = [sum((a - b) ** 2 for a, b in zip(one, two, strict=True)) for one, two in zip(image.tolist(), text.tolist(), strict=True)]
    assert alignment(image, text).item() == pytest.approx(sum(distances) / 13, rel=1e-5)
    rows = image.tolist()
    powers = [
        math.exp(-2 * sum((a - b) ** 2 for a, b in zip(rows[i], rows[j], strict=True))) for i in range(13) for j in range(13) if i != j
    ]
    assert uniformity(image).item() == pytest.approx(math.log(sum(powers) / len(powers)), rel=1e-5)


def test_uniformity_is_0_for_one_point_and_near_minus_4_for_a_filled_sphere_in_many_dimensions():
    assert uniformity(unit(1, 8).expand(20, 8)).item() == pytest.approx(0, abs=1e-4)
    assert -4.0 < uniformity(unit(400, 128)).item() < -3.8  # two random directions are sqrt(2) apart


@pytest.mark.parametrize("directions", [1, 2, 5, 8])
def test_the_effective_rank_counts_directions_of_equal_length_and_does_not_see_the_scale(directions):
    axes = torch.eye(8)[:directions]
    points = torch.cat([axes, -axes])  # about the mean 0
    for scale in (1.0, 1e-3):
        assert effective_rank(scale * points + 3.0).item() == pytest.approx(directions, rel=1e-4)


def test_the_effective_rank_of_uneven_directions_follows_the_entropy():
    points = torch.cat([torch.diag(torch.tensor([4.0, 2.0, 1.0])), -torch.diag(torch.tensor([4.0, 2.0, 1.0]))])
    share = [4 / 7, 2 / 7, 1 / 7]
    assert effective_rank(points).item() == pytest.approx(math.exp(-sum(p * math.log(p) for p in share)), rel=1e-4)
    assert effective_rank(torch.ones(5, 3)).item() == pytest.approx(1.0)


def test_a_collapse_is_named_and_healthy_embeddings_are_not():
    healthy = unit(40, 16)
    line = F.normalize(torch.linspace(-1, 1, 40)[:, None] * torch.ones(16) / 4 + torch.eye(16)[0], dim=-1)
    flat = F.normalize(torch.eye(16)[0] + 0.001 * unit(40, 16, seed=2), dim=-1)
    assert collapsed(embedding_figures(healthy, unit(40, 16, seed=3)), 40, 16) == {}
    found = collapsed(embedding_figures(flat, line), 40, 16)
    assert "image embeddings are nearly one point" in found["image"] and "effective rank 1" in found["text"] and "of 16" in found["text"]
    assert collapsed(embedding_figures(flat[:5], line[:5]), 5, 16) == {}  # too few to say


def test_an_untrained_tower_with_cosines_near_98_hundredths_is_no_collapse():
    near = F.normalize(torch.eye(64)[0] + 0.14 * unit(100, 64), dim=-1)
    assert (near @ near.T).mean().item() == pytest.approx(0.98, abs=0.005)
    assert collapsed(embedding_figures(near, near), 100, 64) == {}


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image, self.text, self.fusion = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(4, 4)
        self.logit_bias = nn.Parameter(torch.zeros(()))


def test_gradient_norms_are_those_of_all_entries_of_a_part_by_a_loop():
    model = nn.ModuleDict({"model": Small()})
    model["model"].text.requires_grad_(False)
    parts = trained_parts(model.named_parameters())
    assert set(parts) == {"image", "fusion", "logit_bias"} and towers(parts) == {"image", "fusion"}
    (3.0 * model["model"].image(torch.randn(5, 3))).square().sum().backward()
    by_hand = sum(float(value) ** 2 for one in model["model"].image.parameters() for value in one.grad.flatten()) ** 0.5
    norms = {part: float(norm) for part, norm in gradient_norms(parts).items()}
    assert norms == {"image": pytest.approx(by_hand, rel=1e-5), "fusion": 0.0, "logit_bias": 0.0}
    assert gradient_norms({}) == {}


@pytest.mark.parametrize(("name", "part"), [("model.image.blocks.0.norm.weight", "image"), ("model.logit_scale", "logit_scale")])
def test_a_parameter_belongs_to_the_first_module_below_the_model(name, part):
    assert part_of(name) == part


def test_the_modality_gap_is_the_distance_of_the_means_by_a_loop():
    image, text = unit(9, 5), unit(9, 5, seed=1)
    square = sum((sum(row[i] for row in image.tolist()) / 9 - sum(row[i] for row in text.tolist()) / 9) ** 2 for i in range(5))
    assert modality_gap(image, text).item() == pytest.approx(square**0.5, rel=1e-5)
    assert modality_gap(image, image.flip(0)).item() == pytest.approx(0, abs=1e-6)
    assert modality_gap(image[:1].expand(3, 5), -image[:1].expand(3, 5)).item() == pytest.approx(2)


@pytest.mark.parametrize("overlap", [0.3, 0.5, 0.75, 1.0])
def test_the_false_negative_rate_counts_captions_of_other_pictures_by_a_double_loop(overlap):
    texts = ["A dog runs.", "a DOG, runs!", "A dog runs on grass", "Two men", "two men talk", "Two men"]
    pictures = [0, 1, 1, 2, 2, 3]
    false = every = 0
    for i, one in enumerate(texts):
        for j, other in enumerate(texts):
            if pictures[i] != pictures[j]:
                a, b = (set(text.lower().strip(".!").replace(",", "").split()) for text in (one, other))
                every += 1
                false += len(a & b) / len(a | b) >= overlap
    assert false > 0 and false_negative_rate(texts, pictures, overlap) == false / every
    assert false_negative_rate(texts[:1], [0]) == 0


def test_update_ratios_are_those_of_a_step_by_hand():
    model = nn.ModuleDict({"model": Small()})
    parts = trained_parts(model.named_parameters())
    before = {part: [one.detach().clone() for one in parameters] for part, parameters in parts.items()}
    with torch.no_grad():
        model["model"].image.weight.mul_(1.01)
        model["model"].image.bias.mul_(1.01)
    ratios = {part: float(ratio) for part, ratio in update_ratios(parts, before).items()}
    assert ratios == {"image": pytest.approx(0.01, rel=1e-3), "text": 0.0, "fusion": 0.0, "logit_bias": 0.0}
