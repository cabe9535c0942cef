"""What holds for every method on every kind of model. The cells are those of the README's table."""

import random

import numpy as np
import pytest
import torch

from insight.interpret.capabilities import LACKING, README, tiny_batch, tiny_families, with_table
from insight.interpret.explain import check_method, explain
from insight.interpret.family import Lacks, Target
from insight.interpret.methods import METHODS
from insight.interpret.record import attention_layers
from insight.mps_guard import mps_guard
from insight.stages import Call

FAMILIES = {family.name: family for family in tiny_families()}
FEW = {"steps": 3, "samples": 2, "budget": 98, "permutations": 2, "masks": 40}  # enough to see that it runs


def listed():
    """(method, kind) -> what the README's table says that there is a value for."""
    table, _, _ = README.read_text(encoding="utf-8").partition("<!-- end of table -->")  # other tables come after it
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if "|" in line]
    header, rows = lines[0][1:-1], lines[2:]
    return {(row[0].strip("`"), kind): cell for row in rows for kind, cell in zip(header, row[1:-1], strict=True)}


def cells(lacking=False):
    return pytest.mark.parametrize(("name", "kind"), [key for key, cell in listed().items() if (cell == LACKING) == lacking])


def quick(name):
    """The method with fewer passes."""
    method = METHODS[name]
    settings = check_method(method).__annotations__
    return Call(method.function, {**method.arguments, **{key: value for key, value in FEW.items() if key in settings}})


def shown(explanation):
    """One row of numbers: the picture's, where there is one."""
    return (explanation.text if explanation.image is None else explanation.image).flatten()


def explained(kind, method, target=None):
    return explain(FAMILIES[kind], tiny_batch(), target, method)


def state_of(model):
    hooks = [[len(value) for key, value in vars(one).items() if key.endswith("hooks")] for one in model.modules()]
    taps = [len(layer.tap.listeners) for layer in attention_layers(model).values()]
    weights = [(one.requires_grad, one.grad is None, one.sum().item()) for one in model.parameters()]
    randomness = torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()
    return hooks, taps, weights, [one.training for one in model.modules()], randomness, torch.is_grad_enabled()


def test_the_readmes_table_is_what_the_methods_do():
    text = README.read_text(encoding="utf-8")
    assert with_table(text) == text, "run: python -m insight.interpret.capabilities"


@cells(lacking=True)
def test_a_method_that_a_kind_of_model_lacks_is_an_error_that_says_why(name, kind):
    with pytest.raises(Lacks, match=r"\w+ \w+ \w+"):
        explained(kind, quick(name))


@cells()
def test_a_method_leaves_no_trace_and_gives_every_row_its_own_finite_answer(name, kind):
    model, batch = FAMILIES[kind].model, tiny_batch()
    model.requires_grad_(False)
    model.train()
    try:
        with torch.inference_mode():
            before = state_of(model)
            together = explained(kind, quick(name))
            again = explained(kind, quick(name))
            assert state_of(model) == before
    finally:
        model.eval().requires_grad_(True)
    row = len(together.score) - 1
    alone = explained(kind, quick(name), Target(together.target.picture[row:], together.target.index[row:]))
    assert together.score.shape == (2 if kind == "classifier" else 4,)
    for field, shape in (("image", (4, 4)), ("text", (6,)), ("pairs", (6, 4, 4))):
        values, repeated, single = getattr(together, field), getattr(again, field), getattr(alone, field)
        if values is None:
            continue
        assert values.shape[1:] == shape and values.dtype == torch.float32 and not values.requires_grad
        assert values.any() and torch.equal(values, repeated)
        torch.testing.assert_close(single[0], values[row], atol=1e-4, rtol=1e-3)
        if field != "image":
            assert not values[~batch.token_mask].any()
    assert together.method.arguments.keys() >= quick(name).arguments.keys() and together.cost.forwards >= 1


@cells()
def test_a_method_asks_mps_for_nothing_that_it_lacks(name, kind):
    if METHODS[name].function.split(".")[-2] in ("perturbation", "cross_modal"):
        pytest.skip("counts and solves on the CPU in float64, and brings the answer back: on the CPU the guard cannot tell the two apart")
    with mps_guard():
        explained(kind, quick(name), Target([0], [1]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@cells()
def test_a_method_explains_a_model_in_half_precision_near_to_the_whole(name, kind, dtype):
    target = Target([0, 1], [1, 2])
    exact = explained(kind, quick(name), target)
    model = FAMILIES[kind].model
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    model.to(dtype)
    try:
        half = explained(kind, quick(name), target)
    finally:
        model.float().load_state_dict(weights)
    assert shown(half).dtype == torch.float32
    agreement = torch.nn.functional.cosine_similarity(shown(half), shown(exact), dim=0)
    assert agreement > (0.9 if dtype == torch.bfloat16 else 0.98)


@cells()
def test_a_method_works_within_autocast(name, kind):
    exact = explained(kind, quick(name), Target([0, 1], [1, 2]))
    with torch.autocast("cpu", torch.bfloat16):
        mixed = explained(kind, quick(name), Target([0, 1], [1, 2]))
    assert torch.nn.functional.cosine_similarity(shown(mixed), shown(exact), dim=0) > 0.9
