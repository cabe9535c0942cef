import pytest
import torch

from insight.errors import InputError
from insight.nn.pool import AttentionPool, Pool, last_token, masked_mean


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


def test_the_last_token_is_the_last_one_that_counts():
    x, mask = torch.randn(3, 4, 2), torch.tensor([[True, True, False, False], [True] * 4, [False, True, True, False]])
    assert torch.equal(last_token(x, mask), torch.stack([x[0, 1], x[1, 3], x[2, 2]]))


@pytest.mark.parametrize("kind", ["first", "mean", "last"])
def test_what_is_pooled_is_the_readout_times_the_tokens(kind):
    pool, x, mask = Pool(kind, 4, 2, skip=1), torch.randn(3, 5, 4), torch.arange(5) < torch.tensor([5, 3, 2])[:, None]
    for given in (None, mask):
        torch.testing.assert_close(pool(x, given), (pool.readout(x, given)[:, None] @ x)[:, 0], atol=1e-6, rtol=1e-5)
    if kind == "mean":
        torch.testing.assert_close(pool(x, mask)[1], x[1, 1:3].mean(dim=0))  # without the first, which is skipped


def test_pooling_by_attention_is_torchs_own_attention_of_the_query_and_an_mlp():
    torch.manual_seed(0)
    pool, theirs = AttentionPool(8, 2), torch.nn.MultiheadAttention(8, 2, batch_first=True)
    own = pool.attention
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([own.query.weight, own.key_value.weight]))
        theirs.out_proj.load_state_dict(own.output.state_dict())
    x, mask = torch.randn(3, 5, 8), torch.arange(5) < torch.tensor([5, 3, 2])[:, None]
    read = theirs(pool.query.expand(3, -1, -1), x, x, key_padding_mask=~mask)[0][:, 0]
    expected = read + pool.mlp(pool.mlp_norm(read))
    torch.testing.assert_close(pool(x, mask), expected, atol=1e-6, rtol=1e-5)
    with pytest.raises(InputError, match="by what they hold"):
        Pool("attention", 8, 2).readout(x)
