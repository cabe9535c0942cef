"""Losses with parameters or state, beside loops that keep lists; and what binds them to a stage."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from insight import losses
from insight.errors import InputError
from insight.objective import Objective
from insight.stages import Call, LossTerm, Stage, StagePlan, bind_losses, check_plan

QUANTITIES = {"image_embedding", "text_embedding", "image_id", "caption_image_id", "positives", "scale", "model", "encode"}
SCALE = torch.tensor(5.0)


class Towers(nn.Module):
    """Two layers for two towers; their inputs are the batch."""

    embed_dim = 4

    def __init__(self) -> None:
        super().__init__()
        self.image, self.text = nn.Linear(3, 4), nn.Linear(3, 4)
        self.register_buffer("seen", torch.zeros(()))
        self.scale = SCALE

    def encode_image(self, x):
        return F.normalize(self.image(x), dim=-1)

    def encode_text(self, x):
        return F.normalize(self.text(x), dim=-1)


def batch_of(model, step, ids=(7, 8), captions=(7, 7, 8)):
    """Quantities of one step: two pictures, three captions."""
    generator = torch.Generator().manual_seed(step)
    pictures, texts = torch.randn(len(ids), 3, generator=generator), torch.randn(len(captions), 3, generator=generator)

    def encode(other):
        with torch.no_grad():
            return other.encode_image(pictures), other.encode_text(texts)

    image_id, caption_image_id = torch.tensor(ids) + 10 * (step % 3), torch.tensor(captions) + 10 * (step % 3)
    positives = image_id[:, None] == caption_image_id[None, :]
    image, text = model.encode_image(pictures), model.encode_text(texts)
    return SimpleNamespace(
        image_embedding=image,
        text_embedding=text,
        image_id=image_id,
        caption_image_id=caption_image_id,
        positives=positives,
        scale=SCALE,
        model=model,
        encode=encode,
    )


def asked(loss, values):
    names = ("image_embedding", "text_embedding", "image_id", "caption_image_id", "scale", "model", "encode")
    return loss(**{name: getattr(values, name) for name in names})


def test_momentum_contrast_equals_a_loop_with_lists_of_keys_through_several_steps():
    """The ring is shorter than what the steps bring, step 3 meets the pictures of step 0 again, and the model moves in between."""
    torch.manual_seed(0)
    model, places = Towers(), 5
    loss = losses.MomentumContrast(model, queue_size=places, momentum=0.8)
    slow = copy.deepcopy(model)
    image_queue, text_queue = [], []  # (key, picture), oldest first
    for step in range(5):
        for mine, theirs in zip(slow.parameters(), model.parameters(), strict=True):
            mine.data = 0.8 * mine.data + 0.2 * theirs.data
        values = batch_of(model, step)
        image_keys, text_keys = values.encode(slow)
        means = []
        for queries, ids, keys, key_ids, queue in (
            (values.image_embedding, values.image_id, text_keys, values.caption_image_id, text_queue),
            (values.text_embedding, values.caption_image_id, image_keys, values.image_id, image_queue),
        ):
            candidates = [*zip(keys, key_ids.tolist(), strict=True), *queue]
            rows = []
            for query, own in zip(queries, ids.tolist(), strict=True):
                logit = [5.0 * float(query.detach() @ key) for key, _ in candidates]
                total = math.log(sum(map(math.exp, logit)))
                right = [value for value, (_, picture) in zip(logit, candidates, strict=True) if picture == own]
                rows.append(sum(total - value for value in right) / len(right))
            means.append(sum(rows) / len(rows))
        ours = asked(loss, values)
        assert ours.item() == pytest.approx(sum(means) / 2, rel=1e-4)
        image_queue = [*image_queue, *zip(image_keys, values.image_id.tolist(), strict=True)][-places:]
        text_queue = [*text_queue, *zip(text_keys, values.caption_image_id.tolist(), strict=True)][-places:]
        ours.backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.5 * parameter.grad
                parameter.grad = None
    assert sorted(loss.text_queue_id.tolist()) == sorted(picture for _, picture in text_queue)
    assert not any(parameter.requires_grad for parameter in loss.parameters())


def test_momentum_contrast_moves_in_training_only_and_goes_on_from_its_state():
    torch.manual_seed(0)
    model = Towers()
    loss, again = (losses.MomentumContrast(model, queue_size=4, momentum=0.5) for _ in range(2))
    with torch.no_grad():
        model.image.weight.add_(1.0)
        model.seen.fill_(3.0)
    before = copy.deepcopy(loss.state_dict())
    loss.eval()
    asked(loss, batch_of(model, 0))
    assert all(torch.equal(before[name], value) for name, value in loss.state_dict().items())
    loss.train()
    assert not loss.keys.training and loss.training
    asked(loss, batch_of(model, 0))
    torch.testing.assert_close(loss.keys.image.weight, model.image.weight - 0.5)
    assert loss.keys.seen == 3 and loss.image_queue_id.tolist() == [7, 8, -1, -1]
    again.load_state_dict(loss.state_dict())
    assert asked(again, batch_of(model, 1)).item() == asked(loss, batch_of(model, 1)).item()


def test_a_batch_longer_than_the_queue_leaves_its_last_keys():
    loss = losses.MomentumContrast(Towers(), queue_size=2)
    asked(loss, batch_of(Towers(), 0, ids=(1, 2, 3), captions=(1, 2, 3)))
    assert sorted(loss.image_queue_id.tolist()) == [2, 3]


def test_a_teacher_is_read_and_neither_trained_nor_saved(tmp_path):
    torch.manual_seed(0)
    student, teacher = Towers(), Towers()
    torch.save({"state_dict": {f"model.{name}": value for name, value in teacher.state_dict().items()}}, tmp_path / "best.ckpt")
    values = batch_of(student, 0)
    expected = losses.similarity_distillation(values.image_embedding, values.text_embedding, SCALE, *values.encode(teacher), SCALE)
    loss = losses.TeacherDistillation(student, checkpoint=str(tmp_path / "best.ckpt"))
    assert loss(values.image_embedding, values.text_embedding, SCALE, values.encode).item() == pytest.approx(expected.item(), rel=1e-5)
    assert not list(loss.parameters()) and not loss.state_dict()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "either checkpoint=PATH or teacher="),
        ({"checkpoint": "nowhere.ckpt"}, "nowhere.ckpt: no such file"),
        ({"teacher": {"path": "x"}}, "give function: IMPORT.PATH"),
        ({"teacher": {"function": "insight.export.bundle.load"}}, "insight.export.bundle.load needs folder"),
        ({"teacher": {"function": "torch.nn.ReLU"}}, "gives no module with encode_image"),
    ],
)
def test_a_teacher_that_cannot_be_had_is_named(arguments, message):
    with pytest.raises(InputError, match=message):
        losses.TeacherDistillation(Towers(), **arguments)


def test_a_teacher_of_another_architecture_is_refused_with_the_keys(tmp_path):
    torch.save({"state_dict": {"model.image.weight": torch.zeros(4, 9)}}, tmp_path / "best.ckpt")
    with pytest.raises(InputError, match=r"another architecture.*image\.bias"):
        losses.TeacherDistillation(Towers(), checkpoint=str(tmp_path / "best.ckpt"))


@pytest.mark.parametrize("kind", [losses.ProjectedVICReg, losses.ProjectedBarlowTwins])
def test_projected_losses_train_their_projectors_and_are_finite_on_one_pair(kind):
    loss = kind(Towers(), width=6)
    values = batch_of(Towers(), 0)
    loss(values.image_embedding, values.text_embedding, values.positives).backward()
    assert all(parameter.grad is not None and torch.isfinite(parameter.grad).all() for parameter in loss.parameters())
    assert loss.image_projector.layers[0].weight.grad.abs().max() > 0
    one = loss(values.image_embedding[:1], values.text_embedding[:1], torch.ones(1, 1, dtype=torch.bool))
    assert torch.isfinite(one)
    plain = losses.vicreg if kind is losses.ProjectedVICReg else losses.barlow_twins
    projected = (loss.image_projector(values.image_embedding), loss.text_projector(values.text_embedding))
    by_hand = plain(*(z / math.sqrt(6) for z in projected), values.positives)  # which multiplies by the root of the width
    torch.testing.assert_close(loss(values.image_embedding, values.text_embedding, values.positives), by_hand)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: losses.MomentumContrast(Towers(), queue_size=0), "queue_size=0"),
        (lambda: losses.MomentumContrast(Towers(), momentum=1.0), "momentum=1.0"),
        (lambda: losses.ProjectedVICReg(Towers(), width=0), "width=0"),
    ],
)
def test_a_setting_out_of_range_is_named(make, message):
    with pytest.raises(InputError, match=message):
        make()


# --- binding ---
def bound(**terms):
    return bind_losses(terms, QUANTITIES, "losses")


def test_an_objective_holds_the_modules_by_the_names_of_their_terms_and_weighs_by_progress():
    model = Towers()
    terms = {
        "plain": LossTerm("insight.losses.contrastive", 2.0, schedule=Call("insight.losses.fade_out", {"start": 0.5})),
        "moco": LossTerm("insight.losses.MomentumContrast", arguments={"queue_size": 3}),
    }
    objective = Objective(bound(**terms), model, Call("insight.losses.UncertaintyWeighting"), "stages.x")
    names = {name for name, _ in objective.named_parameters()}
    assert "balance.log_variance" in names and "moco.keys.image.weight" in names and "moco.text_queue" in objective.state_dict()
    values = batch_of(model, 0)
    full = losses.contrastive(values.image_embedding, values.text_embedding, values.positives, SCALE)
    torch.testing.assert_close(objective.terms(values, 0.75)["plain"], 2.0 * 0.5 * full)
    assert list(objective.terms(values, 1.0)) == ["moco"]  # weight 0: not even computed
    assert list(objective.terms(values, 0.0, lacking=["encode"])) == ["plain"]
    assert {name: float(value) for name, value in objective.changing_weights(0.75).items()} == {"plain": 1.0, "moco": 1.0}


@pytest.mark.parametrize(
    ("term", "message"),
    [
        (LossTerm("insight.losses.MomentumContrast", arguments={"queue": 3}), r"losses\.x\.arguments\.queue.*did you mean 'queue_size'"),
        (LossTerm("insight.losses.MomentumContrast", arguments={"model": 3}), r"losses\.x\.arguments\.model"),
        (LossTerm("insight.stages.Stage", arguments={"epochs": 1, "train": [], "losses": {}}), "Stage has no forward"),
        (LossTerm("insight.losses.UncertaintyWeighting"), r"losses\.x\.arguments: UncertaintyWeighting needs terms"),
        (LossTerm("insight.losses.contrastive", schedule=Call("insight.losses.fade_inn")), r"did you mean 'fade_in'"),
        (LossTerm("insight.losses.contrastive", schedule=Call("insight.losses.fade_in", {"begin": 1})), r"schedule\.arguments\.begin"),
        (LossTerm("insight.losses.contrastive", schedule=Call("insight.losses.fade_in", {"start": 0.5})), "weight 0 at 0 % of the stage"),
    ],
)
def test_a_mistake_in_a_term_is_named(term, message):
    with pytest.raises(InputError, match=message):
        bound(x=term)


def test_a_mistake_in_a_balance_is_named():
    stage = Stage(1, ["*"], {"x": LossTerm("insight.losses.contrastive")}, balance=Call("insight.losses.LossScaleWeighting", {"decai": 1}))
    with pytest.raises(InputError, match=r"stages\.s\.balance\.arguments\.decai.*did you mean 'decay'"):
        check_plan(StagePlan({"s": stage}))


@pytest.mark.parametrize("name", ["balance", "forward", "training"])
def test_a_term_with_state_cannot_take_the_name_of_something_else(name):
    with pytest.raises(InputError, match=rf"losses\.{name}: the name is taken"):
        Objective(bound(**{name: LossTerm("insight.losses.MomentumContrast")}), Towers(), None, "stages.s")
