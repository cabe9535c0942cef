"""The plan as data: digests, patterns, and mistakes found before the first step."""

from __future__ import annotations

import dataclasses

import pytest

from insight.errors import InputError
from insight.stages import LossTerm, Stage, StagePlan, bind_losses, check_plan, derive_seed, load, matching

CONTRASTIVE = {"contrastive": LossTerm("insight.losses.contrastive")}
QUANTITIES = {"image_embedding", "text_embedding", "positives", "scale"}


def make_stage(**changes: object) -> Stage:
    return dataclasses.replace(Stage(epochs=1, train=["*"], losses=CONTRASTIVE), **changes)


def test_the_digest_changes_with_the_order_a_value_and_the_seed_and_with_nothing_else():
    first, second = make_stage(), make_stage(epochs=2)
    plan = StagePlan({"a": first, "b": second})
    assert plan.digest == StagePlan({"a": make_stage(), "b": make_stage(epochs=2)}).digest
    others = [StagePlan({"b": second, "a": first}), StagePlan({"a": first, "b": first}), StagePlan({"a": first, "b": second}, seed=1)]
    assert len({plan.digest, *(other.digest for other in others)}) == 4


def test_seeds_of_stages_and_epochs_do_not_meet():
    assert len({derive_seed(0, stage, epoch) for stage in range(5) for epoch in range(200)}) == 1000


def test_a_pattern_matches_whole_names_and_never_a_part_of_one():
    names = ["model.text.block.weight", "model.text_projection.weight", "model.context.weight"]
    assert matching(["model.text.*"], names, "train") == {"model.text.block.weight"}
    assert matching(["!model.text.*", "*"], names, "train") == set(names) - {"model.text.block.weight"}


def test_a_pattern_that_matches_nothing_names_the_key_and_the_nearest_module():
    with pytest.raises(InputError, match=r"stages\.a\.train.*'model\.txt\.\*' matches no parameter; did you mean 'model\.text\.\*'"):
        matching(["model.txt.*"], ["model.text.weight", "model.image.weight"], "stages.a.train")


def test_a_loss_gets_the_quantities_that_its_parameters_name():
    function, _, needed = bind_losses(CONTRASTIVE, QUANTITIES, "losses")["contrastive"]
    assert function.__name__ == "contrastive" and set(needed) == QUANTITIES


def test_a_term_of_weight_zero_is_checked_and_left_out():
    off = LossTerm("insight.losses.decorrelation", weight=0)
    assert list(bind_losses({**CONTRASTIVE, "off": off}, QUANTITIES, "losses")) == ["contrastive"]
    with pytest.raises(InputError, match="did you mean 'decorrelation'"):
        bind_losses({**CONTRASTIVE, "off": LossTerm("insight.losses.decorelation", weight=0)}, QUANTITIES, "losses")


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        ({}, "at least one loss"),
        ({"x": LossTerm("insight.losses.contrastive", weight=0)}, "every term has weight 0"),
        ({"x": LossTerm("insight.losses.contrastve")}, r"losses\.x\.function.*did you mean 'contrastive'"),
        ({"x": LossTerm("insight.loses.contrastive")}, "cannot import"),
        ({"x": LossTerm("insight.losses.contrastive", arguments={"scal": 1})}, r"losses\.x\.arguments\.scal"),
        ({"x": LossTerm("insight.losses.contrastive", arguments={"scale": 1})}, r"losses\.x\.arguments\.scale"),
        ({"x": LossTerm("insight.losses.image_text_matching")}, r"needs 'match_logits', which this model cannot compute"),
    ],
)
def test_a_mistaken_loss_names_its_key(losses, message):
    with pytest.raises(InputError, match=message):
        bind_losses(losses, QUANTITIES, "losses")


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ({}, "no stage"),
        ({"a": make_stage(epochs=0)}, r"stages\.a\.epochs=0"),
        ({"a": make_stage(patience=2)}, r"needs stages\.a\.monitor"),
        ({"a": make_stage(patience=0, monitor="val/loss")}, r"patience=0"),
        ({"a": make_stage(learning_rate=0.0)}, r"learning_rate=0\.0"),
        ({"a": make_stage(learning_rates={"model.*": -1.0})}, r"learning_rates\.model\.\*=-1"),
    ],
)
def test_a_mistaken_plan_names_its_key(stages, message):
    with pytest.raises(InputError, match=message):
        check_plan(StagePlan(stages))


def test_load_finds_classes_and_functions_by_path():
    assert load("torch.optim.AdamW", "optimizer").__name__ == "AdamW"
