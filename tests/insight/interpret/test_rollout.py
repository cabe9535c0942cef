import pytest
import torch

from insight.interpret.rollout import rollout


def test_rollout_of_two_layers_is_what_one_works_out_by_hand():
    first = torch.tensor([[0.5, 0.5], [0.0, 1.0]])
    second = torch.tensor([[0.0, 1.0], [0.5, 0.5]])
    # (A + I) / 2: [[.75, .25], [0, 1]] and [[.5, .5], [.25, .75]]; second after first:
    expected = torch.tensor([[[0.5 * 0.75, 0.5 * 0.25 + 0.5 * 1.0], [0.25 * 0.75, 0.25 * 0.25 + 0.75 * 1.0]]])
    torch.testing.assert_close(rollout([first[None, None], second[None, None]]), expected)


def test_rollout_sums_over_every_path_through_the_layers():
    torch.manual_seed(0)
    layers = [torch.rand(1, 2, 3, 3).softmax(dim=-1) for _ in range(3)]
    mixed = [(layer[0].mean(dim=0) + torch.eye(3)) / 2 for layer in layers]
    by_paths = torch.zeros(3, 3)
    for out in range(3):
        for source in range(3):
            for high in range(3):
                for low in range(3):
                    by_paths[out, source] += mixed[2][out, high] * mixed[1][high, low] * mixed[0][low, source]
    torch.testing.assert_close(rollout(layers)[0], by_paths)


def test_rollout_rows_sum_to_one_and_examples_do_not_mix():
    torch.manual_seed(0)
    layers = [torch.randn(4, 2, 5, 5).softmax(dim=-1) for _ in range(3)]
    together = rollout(layers)
    torch.testing.assert_close(together.sum(dim=-1), torch.ones(4, 5))
    torch.testing.assert_close(together[2:3], rollout([layer[2:3] for layer in layers]))


def test_rollout_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="at least one layer"):
        rollout([])
