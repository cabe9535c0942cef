import pytest
import torch

from insight.errors import InputError
from insight.nn.block import Block, FusionBlock, Mlp
from insight.nn.linear import linear


def test_a_block_is_torch_transformer_layer_with_the_same_weights():
    torch.manual_seed(0)
    ours = Block(dim=8, heads=2, mlp_ratio=2.0)
    theirs = torch.nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
    with torch.no_grad():
        theirs.self_attn.in_proj_weight.copy_(torch.cat([ours.attention.query.weight, ours.attention.key_value.weight]))
        theirs.self_attn.in_proj_bias.copy_(torch.cat([ours.attention.query.bias, ours.attention.key_value.bias]))
    theirs.self_attn.out_proj.load_state_dict(ours.attention.output.state_dict())
    theirs.linear1.load_state_dict(ours.mlp.expand.state_dict())
    theirs.linear2.load_state_dict(ours.mlp.contract.state_dict())
    x, mask = torch.randn(2, 5, 8), torch.ones(2, 5, dtype=torch.bool)
    mask[0, 3:] = False
    torch.testing.assert_close(ours(x, mask), theirs(x, src_key_padding_mask=~mask), atol=1e-5, rtol=1e-5)


def test_a_fusion_block_whose_cross_attention_gives_nothing_is_a_plain_block():
    torch.manual_seed(0)
    fusion, plain = FusionBlock(8, 2), Block(8, 2)
    plain.load_state_dict({name: value for name, value in fusion.state_dict().items() if name in plain.state_dict()})
    torch.nn.init.zeros_(fusion.cross_attention.output.weight)
    x, mask = torch.randn(2, 5, 8), torch.rand(2, 5) > 0.2
    torch.testing.assert_close(fusion(x, mask, torch.randn(2, 3, 8)), plain(x, mask))


def test_cross_attention_reads_the_tokens_that_its_mask_allows_and_no_other():
    torch.manual_seed(0)
    block, x, context = FusionBlock(8, 2), torch.randn(1, 5, 8), torch.randn(1, 3, 8)
    context_mask = torch.tensor([[True, False, True]])
    before = block(x, None, context, context_mask)
    hidden, seen = context.clone(), context.clone()
    hidden[0, 1] = torch.randn(8) * 100
    seen[0, 2] = torch.randn(8) * 100
    assert torch.equal(block(x, None, hidden, context_mask), before)
    assert not torch.allclose(block(x, None, seen, context_mask), before)
    torch.testing.assert_close(block(x, None, context[:, [0, 2]]), before)


def test_dropout_acts_in_training_only():
    torch.manual_seed(0)
    block, x = Block(8, 2, dropout=0.5), torch.randn(1, 5, 8)
    assert not torch.equal(block(x), block(x))
    block.eval()
    assert torch.equal(block(x), block(x))


def test_linear_layers_start_small_cut_and_unbiased():
    torch.manual_seed(0)
    layer = linear(200, 300)
    assert float(layer.weight.detach().abs().max()) <= 0.04
    assert 0.0165 < float(layer.weight.detach().std()) < 0.0187  # 0.88 of 0.02: a normal cut at two standard deviations
    assert not layer.bias.any()


def test_an_mlp_without_hidden_units_is_an_error():
    with pytest.raises(InputError, match=r"mlp_ratio=0\.1"):
        Mlp(8, mlp_ratio=0.1)
