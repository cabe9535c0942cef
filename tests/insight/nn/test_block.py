import pytest
import torch

from insight.errors import InputError
from insight.nn.block import Activate, Block, DropPath, FusionBlock, Mlp, blocks, norm
from insight.nn.linear import linear
from insight.nn.settings import BlockSettings


def test_a_block_is_torch_transformer_layer_with_the_same_weights():
    torch.manual_seed(0)
    ours = Block(dim=8, heads=2, settings=BlockSettings(mlp_ratio=2.0))
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
        Mlp(8, BlockSettings(mlp_ratio=0.1))


def test_an_rms_norm_divides_by_the_root_of_the_mean_square_and_a_layer_norm_has_the_eps_it_is_told():
    x = torch.randn(3, 8) * 0.01
    rms = norm(8, BlockSettings(rms_norm=True, norm_eps=1e-3))
    torch.testing.assert_close(rms(x), x / (x.square().mean(dim=-1, keepdim=True) + 1e-3).sqrt())
    centred = x - x.mean(dim=-1, keepdim=True)
    expected = centred / (centred.square().mean(dim=-1, keepdim=True) + 1e-3).sqrt()
    torch.testing.assert_close(norm(8, BlockSettings(norm_eps=1e-3))(x), expected)


def test_a_gated_mlp_is_swiglu_of_the_paper():
    torch.manual_seed(0)
    mlp, x = Mlp(8, BlockSettings(gated=True, activation="silu", bias=False)), torch.randn(2, 3, 8)
    gate = x @ mlp.gate.weight.T
    expected = (gate / (1 + torch.exp(-gate)) * (x @ mlp.expand.weight.T)) @ mlp.contract.weight.T
    torch.testing.assert_close(mlp(x), expected)
    assert not [name for name, _ in mlp.named_parameters() if name.endswith("bias")]


@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("gelu", lambda x: x * 0.5 * (1 + torch.erf(x / 2**0.5))),
        ("gelu_tanh", lambda x: 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))),
        ("quick_gelu", lambda x: x / (1 + torch.exp(-1.702 * x))),
        ("silu", lambda x: x / (1 + torch.exp(-x))),
        ("relu", lambda x: x.clamp(min=0)),
    ],
)
def test_each_activation_is_its_formula(name, formula):
    x = torch.linspace(-4, 4, 41)
    torch.testing.assert_close(Activate(name)(x), formula(x), atol=1e-6, rtol=1e-5)


def test_samples_skip_a_block_at_its_rate_and_the_mean_stays():
    torch.manual_seed(0)
    drop, x = DropPath(0.25), torch.ones(8000, 1, 1)
    out = drop(x)
    assert set(out.unique().tolist()) == {0.0, float(torch.tensor(1 / 0.75))}
    assert abs(float((out == 0).float().mean()) - 0.25) < 0.02
    assert torch.equal(drop.eval()(x), x)
    torch.manual_seed(1)
    first = drop.train()(x)
    torch.manual_seed(1)
    assert torch.equal(drop(x), first)  # drawn as dropout is, so that a run that goes on draws the same
    assert [block.drop_path.rate for block in blocks(3, 8, 2, settings=BlockSettings(drop_path=0.2))] == [0.0, 0.1, 0.2]


def test_settings_left_alone_change_no_weight_no_name_and_no_number():
    torch.manual_seed(0)
    block = Block(8, 2)
    torch.manual_seed(0)
    drawn = [linear(8, 8), linear(8, 16), linear(8, 8), linear(8, 32), linear(32, 8)]
    layers = dict(zip(("attention.query", "attention.key_value", "attention.output", "mlp.expand", "mlp.contract"), drawn, strict=True))
    norms = {name: torch.nn.LayerNorm(8) for name in ("attention_norm", "mlp_norm")}
    state = {f"{name}.{part}": value for name, layer in {**layers, **norms}.items() for part, value in layer.state_dict().items()}
    assert block.state_dict().keys() == state.keys() and all(torch.equal(value, state[name]) for name, value in block.state_dict().items())
    x, fused = torch.randn(2, 5, 8), torch.nn.functional.scaled_dot_product_attention
    heads = [
        part.unflatten(-1, (2, 4)).transpose(1, 2)
        for part in (drawn[0](norms["mlp_norm"](x)), *drawn[1](norms["mlp_norm"](x)).chunk(2, -1))
    ]
    y = x + drawn[2](fused(*heads).transpose(1, 2).flatten(2))
    assert torch.equal(block(x), y + drawn[4](torch.nn.functional.gelu(drawn[3](norms["mlp_norm"](y)))))
