import math

import pytest
import torch

from insight.errors import InputError
from insight.nn.attention import Attention, attend, attend_explicit, attention_weights, scores_at_once, scores_by_head


def random_heads(seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(2, 3, 5, 4, generator=generator)
    key, value = torch.randn(2, 3, 7, 4, generator=generator), torch.randn(2, 3, 7, 4, generator=generator)
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[0, 4:] = False
    return query.to(dtype), key.to(dtype), value.to(dtype), mask


def attention_by_loops(query, key, value, mask):
    """One query, one head, one key at a time."""
    output = torch.zeros(*query.shape[:3], value.shape[-1])
    for b in range(query.shape[0]):
        for h in range(query.shape[1]):
            for t in range(query.shape[2]):
                scores = [float(query[b, h, t] @ key[b, h, s]) / math.sqrt(query.shape[-1]) for s in range(key.shape[2])]
                weights = [math.exp(score) * float(mask[b, s]) for s, score in enumerate(scores)]
                for s, weight in enumerate(weights):
                    output[b, h, t] += weight / sum(weights) * value[b, h, s]
    return output


@pytest.mark.parametrize("formula", [attend, attend_explicit])
def test_both_paths_equal_attention_written_as_loops(formula):
    query, key, value, mask = random_heads()
    expected = attention_by_loops(query, key, value, mask)
    torch.testing.assert_close(formula(query, key, value, mask[:, None, None]), expected, atol=1e-6, rtol=1e-5)


def test_bfloat16_on_the_cpu_takes_the_explicit_path_and_stays_near_float32():
    query, key, value, mask = random_heads(dtype=torch.bfloat16)
    output = attend(query, key, value, mask[:, None, None])
    assert output.dtype == torch.bfloat16
    assert torch.equal(output, attend_explicit(query, key, value, mask[:, None, None]))
    fused = torch.nn.functional.scaled_dot_product_attention
    exact = fused(query.float(), key.float(), value.float(), attn_mask=mask[:, None, None])
    torch.testing.assert_close(output.float(), exact, atol=0.03, rtol=0.03)


def test_gradients_of_both_paths_agree():
    query, key, value, mask = random_heads()
    gradients = []
    for formula in (attend, attend_explicit):
        leaves = [tensor.clone().requires_grad_() for tensor in (query, key, value)]
        formula(*leaves, mask[:, None, None]).square().sum().backward()
        gradients.append([leaf.grad for leaf in leaves])
    for fused, explicit in zip(*gradients, strict=True):
        torch.testing.assert_close(fused, explicit, atol=1e-5, rtol=1e-4)


def test_attention_equals_torch_multi_head_attention_with_the_same_weights():
    torch.manual_seed(0)
    ours, theirs = Attention(dim=8, heads=2), torch.nn.MultiheadAttention(8, 2, batch_first=True)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.normal_()
        theirs.in_proj_weight.copy_(torch.cat([ours.query.weight, ours.key_value.weight]))
        theirs.in_proj_bias.copy_(torch.cat([ours.query.bias, ours.key_value.bias]))
        theirs.out_proj.load_state_dict(ours.output.state_dict())
    x, context, mask = torch.randn(2, 5, 8), torch.randn(2, 7, 8), torch.ones(2, 7, dtype=torch.bool)
    mask[1, 2:] = False
    expected, expected_weights = theirs(x, context, context, key_padding_mask=~mask, average_attn_weights=False)
    seen = []
    ours.tap.listeners.append(lambda call: seen.append(attention_weights(call.query_BHTK, call.key_BHSK, call.mask_BS)))
    torch.testing.assert_close(ours(x, context, mask), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(seen[0], expected_weights, atol=1e-6, rtol=1e-5)


def test_what_a_masked_key_holds_changes_nothing():
    torch.manual_seed(0)
    layer, x, context = Attention(8, 2), torch.randn(1, 3, 8), torch.randn(1, 4, 8)
    mask = torch.tensor([[True, True, False, True]])
    before = layer(x, context, mask)
    context[0, 2] = 1e4
    assert torch.equal(layer(x, context, mask), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_without_any_key_reads_nothing_and_never_gives_nan(dtype):
    torch.manual_seed(0)
    layer = Attention(8, 2).to(dtype)
    with torch.no_grad():
        layer.output.bias.fill_(0.5)
    x = torch.randn(2, 3, 8, dtype=dtype, requires_grad=True)
    mask = torch.tensor([[False, False, False], [True, False, True]])
    output = layer(x, x, mask)
    assert torch.equal(output[0], torch.full((3, 8), 0.5, dtype=dtype))
    assert not torch.equal(output[1], output[0])
    output.sum().backward()
    assert torch.isfinite(x.grad).all() and all(torch.isfinite(parameter.grad).all() for parameter in layer.parameters())
    assert torch.equal(x.grad[0], torch.zeros(3, 8, dtype=dtype))


def test_the_weights_of_a_row_without_any_key_are_zero():
    query, key, _, mask = random_heads()
    mask[0] = False
    weights = attention_weights(query, key, mask)
    assert torch.equal(weights[0], torch.zeros(3, 5, 7))
    torch.testing.assert_close(weights[1].sum(-1), torch.ones(3, 5))


@pytest.mark.parametrize("layout", ["heads apart", "heads side by side"])  # the second is how a layer cuts them from one linear map
def test_scores_of_either_device_are_the_scaled_products_of_queries_and_keys(layout):
    query, key, _, _ = random_heads()
    if layout == "heads side by side":
        query, key = (one.transpose(1, 2).contiguous().transpose(1, 2) for one in (query, key))
    expected = torch.einsum("bhtk,bhsk->hbts", query, key) / math.sqrt(query.shape[-1])
    with torch.no_grad():
        for scores in (scores_at_once, scores_by_head):
            torch.testing.assert_close(scores(query, key), expected, atol=1e-6, rtol=1e-5)


def test_weights_are_float32_within_autocast():
    query, key, value, mask = random_heads()
    exact = attention_weights(query, key, mask)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(attention_weights(query, key, mask), exact)
    torch.testing.assert_close(exact @ value, attend(query, key, value, mask[:, None, None]), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("heads", [0, 3])
def test_a_width_that_the_heads_do_not_divide_is_an_error_that_names_both(heads):
    with pytest.raises(InputError, match=f"dim=8 .* heads={heads}"):
        Attention(dim=8, heads=heads)
