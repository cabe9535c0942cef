"""A tiny run of visual questions: accuracies counted again from its own answers, blind ones from the data."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path

import pytest
import torch

from insight.errors import InputError
from insight.export.bundle import load
from lightning_modules.drive import run_stages
from lightning_modules.engine_cli import build

KINDS = ["colour", "shape", "size", "texture", "count", "exists", "relation"]


@pytest.fixture
def questions(tiny_config):
    model, data = tiny_config["model"], tiny_config["data"]
    model["class_path"] = "lightning_modules.visual_questions.VisualQuestionModule"
    for key in ("embed_dim", "rerank_top_k"):
        del model["init_args"][key]
    model["init_args"] |= {"num_answers": 29, "kinds": KINDS}
    data["class_path"] = "datamodules.visual_questions.VisualQuestionsDataModule"
    loss = {"answers": {"function": "insight.losses.answer_classification"}}
    train = ["model.image.*", "model.text.*", "model.fusion*", "model.answer_head.*"]
    tiny_config["stages"] = {"questions": {"epochs": 1, "train": train, "losses": loss, "learning_rate": 3e-3, "monitor": "val/accuracy"}}
    tiny_config["deployment"] = {"name": "answers", "bundle": True, "register": False}
    return tiny_config


def test_a_run_answers_every_test_question_and_counts_by_kind_beside_blind_answers(questions, capsys):
    cli = build(questions)
    assert run_stages(cli) == 0
    run = Path(questions["run_dir"])
    test, rows = json.loads((run / "summary.json").read_text())["test"], json.loads((run / "answers.json").read_text())
    asked = cli.datamodule.questions("test")
    assert [(one["kind"], one["question"], one["answer"]) for one in rows] == [tuple(one) for one in asked]
    right = defaultdict(list)
    for one in rows:
        right["accuracy"].append(one["said"] == one["answer"])
        right[f"accuracy_{one['kind']}"].append(one["said"] == one["answer"])
    assert {name: test[f"test/{name}"] for name in right} == pytest.approx({name: sum(x) / len(x) for name, x in right.items()})
    colours = Counter(one.answer for one in cli.datamodule.questions("train") if one.kind == "colour")
    most = next(iter(colours.most_common(1)))[0]
    blind = [one.answer == most for one in asked if one.kind == "colour"]
    assert test["test/baseline/blind_kind/accuracy_colour"] == pytest.approx(sum(blind) / len(blind))
    printed = capsys.readouterr().out
    assert "test, blind: answer of the question" in printed and "relation  model " in printed
    bundle = load(run / "bundle")
    best = torch.load(run / "01-questions" / "best.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(value, best[f"model.{name}"]) for name, value in bundle.model.state_dict().items())
    first = rows[0]
    place = cli.datamodule.locate() / "flickr30k_images" / first["filename"]
    assert bundle.labels[int(bundle.answer([place], [first["question"]])[0].argmax())] == first["said"]
    card, wrong = (run / "bundle" / "card" / "model_card.md").read_text(), next(one for one in rows if one["said"] != one["answer"])
    assert f"| {wrong['kind']} | {wrong['question']} | {wrong['filename']} | {wrong['answer']} | {wrong['said']} |" in card
    assert f"{sum(one['said'] != one['answer'] for one in rows)} of {len(rows)} questions" in card
    assert f"| test/accuracy | {test['test/accuracy']:.3f} | {test['test/baseline/blind_kind/accuracy']:.3f} |" in card


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("num_answers", 5, r"model.init_args.num_answers=5, but the data have 29: the two must be equal"),
        ("kinds", ["colour"], r"model.init_args.kinds=\['colour'\], but the data have \['colour', 'shape'"),
    ],
)
def test_answers_and_kinds_that_are_not_those_of_the_data_are_named(questions, key, value, message):
    questions["model"]["init_args"][key] = value
    cli = build(questions)
    with pytest.raises(InputError, match=message):
        cli.model.check_data(cli.datamodule)


def test_one_answer_is_no_choice(questions):
    questions["model"]["init_args"]["num_answers"] = 1
    with pytest.raises(InputError, match=r"model.init_args.num_answers=1: must be at least 2"):
        build(questions)


def test_captions_are_no_questions(questions):
    questions["data"]["class_path"] = "datamodules.scenes.ScenesDataModule"
    with pytest.raises(InputError, match="ScenesDataModule: has no answers, kinds, questions, which VisualQuestionModule needs"):
        build(questions)
