"""The drift callback within a fit: a head that is broken on purpose is named, and the training does not notice."""

from __future__ import annotations

import logging

import lightning as L
import pytest
import torch

from callbacks.drift import Drift
from insight.errors import InputError
from insight.interpret.drift import Limits, load_entries
from insight.interpret.scorecard import ScoredMethod
from insight.models.cross_attention import CrossAttentionMultiModalTransformer
from insight.models.multimodal import MultiModalTransformer
from tests.callbacks.tiny_fit import Keeper, Module, fit

METHODS = {"chefer": ScoredMethod("insight.interpret.relevance.chefer_relevance", family="insight.interpret.families.DualEncoder")}


def drift(**arguments):
    return Drift(**{"methods": METHODS, "num_examples": 2, "metric": "val/loss", **arguments})


class Break(L.Callback):
    """Silences the first head of the image tower's first layer before the second epoch."""

    def on_validation_start(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            with torch.no_grad():
                pl_module.model.image.blocks[0].attention.output.weight[:, :4] = 0


def test_a_head_that_dies_between_two_validations_is_named_in_a_warning_a_file_and_a_metric(tmp_path, caplog):
    logger = Keeper()
    with caplog.at_level(logging.WARNING):
        fit([drift(), Break()], Module(MultiModalTransformer, tmp_path), logger=logger, num_sanity_val_steps=1)
    (told,) = [one.getMessage() for one in caplog.records if one.name == "callbacks.drift"]
    assert told.startswith("joint, epoch 2: image.blocks.0.attention, head 0: it writes next to nothing any more (since epoch 1")
    first, second = load_entries(tmp_path / "drift.json")
    assert (first.epoch, first.step, first.stability, first.warnings) == (1, 2, {}, ())
    assert [one.kind for one in second.warnings] == ["dead head"] and set(second.stability) == {"chefer"}
    assert second.heads["image.blocks.0.attention"]["written"][0] == 0
    assert logger.metrics["insight/drift_warnings"] == 1
    assert logger.metrics["insight/chefer/map_stability_v1"] == pytest.approx(second.stability["chefer"])
    assert ("joint" if tmp_path.name == "joint" else tmp_path.name, "drift.json") in logger.files
    assert first.accuracy is not None and second.accuracy is not None


def test_maps_that_move_while_the_metric_stays_are_told(tmp_path, caplog):
    limits = Limits(stability=1.0, accuracy=1.0)  # everything counts as moved, nothing as another accuracy
    with caplog.at_level(logging.WARNING):
        fit([drift(limits=limits)], Module(MultiModalTransformer, tmp_path, learning_rate=0.05))
    assert any("chefer: its maps have changed since epoch 1" in one.getMessage() for one in caplog.records)


@pytest.mark.parametrize("kind", [MultiModalTransformer, CrossAttentionMultiModalTransformer])
def test_training_with_the_callback_is_bitwise_training_without_it(tmp_path, kind):
    plain, seen = Module(kind), Module(kind, tmp_path)
    fit([], plain)
    state = torch.get_rng_state()
    fit([drift()], seen)
    assert all(torch.equal(one, two) for one, two in zip(plain.state_dict().values(), seen.state_dict().values(), strict=True))
    assert torch.equal(torch.get_rng_state(), state) and len(load_entries(tmp_path / "drift.json")) == 2


def test_a_resumed_run_compares_with_the_validation_before_the_kill(tmp_path):
    fit([drift()], Module(MultiModalTransformer, tmp_path / "whole"), epochs=3)
    trainer = fit([drift()], Module(MultiModalTransformer, tmp_path / "part"), epochs=2)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    fit([drift()], Module(MultiModalTransformer, tmp_path / "part"), epochs=3, checkpoint=tmp_path / "half.ckpt")
    entries = load_entries(tmp_path / "part" / "drift.json")
    assert [one.epoch for one in entries] == [1, 2, 3] and set(entries[2].stability) == {"chefer"}
    assert entries[:2] == load_entries(tmp_path / "whole" / "drift.json")[:2]


def test_only_the_first_process_looks(tmp_path, monkeypatch):
    monkeypatch.setattr(L.Trainer, "is_global_zero", False)
    fit([drift()], Module(MultiModalTransformer, tmp_path / "a"), epochs=1)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"methods": {}}, "drift.init_args.methods: there is no method"),
        ({"metric": "val/mean_recal"}, "val/mean_recall"),
        ({"num_examples": 0}, "drift.init_args.num_examples=0"),
        ({"methods": {"chefer": ScoredMethod("insight.interpret.relevance.chefer_relevanc")}}, "drift.init_args.methods.chefer"),
    ],
)
def test_what_cannot_be_watched_is_an_error_before_the_first_step(tmp_path, arguments, message):
    with pytest.raises(InputError, match=message):
        fit([drift(**arguments)], Module(MultiModalTransformer, tmp_path / "a"), epochs=1)
    assert not (tmp_path / "a").exists()
