"""Adapters of low rank: they start as nothing, they alone train, and they merge into plain weights."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from insight.errors import InputError
from insight.towers.lora import Lora, add_lora, has_lora, merge_lora, merged, weight_of
from insight.towers.timm import TimmImage
from insight.towers.torchvision import TorchvisionImage
from insight.towers.transformers import TransformersImage, TransformersText

pytest.importorskip("timm")
pytest.importorskip("peft")

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


@pytest.fixture
def tower():
    torch.manual_seed(0)
    return TimmImage("test_vit", arguments={"img_size": 32})


def pictures():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_adapters_train_alone_and_merge_into_the_same_output(tower):
    before, start = copy.deepcopy(tower.network.state_dict()), tower(pictures()).tokens
    add_lora(tower.network, Lora(["attn.qkv", "mlp.fc1"], rank=2, alpha=6.0))
    torch.testing.assert_close(tower(pictures()).tokens, start)
    trained = {name: value for name, value in tower.named_parameters() if value.requires_grad}
    assert trained and all("lora_" in name for name in trained)
    optimizer = torch.optim.SGD(tower.parameters(), lr=1.0)
    for _ in range(2):  # in the first step one of the two factors is still zero, and so is the other's gradient
        tower(pictures()).pooled.square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    after = tower.network.state_dict()
    for name, value in before.items():
        found = next(
            after[key]
            for key in (name, name.replace(".weight", ".base_layer.weight"), name.replace(".bias", ".base_layer.bias"))
            if key in after
        )
        assert torch.equal(found, value), name
    adapted = tower(pictures()).tokens
    assert not torch.allclose(adapted, start, atol=1e-4)
    key = "blocks.0.attn.qkv"
    down, up = after[f"{key}.lora_A.default.weight"], after[f"{key}.lora_B.default.weight"]
    assert down.shape[0] == up.shape[1] == 2
    merge_lora(tower.network)
    torch.testing.assert_close(tower(pictures()).tokens, adapted, atol=1e-4, rtol=1e-4)
    assert tower.network.state_dict().keys() == before.keys()
    torch.testing.assert_close(tower.network.state_dict()[f"{key}.weight"], before[f"{key}.weight"] + 3.0 * up @ down)


@pytest.mark.parametrize(
    ("lora", "message"),
    [(Lora(["attn.qvk"]), r"ends with 'attn\.qvk'; did you mean 'attn"), (Lora(["qkv"], rank=0), "rank=0: must be at least 1")],
)
def test_a_mistake_is_named(tower, lora, message):
    with pytest.raises(InputError, match=message):
        add_lora(tower.network, lora)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "circle"]
    transformers.BertTokenizer(vocab={word: number for number, word in enumerate(words)}).save_pretrained(folder)
    transformers.BertModel(transformers.BertConfig(vocab_size=len(words), **SMALL)).save_pretrained(folder)
    return str(folder)


def captions():
    return torch.tensor([[1, 5, 6, 2], [1, 7, 2, 0]]), torch.tensor([[True] * 4, [True] * 3 + [False]])


@torch.no_grad()
@pytest.mark.parametrize(
    ("kind", "arguments", "target"),
    [
        (TimmImage, {"name": "test_vit", "arguments": {"img_size": 32}}, "attn.qkv"),
        (TorchvisionImage, {"name": "resnet18", "image_size": 32}, "conv1"),
        (TransformersImage, {"name": "vit", "arguments": {"image_size": 32, "patch_size": 8, **SMALL}}, "q_proj"),
        (TransformersText, {"context_length": 4}, "query"),
    ],
)
def test_every_tower_takes_adapters_and_says_at_first_bit_for_bit_what_it_says_without(kind, arguments, target, bert):
    if kind is TransformersText:
        arguments = {"name": bert, **arguments}
    given = captions() if kind is TransformersText else (pictures(),)
    torch.manual_seed(0)
    plain = kind(**arguments).eval()
    torch.manual_seed(0)
    adapted = kind(**arguments, lora=Lora([target], rank=2)).eval()
    assert torch.equal(adapted(*given).tokens, plain(*given).tokens) and torch.equal(adapted(*given).pooled, plain(*given).pooled)
    added = set(dict(adapted.named_parameters())) - set(dict(plain.named_parameters()))
    assert any("lora_A" in name for name in added) and adapted.rebuilding() == plain.rebuilding()  # merged, it is the plain one
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.fill_(0.1)
    moved, alone = adapted(*given).tokens, merged(adapted)
    assert not torch.allclose(moved, plain(*given).tokens, atol=1e-4)
    torch.testing.assert_close(alone(*given).tokens, moved, atol=1e-4, rtol=1e-4)
    assert alone.state_dict().keys() == plain.state_dict().keys() and has_lora(adapted) and not has_lora(alone)
    assert merged(plain) is plain


@torch.no_grad()
def test_the_weight_of_an_adapted_layer_is_the_matrix_that_it_multiplies_by():
    layer = nn.Sequential(nn.Linear(3, 2, bias=False))
    assert torch.equal(weight_of(layer[0]), layer[0].weight)
    add_lora(layer, Lora(["0"], rank=1, alpha=5.0))
    down, up = layer[0].lora_A["default"].weight, layer[0].lora_B["default"].weight.fill_(1.0)
    torch.testing.assert_close(weight_of(layer[0]), layer[0].base_layer.weight + 5 * up @ down)
    torch.testing.assert_close(layer(torch.eye(3)).T, weight_of(layer[0]))
