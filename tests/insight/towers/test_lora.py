"""Adapters of low rank: they start as nothing, they alone train, and they merge into plain weights."""

from __future__ import annotations

import copy

import pytest
import torch

from insight.errors import InputError
from insight.towers.lora import Lora, add_lora, merge_lora
from insight.towers.timm import TimmImage

pytest.importorskip("timm")
pytest.importorskip("peft")


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
