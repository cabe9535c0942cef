"""ReportObjective: one report for each validation of a fit, at a step that says where it was; pruned where the answer is no."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from callbacks.objective import ReportObjective
from insight.errors import InputError, Pruned


def trainer(sanity: bool = False, function: str = "fit", **metrics: float) -> SimpleNamespace:
    figures = {f"val/{name}": torch.tensor(value) for name, value in metrics.items()}
    return SimpleNamespace(sanity_checking=sanity, state=SimpleNamespace(fn=function), callback_metrics=figures)


def test_steps_count_the_validations_of_each_stage_from_its_thousand_also_after_a_resume():
    seen: list[tuple[int, float]] = []
    for stage, values in {"first": [0.25], "second": [0.5, 0.75]}.items():
        callback = ReportObjective("val/x", ["first", "second"], lambda step, value: not seen.append((step, value)))  # a fresh one each
        for value in values:
            callback.on_validation_end(trainer(x=value), SimpleNamespace(stage_name=stage))
    resumed = ReportObjective("val/x", ["first", "second"], lambda step, value: not seen.append((step, value)))
    resumed.load_state_dict(callback.state_dict())
    resumed.on_validation_end(trainer(x=1.0), SimpleNamespace(stage_name="second"))
    assert seen == [(0, 0.25), (1000, 0.5), (1001, 0.75), (1002, 1.0)]


def test_only_validations_of_a_fit_count():
    callback = ReportObjective("val/x", ["first"], lambda step, value: False)
    for quiet in (trainer(sanity=True), trainer(function="validate")):
        callback.on_validation_end(quiet, SimpleNamespace(stage_name="first"))
    assert callback.validations == 0


def test_no_for_an_answer_prunes_and_says_where():
    callback = ReportObjective("val/x", ["first"], lambda step, value: step < 1)
    callback.on_validation_end(trainer(x=0.5), SimpleNamespace(stage_name="first"))
    with pytest.raises(Pruned, match=r"^val/x 0\.125 after validation 2 of stage first$"):
        callback.on_validation_end(trainer(x=0.125), SimpleNamespace(stage_name="first"))


def test_a_metric_that_the_validation_does_not_log_is_named_with_those_it_does():
    callback = ReportObjective("val/loss/words", ["first"], lambda step, value: True)
    with pytest.raises(InputError, match=r"sweep\.metric='val/loss/words' was not logged by the validation; known: val/a, val/b"):
        callback.on_validation_end(trainer(b=1.0, a=2.0), SimpleNamespace(stage_name="first"))
