"""The score card within a fit: what it leaves behind, how often, and that the training does not notice."""

from __future__ import annotations

import csv
import json
import math

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image

from callbacks import score_card
from callbacks.attention_maps import AttentionMaps
from callbacks.score_card import ScoreCard
from insight.errors import InputError
from insight.interpret.checks import load_checks
from insight.interpret.explain import explain
from insight.interpret.families import DualEncoder
from insight.interpret.maps import Verdict, load_facts, load_maps, save_maps
from insight.interpret.scorecard import ScoredMethod
from insight.metric_names import check_metric_name
from insight.models.cross_attention import CrossAttentionMultiModalTransformer
from insight.models.multimodal import MultiModalTransformer
from tests.callbacks.tiny_fit import Keeper, Module, fit, pairs_batch

ROLLOUT = ScoredMethod("insight.interpret.attention_maps.rollout_map", family="insight.interpret.families.DualEncoder")
CHEFER = ScoredMethod("insight.interpret.relevance.chefer_relevance", family="insight.interpret.families.DualEncoder")
WORDS = ScoredMethod("insight.interpret.attention_maps.raw_attention")
METHODS = {"rollout": ROLLOUT, "chefer": CHEFER}


def card(methods=None, **arguments):
    return ScoreCard(methods or METHODS, **{"num_examples": 2, "steps": 2, "search_examples": 0, **arguments})


@pytest.fixture
def undrawn(monkeypatch):
    """Everything but the pictures, which take a process each."""
    monkeypatch.setattr(score_card, "draw_aside", lambda maps, figures: [])


def stems(folder):
    return [path.stem for path in sorted((folder / "score_card").glob("epoch*.json"))]


def test_a_fit_leaves_scores_maps_a_table_checks_ranks_and_pictures(tmp_path):
    module, logger = Module(CrossAttentionMultiModalTransformer, tmp_path / "00-joint"), Keeper()
    callback = card({"words": WORDS, **METHODS}, every_n_validations=1, search_examples=8, search_method="chefer")
    fit([AttentionMaps(num_examples=2, every_n_validations=2), callback], module, logger=logger, num_sanity_val_steps=1)
    folder = tmp_path / "00-joint" / "score_card"
    assert stems(folder.parent) == ["epoch0001-step0000002", "epoch0002-step0000004"]
    arrays, facts = load_maps(folder / "epoch0002-step0000004.safetensors")
    assert (facts.stage, facts.epoch, facts.step, facts.grid) == ("joint", 2, 4, 2)
    assert facts.methods["words"].query == "words in the caption" and facts.methods["chefer"].query == "phrase alone"
    assert arrays["method/words/phrases"].shape == (2, 2, 2, 2)
    # the last weights' map, again, by one plain call
    plain = explain(DualEncoder(module.model), pairs_batch(range(2)), None, CHEFER.call)
    largest = plain.image.abs().amax(dim=(1, 2), keepdim=True)
    np.testing.assert_allclose(arrays["method/chefer/image"], plain.image / largest, atol=2e-3)
    assert [one.score["chefer"] for one in facts.examples] == pytest.approx(plain.score.tolist(), abs=1e-4)
    # the table has what the logger was told
    rows = list(csv.DictReader((folder / "scores.csv").open()))
    assert {row["epoch"] for row in rows} == {"1", "2"}
    told = {name: value for name, value in logger.metrics.items() if name.count("/") == 2}
    last = {f"insight/{row['method']}/{row['score']}": float(row["value"]) for row in rows if row["epoch"] == "2"}
    assert last and all(told[name] == pytest.approx(value) for name, value in last.items())
    for name in logger.metrics.keys() - {"epoch"}:  # Lightning's own
        check_metric_name(name)
    # once a stage: checks, marked on every map, also those of the attention sheets
    checks = load_checks(folder / "checks.json")
    assert set(checks) == {"words", "rollout", "chefer"} and checks["chefer"].infidelity >= 0
    assert "insight/chefer/randomisation_rho_v1" in logger.metrics
    for stem in stems(folder.parent):
        assert load_facts(folder / f"{stem}.safetensors").verdicts == {name: one.verdict for name, one in checks.items()}
    sheets = load_facts(tmp_path / "00-joint" / "maps" / "epoch0001-step0000002.safetensors").verdicts
    assert sheets == {"rollout": checks["rollout"].verdict, "words": checks["words"].verdict}
    # ranks of the search's pairs, by counting
    found, ranked = load_maps(folder / "validation.safetensors")
    with torch.no_grad():
        everything = pairs_batch(range(8))
        output = module.model.eval()(everything.image, everything.tokens, everything.token_mask)
        similarity = output.text.embedding @ output.image.embedding.T
    for row, example in enumerate(ranked.examples):
        assert example.ranks["text_to_image"] == 1 + int((similarity[row] > similarity[row, row]).sum())
    assert found["method/chefer/phrases"].shape == (8, 2, 2, 2)
    # pictures, and everything at the logger
    pictures = sorted(path.name for path in folder.glob("*.png"))
    assert pictures == [f"{stem}-{what}.png" for stem in stems(folder.parent) for what in ("methods", "score_card")]
    with Image.open(folder / pictures[0]) as image:
        image.load()
    kept = {name for where, name in logger.files if where == "score_card"}
    assert {*pictures, "scores.csv", "checks.json", "validation.safetensors", "validation.json"} <= kept


def test_a_failed_randomisation_check_is_known_in_the_next_stage(tmp_path, undrawn):
    one, two = (Module(MultiModalTransformer, tmp_path / name) for name in ("00-first", "01-second"))
    fit([card(every_n_validations=1)], one, epochs=1)
    path = tmp_path / "00-first" / "score_card" / "checks.json"
    found = json.loads(path.read_text())
    found["methods"]["rollout"] |= {"rho": 0.9, "passed": False}
    path.write_text(json.dumps(found))
    seen = {}

    class Peek(L.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 1:
                seen.update(load_facts(next((tmp_path / "01-second" / "score_card").glob("epoch0001*.json"))).verdicts)

    background = card(every_n_validations=1)
    fit([background, Peek()], two, epochs=2)
    assert seen["rollout"] == Verdict(0.9, False)


@pytest.mark.parametrize("kind", [MultiModalTransformer, CrossAttentionMultiModalTransformer])
def test_training_with_the_score_card_is_bitwise_training_without_it(tmp_path, undrawn, kind):
    plain, seen = Module(kind), Module(kind, tmp_path / "00-joint")
    fit([], plain)
    state = torch.get_rng_state()
    fit([card(every_n_validations=1, search_examples=4)], seen)
    assert stems(tmp_path / "00-joint")
    assert all(torch.equal(one, two) for one, two in zip(plain.state_dict().values(), seen.state_dict().values(), strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.requires_grad for parameter in seen.parameters())
    assert not any(module._forward_hooks or module._backward_hooks for module in seen.modules())


def test_a_resumed_fit_goes_on_as_it_would_without_the_score_card_and_keeps_to_its_cadence(tmp_path, undrawn):
    trainer = fit([card(every_n_validations=2)], Module(MultiModalTransformer, tmp_path / "00-joint"), epochs=2)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    plain, seen, again = Module(MultiModalTransformer), Module(MultiModalTransformer, tmp_path / "00-joint"), card(every_n_validations=1)
    fit([], plain, epochs=5, checkpoint=tmp_path / "half.ckpt")
    fit([again], seen, epochs=5, checkpoint=tmp_path / "half.ckpt")
    assert all(torch.equal(one, two) for one, two in zip(plain.state_dict().values(), seen.state_dict().values(), strict=True))
    assert again.every_n_validations == 2  # the checkpoint's
    # validations 1, 3 and 5 by the cadence; 2 was the last one of the first fit
    assert [stem[:9] for stem in stems(tmp_path / "00-joint")] == ["epoch0001", "epoch0002", "epoch0003", "epoch0005"]
    assert load_facts(tmp_path / "00-joint" / "score_card" / "epoch0005-step0000010.safetensors").step == 10


@pytest.mark.parametrize(("scoring", "validating", "every"), [(1.0, 10.0, 1), (3.0, 10.0, 2), (50.0, 10.0, 25)])
def test_how_often_is_chosen_once_so_that_it_takes_at_most_a_fifth(tmp_path, undrawn, monkeypatch, scoring, validating, every):
    clock = {"now": 0.0}
    monkeypatch.setattr(score_card.time, "perf_counter", lambda: clock["now"])
    monkeypatch.setattr(ScoreCard, "validation_seconds", lambda self: validating)
    plain = ScoreCard._score

    def slow(self, pl_module, probe):
        clock["now"] += scoring
        return plain(self, pl_module, probe)

    monkeypatch.setattr(ScoreCard, "_score", slow)
    logger, callback = Keeper(), card()
    fit([callback], Module(MultiModalTransformer, tmp_path / "00-joint"), epochs=3, logger=logger)
    assert callback.every_n_validations == every
    assert scoring / every / validating <= 0.2 and (every == 1 or scoring / (every - 1) / validating > 0.2)
    facts = json.loads((tmp_path / "score_card.json").read_text())
    assert (facts["every_n_validations"], facts["scoring_seconds"], facts["validation_seconds"]) == (every, scoring, validating)
    assert logger.tags["insight.every_n_validations"] == str(every)
    validations = [1, *(number for number in (2, 3) if (number - 1) % every == 0)]
    assert len(callback.scoring_seconds) == len(validations)
    monkeypatch.setattr(ScoreCard, "validation_seconds", lambda self: math.inf)  # measured again, it would be every one
    later = card()
    fit([later], Module(MultiModalTransformer, tmp_path / "01-next"), epochs=1)
    assert later.every_n_validations == every


def test_only_the_first_process_scores_and_nothing_is_scored_in_sanity_checks_or_outside_of_a_fit(tmp_path, undrawn, monkeypatch):
    module = Module(MultiModalTransformer, tmp_path / "00-joint")
    trainer = fit([card(every_n_validations=1)], module, epochs=1, num_sanity_val_steps=2)
    assert len(stems(tmp_path / "00-joint")) == 1
    before = sorted(path.stat().st_mtime_ns for path in (tmp_path / "00-joint" / "score_card").iterdir())
    trainer.validate(module, datamodule=trainer.datamodule, verbose=False)
    assert sorted(path.stat().st_mtime_ns for path in (tmp_path / "00-joint" / "score_card").iterdir()) == before
    monkeypatch.setattr(L.Trainer, "is_global_zero", False)
    fit([card(every_n_validations=1)], Module(MultiModalTransformer, tmp_path / "other"), epochs=1)
    assert not (tmp_path / "other").exists()


def test_a_failure_waits_for_the_checkpoint_of_its_validation(tmp_path, undrawn, monkeypatch):
    saved = []

    class Order(L.Callback):
        def on_validation_end(self, trainer, pl_module):
            saved.append(trainer.global_step)

    monkeypatch.setattr(score_card, "record", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        fit([card(every_n_validations=1), Order()], Module(MultiModalTransformer, tmp_path / "00-joint"), epochs=3)
    assert saved == [2]


def test_half_precision_is_scored_too(tmp_path, undrawn):
    for precision in ("bf16-mixed", "bf16-true"):
        module = Module(MultiModalTransformer, tmp_path / precision)
        fit([card(every_n_validations=1)], module, epochs=1, precision=precision)
        assert load_facts(next((tmp_path / precision / "score_card").glob("epoch*.json"))).methods["chefer"].scores


def test_a_file_of_scores_keeps_to_its_limit_for_each_example(tmp_path, undrawn):
    fit([card(every_n_validations=1)], Module(MultiModalTransformer, tmp_path / "00-joint"), epochs=1)
    path = next((tmp_path / "00-joint" / "score_card").glob("epoch*.safetensors"))
    arrays, facts = load_maps(path)
    needed = sum(array.nbytes for array in arrays.values())
    small, _ = save_maps(tmp_path / "small.safetensors", arrays, facts, max_bytes_per_example=needed // 2 - 4)
    kept, told = load_maps(small)
    assert told.left_out and sum(array.nbytes for array in kept.values()) <= needed - 8
    assert set(kept) | set(told.left_out) == set(arrays)


BAD = [
    ({"methods": {}}, r"no method to score"),
    ({"methods": {"a/b": CHEFER}}, r"'a/b' is a part of metric names"),
    ({"methods": {"chefer": ScoredMethod("insight.interpret.relevance.chefer")}}, r"score_card\.init_args\.methods\.chefer"),
    ({"methods": {"chefer": ScoredMethod(CHEFER.function, {"start_layr": 1})}}, r"methods\.chefer.*start_layr"),
    ({"methods": {"words": ScoredMethod(WORDS.function, family="insight.interpret.families.CrossAttention")}}, r"methods\.words\.family"),
    ({"methods": {"words": ScoredMethod(WORDS.function, family="insight.interpret.families.Classifier")}}, r"Classifier\(vision, head\)"),
    ({"methods": {"words": ScoredMethod(WORDS.function, family="insight.metrics.retrieval_ranks")}}, r"is no Family"),
    ({"num_examples": 0}, r"num_examples=0"),
    ({"steps": 0}, r"steps=0"),
    ({"every_n_validations": 0}, r"every_n_validations=0"),
    ({"search_examples": -1}, r"search_examples=-1"),
    ({"search_method": "lime"}, r"search_method=lime.*rollout, chefer"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[message for _, message in BAD])
def test_what_cannot_be_scored_is_an_error_before_the_first_step(tmp_path, arguments, message):
    with pytest.raises(InputError, match=message):
        fit([ScoreCard(**{"methods": METHODS, **arguments})], Module(MultiModalTransformer, tmp_path / "00-joint"), epochs=1)
    assert not (tmp_path / "00-joint").exists()


def test_a_method_that_the_model_lacks_is_an_error_before_the_first_step(tmp_path):
    legrad = ScoredMethod("insight.interpret.token_gradients.legrad")
    with pytest.raises(InputError, match="cross-attention"):
        fit([card({"legrad": legrad})], Module(CrossAttentionMultiModalTransformer, tmp_path / "00-joint"), epochs=1)
    assert not (tmp_path / "00-joint").exists()
