import torch

from insight.nn.pool import masked_mean


def test_masked_mean_is_the_mean_of_the_rows_that_count():
    x = torch.randn(2, 4, 3)
    mask = torch.tensor([[True, False, True, False], [False, True, False, False]])
    torch.testing.assert_close(masked_mean(x, mask), torch.stack([(x[0, 0] + x[0, 2]) / 2, x[1, 1]]))


def test_masked_mean_of_nothing_is_zero_with_finite_gradients():
    x = torch.randn(1, 4, 3, requires_grad=True)
    pooled = masked_mean(x, torch.zeros(1, 4, dtype=torch.bool))
    assert torch.equal(pooled, torch.zeros(1, 3))
    pooled.sum().backward()
    assert not x.grad.any()


def test_masked_mean_keeps_small_parts_in_half_precision():
    x = torch.full((1, 3000, 1), 1.0, dtype=torch.bfloat16)
    assert float(masked_mean(x, torch.ones(1, 3000, dtype=torch.bool))) == 1.0  # a running bfloat16 sum stops at 256
