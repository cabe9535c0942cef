import math

import pytest
import torch

from insight.errors import InputError
from insight.interpret.family import Target
from insight.interpret.head_statistics import entropy, head_statistics, looked_at, mass, patch_distances, record_heads
from insight.interpret.record import attention_layers, record_attention


def inputs_of(family, batch):
    return family.embed(family.rows(batch, None)[0])


def test_entropy_is_that_of_even_single_and_mixed_attention():
    weights = torch.tensor([[0.25, 0.25, 0.25, 0.25], [0.0, 1.0, 0.0, 0.0], [0.5, 0.5, 0.0, 0.0]])
    torch.testing.assert_close(entropy(weights), torch.tensor([math.log(4), 0.0, math.log(2)]))


def test_mass_is_the_mean_share_that_a_group_pays_to_a_group():
    weights = torch.tensor([[[[0.1, 0.2, 0.7], [0.5, 0.3, 0.2], [1.0, 0.0, 0.0]]]])
    queries, keys = torch.tensor([[True, True, False]]), torch.tensor([[False, True, True]])
    torch.testing.assert_close(mass(weights, queries, keys), torch.tensor([[(0.9 + 0.5) / 2]]))
    assert mass(weights, torch.zeros(1, 3, dtype=torch.bool), keys).tolist() == [[0.0]]


def test_distances_are_between_the_centres_of_patches():
    distance = patch_distances(3)
    assert distance.shape == (9, 9) and distance[0].tolist() == pytest.approx(
        [0, 1, 2, 1, math.sqrt(2), math.sqrt(5), 2, math.sqrt(5), math.sqrt(8)]
    )
    assert torch.equal(distance, distance.T)


@pytest.mark.parametrize(("grid", "asked"), [(3, 4), (3, 9), (3, 100), (8, 4), (8, 8), (14, 4), (24, 8), (1, 8), (6, 4)])
def test_patches_that_are_looked_at_are_spread_over_rows_and_columns(grid, asked):
    stride, distance = looked_at(grid, asked)
    patches = torch.arange(1 + grid**2)[::stride][1:] - 1
    assert min(asked, grid**2) <= len(patches) <= max(2 * asked, grid**2 if asked > grid else 0)
    assert not distance[0].any() and torch.equal(distance[1:], patch_distances(grid)[patches])
    if len(patches) <= grid:
        assert len((patches % grid).unique()) == len((patches // grid).unique()) == len(patches)


@torch.no_grad()
def test_statistics_are_those_of_the_whole_maps(family, batch):
    inputs = inputs_of(family, batch)
    with record_attention(family.model) as maps:
        plain = family.score(inputs)
    with record_heads(family, num_patches=4) as heads:
        assert torch.equal(family.score(inputs), plain)
    assert set(heads) == set(attention_layers(family.model))
    for name in family.flow.image:
        found, whole = heads[name], maps[name]
        assert found.stride == 2 and found.entropy_BHQ.shape[-1] == 5
        torch.testing.assert_close(found.class_row_BHS, whole[:, :, 0])
        for column, query in enumerate(range(0, 10, 2)):
            weights = whole[:, :, query]
            torch.testing.assert_close(found.entropy_BHQ[..., column], -(weights * weights.log()).sum(dim=-1))
            torch.testing.assert_close(found.class_mass_BHQ[..., column], weights[..., 0])
            if query:
                mean = (weights[..., 1:] * patch_distances(3)[query - 1]).sum(dim=-1) / weights[..., 1:].sum(dim=-1)
                torch.testing.assert_close(found.distance_BHQ[..., column], mean)
    for own, crossing in family.flow.fusion:
        torch.testing.assert_close(heads[crossing].class_mass_BHQ, maps[crossing][..., 0])
        assert heads[own].class_mass_BHQ is None and heads[own].class_row_BHS is None


def test_the_summary_leaves_padding_out_and_the_model_alone(cross_attention, batch):
    cross_attention.model.train()
    torch.manual_seed(3)
    state = torch.get_rng_state()
    summary = head_statistics(cross_attention, batch, num_patches=9)
    assert torch.equal(torch.get_rng_state(), state) and cross_attention.model.training
    assert not any(layer.tap.listeners for layer in attention_layers(cross_attention.model).values())
    cross_attention.model.eval()
    with torch.no_grad(), record_attention(cross_attention.model) as maps:
        cross_attention.score(inputs_of(cross_attention, batch))
    assert set(summary) == set(maps)
    crossing, own, image = maps["fusion.1.cross_attention"], maps["fusion.0.attention"], maps["image.blocks.1.attention"]
    real = batch.token_mask
    expected = torch.stack([crossing[row, :, real[row], 1:].sum(dim=-1).mean(dim=-1) for row in range(4)]).mean(dim=0)
    torch.testing.assert_close(summary["fusion.1.cross_attention"]["text_to_image"], expected)
    expected = torch.stack([entropy(own[row])[:, real[row]].mean(dim=-1) for row in range(4)]).mean(dim=0)
    torch.testing.assert_close(summary["fusion.0.attention"]["entropy"], expected)
    torch.testing.assert_close(summary["image.blocks.1.attention"]["class_mass"], image[:, :, 1:, 0].mean(dim=(0, 2)))
    torch.testing.assert_close(summary["image.blocks.1.attention"]["class_entropy"], entropy(image[:, :, 0]).mean(dim=0))


def test_rows_can_be_chosen_and_no_patches_are_an_error(classifier, batch):
    both = head_statistics(classifier, batch, num_patches=9)
    one, two = (head_statistics(classifier, batch, Target([row], [0]), num_patches=9) for row in range(2))
    for name, found in both.items():
        torch.testing.assert_close(found["distance"], (one[name]["distance"] + two[name]["distance"]) / 2)
    with pytest.raises(InputError, match="num_patches=0"):
        head_statistics(classifier, batch, num_patches=0)
