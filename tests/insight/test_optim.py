"""Rates by pattern, decay where it helps, schedules against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from insight.errors import InputError
from insight.optim import build_optimizer, build_schedule, parameter_groups, warmup_cosine
from insight.stages import Call, LossTerm, Stage


def make_stage(**changes: object) -> Stage:
    return Stage(**{"epochs": 1, "train": ["*"], "losses": {"x": LossTerm("insight.losses.contrastive")}, "learning_rate": 0.1, **changes})


class Towers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image, self.text = nn.Linear(3, 2), nn.Linear(3, 2)
        self.token_embedding = nn.Embedding(4, 2)


def rates(groups: list[dict], model: nn.Module) -> dict[str, tuple[float, float | None]]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(p)]: (group["lr"], group.get("weight_decay")) for group in groups for p in group["params"]}


def test_the_first_matching_pattern_sets_the_rate_and_vectors_and_embeddings_are_not_decayed():
    model = Towers()
    stage = make_stage(learning_rates={"image.weight": 0.3, "image.*": 0.2})
    assert rates(parameter_groups(model.named_parameters(), stage, "s"), model) == {
        "image.weight": (0.3, None),
        "image.bias": (0.2, 0.0),
        "text.weight": (0.1, None),
        "text.bias": (0.1, 0.0),
        "token_embedding.weight": (0.1, 0.0),
    }


def test_what_is_frozen_is_in_no_group_and_a_rate_for_it_is_an_error():
    model = Towers()
    model.image.requires_grad_(False)
    assert "image.weight" not in rates(parameter_groups(model.named_parameters(), make_stage(), "s"), model)
    with pytest.raises(InputError, match=r"s\.learning_rates"):
        parameter_groups(model.named_parameters(), make_stage(learning_rates={"image.*": 1.0}), "s")


def test_nothing_to_train_is_an_error():
    with pytest.raises(InputError, match="nothing is left to train"):
        build_optimizer(Towers().requires_grad_(False).named_parameters(), make_stage(), "s")


def test_an_optimizer_argument_that_does_not_exist_names_the_key():
    stage = make_stage(optimizer=Call("torch.optim.AdamW", {"wight_decay": 0.1}))
    with pytest.raises(InputError, match=r"s\.optimizer\.arguments\.wight_decay.*weight_decay"):
        build_optimizer(Towers().named_parameters(), stage, "s")


def test_the_floor_is_relative_to_each_rate():
    stage = make_stage(learning_rates={"image.*": 0.001}, schedule=Call("insight.optim.warmup_cosine", {"warmup": 0.0, "floor": 0.1}))
    optimizer = build_optimizer(Towers().named_parameters(), stage, "s")
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, [build_schedule(stage, 10, "s")] * len(optimizer.param_groups))
    first = [group["lr"] for group in optimizer.param_groups]
    for _ in range(10):
        optimizer.step()
        scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.1 * rate for rate in first])


def test_the_cosine_equals_the_formula_after_the_warm_up():
    for step in range(10, 101):
        expected = 0.02 + 0.98 * (1 + math.cos(math.pi * (step - 10) / 90)) / 2
        assert warmup_cosine(step, 100, warmup=0.1, floor=0.02) == pytest.approx(expected)
    assert [warmup_cosine(step, 100, warmup=0.1) for step in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])
