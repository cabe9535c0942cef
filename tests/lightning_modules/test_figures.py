"""The figures that callbacks log in a real run: beside the recipe and gradients by hand; they change nothing, and name what is dead."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from callbacks.embedding_figures import EmbeddingFigures
from callbacks.negative_figures import NegativeFigures
from callbacks.system_metrics import SystemMetrics
from callbacks.training_figures import TrainingFigures
from insight.errors import InputError
from insight.metric_names import check_metric_name
from insight.optim import warmup_cosine
from lightning_modules.drive import run_stages
from lightning_modules.engine_cli import build
from tracking.records import Journal

FIGURES = {
    "training": {"class_path": "callbacks.training_figures.TrainingFigures"},
    "negatives": {"class_path": "callbacks.negative_figures.NegativeFigures", "init_args": {"overlap": 0.25}},
    "embedding": {"class_path": "callbacks.embedding_figures.EmbeddingFigures", "init_args": {"num_pairs": 10}},
    "system": {"class_path": "callbacks.system_metrics.SystemMetrics"},
}
SEEN: list[dict[str, float]] = []
RATIOS: list[dict[str, float]] = []  # of the same steps
ALIKE: list[float] = []


class ByHand(Callback):
    """Gradient norms and update ratios of each step by a loop over the names."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        said = [
            (set(text.lower().replace(".", " ").replace(",", " ").split()), row)
            for text, row in zip(batch.texts, batch.caption_row.tolist(), strict=True)
        ]
        apart = [len(a & b) >= 0.25 * len(a | b) for a, i in said for b, j in said if i != j]
        ALIKE.append(sum(apart) / len(apart))
        self.before = {name: value.detach().double().clone() for name, value in pl_module.named_parameters()}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        moved, length = {}, {}
        for name, parameter in pl_module.named_parameters():
            if parameter.requires_grad:
                part, old = name.split(".")[1], self.before[name]
                moved[part] = moved.get(part, 0.0) + float(((parameter.detach().double() - old) ** 2).sum())
                length[part] = length.get(part, 0.0) + float((old**2).sum())
        RATIOS.append({part: (moved[part] / length[part]) ** 0.5 for part in moved})

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        squares: dict[str, float] = {}
        for name, parameter in pl_module.named_parameters():
            if parameter.requires_grad:
                part = name.split(".")[1]
                squares[part] = squares.get(part, 0.0) + (0.0 if parameter.grad is None else float((parameter.grad.double() ** 2).sum()))
        SEEN.append({part: value**0.5 for part, value in squares.items()})


def tracked(config: dict[str, Any], tmp_path: Path, **changes: Any) -> dict[str, Any]:
    """With a store that is not there: the journals hold all that was logged."""
    return {**copy.deepcopy(config), "tracking": {"tracking_uri": "http://127.0.0.1:9"}, "run_dir": str(tmp_path / "run"), **changes}


def points(run_dir: Path, stage: str) -> dict[str, dict[int, float]]:
    return Journal(run_dir / "tracking" / stage).contents().points


def test_figures_of_each_part_are_logged_per_stage_and_change_nothing(tiny_config, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    plain = {**copy.deepcopy(tiny_config), "run_dir": str(tmp_path / "plain")}
    config = tracked(tiny_config, tmp_path, callbacks=FIGURES)
    assert run_stages(build(plain)) == 0
    SEEN.clear()
    RATIOS.clear()
    ALIKE.clear()
    cli = build(config)
    cli.callbacks["by_hand"] = ByHand()
    assert run_stages(cli) == 0
    for number, name in enumerate(config["stages"], start=1):
        ours, without = (
            torch.load(tmp_path / which / f"{number:02d}-{name}" / "final.ckpt", weights_only=True)["state_dict"]
            for which in ("run", "plain")
        )
        assert all(torch.equal(value, without[key]) for key, value in ours.items())
        logged = points(tmp_path / "run", f"{number:02d}-{name}")
        for metric in logged.keys() - {"epoch"}:
            check_metric_name(metric)
        seen = SEEN[10 * (number - 1) : 10 * number]  # 2 epochs of 5 steps
        for step in range(10):
            assert {part: logged[f"train/gradient_norm/{part}"][step] for part in seen[step]} == pytest.approx(seen[step], rel=1e-4)
            ratios = RATIOS[10 * (number - 1) + step]
            assert {part: logged[f"train/update_ratio/{part}"][step] for part in ratios} == pytest.approx(ratios, rel=1e-3, abs=1e-8)
            total = sum(value**2 for value in seen[step].values()) ** 0.5
            assert logged["train/gradient_norm"][step] == pytest.approx(total, rel=1e-4)
            for part in seen[step]:
                rate = 1.0e-3 if (name, part) == ("end_to_end", "text") else 3.0e-3
                assert logged[f"train/learning_rate/{part}"][step] == pytest.approx(rate * warmup_cosine(step, 10))
        frozen = {"image", "text"} if name == "cross_modal" else set()
        assert not {f"train/gradient_norm/{part}" for part in frozen} & logged.keys()
        assert {len(logged[f"val/{one}"]) for one in ("alignment", "modality_gap", "uniformity_text", "effective_rank_image")} == {2}
        assert all(value > 0 for value in logged["train/pairs_per_second"].values())
        alike = dict(enumerate(ALIKE[10 * (number - 1) : 10 * number]))
        assert logged["train/false_negative_rate"] == pytest.approx(alike) and 0 < max(alike.values()) < 1
        assert logged["system/process_memory_usage_megabytes"].keys() == {9}  # a short stage: once, at its end


def test_a_part_that_trains_without_a_gradient_is_named_once_and_an_unused_bias_is_not(tiny_config, tmp_path, caplog):
    stage = tiny_config["stages"]["end_to_end"]
    stage |= {"epochs": 1, "losses": {"contrastive": {"function": "insight.losses.contrastive"}}}
    config = {**tiny_config, "stages": {"end_to_end": stage}, "callbacks": {"training": FIGURES["training"]}}
    config["model"]["init_args"]["rerank_top_k"] = 0
    with caplog.at_level(logging.WARNING):
        assert run_stages(build(config)) == 0
    said = [text for text in caplog.messages if "is dead" in text]
    assert sorted(text.split("'")[1] for text in said) == ["fusion", "masked_head", "match_head", "word_head"]
    assert all("stage 'end_to_end'" in text and "at step 2 and 2 logged steps before" in text for text in said)


@pytest.mark.parametrize(("epochs", "steps"), [(1, 5), (3, 10)])
def test_a_tower_that_stays_collapsed_is_named_once_in_the_second_validation_or_at_the_end(tiny_config, caplog, epochs, steps):
    stage = {**tiny_config["stages"]["cross_modal"], "epochs": epochs, "train": ["model.text_projection.*"]}
    stage["losses"] = {"contrastive": {"function": "insight.losses.contrastive"}}
    cli = build({**tiny_config, "stages": {"cross_modal": stage}, "callbacks": {"embedding": FIGURES["embedding"]}})
    with torch.no_grad():
        cli.model.model.image_projection.weight.zero_()  # every picture has the same embedding
    with caplog.at_level(logging.WARNING):
        assert run_stages(cli) == 0
    (said,) = [text for text in caplog.messages if "collapse" in text]
    expected = f"collapse of the image tower in stage 'cross_modal' after {steps} steps: all image embeddings are nearly one point"
    assert said.startswith(expected)


def test_a_tower_that_recovers_is_not_named(tiny_config, caplog, monkeypatch):
    states = iter([{"text": "flat"}, {}, {"text": "flat"}, {}])
    monkeypatch.setattr("callbacks.embedding_figures.collapsed", lambda figures, count, width: next(states))
    tiny_config["stages"] = {"cross_modal": {**tiny_config["stages"]["cross_modal"], "epochs": 4}}
    assert run_stages(build({**tiny_config, "callbacks": {"embedding": FIGURES["embedding"]}})) == 0
    assert next(states, None) is None and not [text for text in caplog.messages if "collapse" in text]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: TrainingFigures(dead_after=0), "training_figures.init_args.dead_after=0"),
        (lambda: NegativeFigures(overlap=0), "negative_figures.init_args.overlap=0"),
        (lambda: EmbeddingFigures(num_pairs=1), "embedding_figures.init_args.num_pairs=1"),
        (lambda: SystemMetrics(every_n_seconds=0), "system_metrics.init_args.every_n_seconds=0"),
    ],
)
def test_a_setting_out_of_range_is_named(make, said):
    with pytest.raises(InputError, match=said):
        make()
