from __future__ import annotations

import copy

import pytest
import torch

from insight.digest import state_digest


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return {
        "a": torch.randn(3, 4, generator=draw),
        "b": torch.arange(5),
        "c": torch.tensor(2.0),
        "d": torch.empty(0),
        "e": torch.ones(2).bfloat16(),
    }


def test_equal_weights_have_equal_digests_in_any_order_and_layout(state):
    other = {name: state[name].clone() for name in reversed(state)}
    other["a"] = other["a"].T.contiguous().T  # the same numbers, laid out otherwise
    assert state_digest(other) == state_digest(state)


def test_one_bit_a_name_a_type_or_a_shape_changes_the_digest(state):
    changed = [copy.deepcopy(state) for _ in range(6)]
    changed[0]["a"][2, 3] = torch.nextafter(changed[0]["a"][2, 3], torch.tensor(9.0))
    changed[1]["z"] = changed[1].pop("c")
    changed[2]["b"] = changed[2]["b"].int()
    changed[3]["a"] = changed[3]["a"].reshape(4, 3)
    changed[4]["c"] = -torch.tensor(0.0) + changed[4]["c"] * 0  # 0.0
    changed[5]["c"] = torch.tensor(-0.0)
    digests = {state_digest(one) for one in [state, *changed]}
    assert len(digests) == 7
