import dataclasses
import json

import numpy as np
import pytest
import torch

from insight.data.batch import Phrase
from insight.errors import InputError
from insight.interpret.explain import explain
from insight.interpret.families import DualEncoder
from insight.interpret.maps import MapFacts, load_maps, save_maps
from insight.interpret.probe import make_probe
from insight.interpret.ranking import pair_ranks
from insight.interpret.scorecard import by_word, cadence, curves, explained, look, record, score
from insight.interpret.tables import lines, write_table
from insight.models.multimodal import MultiModalTransformer
from insight.stages import Call
from tests.callbacks.tiny_fit import CONTEXT, FIRST, SECOND, SHAPE, TOKENIZER, pairs_batch

PLANTED = "tests.insight.interpret.planted"
FACTS = MapFacts("joint", 1, 10, 2, (), ())


@pytest.fixture
def towers():
    torch.manual_seed(0)
    model = MultiModalTransformer(**SHAPE).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.4)
    return DualEncoder(model)


@pytest.fixture
def probe():
    return make_probe(pairs_batch(range(3)), TOKENIZER, CONTEXT)


def test_a_probe_knows_the_tokens_of_phrases_their_rivals_and_each_phrase_as_a_caption(probe):
    assert probe.positions == ((1, 2), (3,)) * 3  # "a dog", and the number, behind the start token
    assert probe.others == (SECOND, FIRST) * 3
    assert probe.alone.texts == ("a dog", "0", "a dog", "1", "a dog", "2")
    assert probe.alone.caption_row.tolist() == probe.pictures.tolist() == [0, 0, 1, 1, 2, 2]
    assert torch.equal(probe.alone.tokens[0], torch.tensor([1, *probe.batch.tokens[0, 1:3].tolist(), 2]))
    assert [phrase.text for phrase in probe.examples()[1].phrases] == ["a dog", "1"]


def test_phrases_without_boxes_or_beyond_the_context_are_left_out():
    batch = pairs_batch(range(1))
    phrases = (*batch.phrases, Phrase(0, "a", 0, 1, "c", ()))
    short = make_probe(batch._replace(phrases=phrases), TOKENIZER, 4)  # start, "a", " dog", end
    assert [phrase.text for phrase in short.phrases] == ["a dog"] and short.cut == 1
    none = make_probe(batch._replace(phrases=()), TOKENIZER, CONTEXT)
    assert none.phrases == () and none.alone is None and none.examples()[0].phrases == ()


def test_a_map_of_the_first_patch_points_at_the_first_phrase_alone(towers, probe):
    scored = score(towers, probe, Call(f"{PLANTED}.first_patch"), steps=0)
    found = scored.facts.scores
    assert scored.facts.query == "phrase alone"
    assert (found["pointing_game_v1"], found["other_object_rate_v1"], found["specificity_v1"]) == (0.5, 0.5, 0)
    assert found["energy_in_box_v1"] == pytest.approx((0.8 * 0.8 + 0) / 2)  # of the patch from 0 to .5, the box has .1 to .5
    assert found["forwards_per_pair"] == 1 and found["backwards_per_pair"] == 0
    low, high = scored.facts.intervals["pointing_game_v1"]
    assert low == high == 0.5  # every picture alike


def test_a_method_that_says_what_each_word_reads_is_asked_once_for_the_whole_caption(towers, probe):
    scored = score(towers, probe, Call(f"{PLANTED}.corner_of_each_word"), steps=0)
    assert scored.facts.query == "words in the caption"
    assert scored.facts.scores["pointing_game_v1"] == 1 and scored.facts.scores["other_object_rate_v1"] == 0
    assert scored.facts.scores["energy_in_box_v1"] == pytest.approx((0.8**2 + 0.6**2) / 2)
    assert torch.equal(scored.looked.phrases_Pgg[0], torch.tensor([[2.0, 0], [0, 0]]))


def test_without_phrases_or_patches_the_figures_that_need_them_are_left_out(towers, probe):
    bare = make_probe(probe.batch._replace(phrases=()), TOKENIZER, CONTEXT)
    assert not any("pointing" in name for name in score(towers, bare, Call(f"{PLANTED}.first_patch"), steps=1).facts.scores)
    found = score(towers, probe, Call(f"{PLANTED}.words_alone"), steps=1).facts.scores
    assert [name for name in found if name.endswith("v1")] == ["deletion_text_word_drop_v1", "insertion_text_word_drop_v1"]


def test_curves_in_one_step_are_the_mean_of_everything_and_nothing(towers, probe):
    explanation = explain(towers, probe.batch, None, Call(f"{PLANTED}.first_patch"))
    found = curves(towers, probe.batch, explanation, steps=1)
    rows, _ = towers.rows(probe.batch, None)
    whole = towers.embed(rows)
    with torch.no_grad():
        no_patch = towers.score(whole._replace(image_mask_RN=torch.tensor([[True] + [False] * 4] * 3)))
        ends = (rows.tokens_RT == 1) | (rows.tokens_RT == 2)
        no_word = towers.score(whole._replace(text_mask_RT=ends))
        everything = towers.score(whole)
    for name, nothing in (("image_token_drop", no_patch), ("text_word_drop", no_word)):
        expected = float((everything + nothing).mean() / 2)
        assert found[f"deletion_{name}_v1"] == pytest.approx(expected, abs=1e-4)
        assert found[f"insertion_{name}_v1"] == pytest.approx(expected, abs=1e-4)


def test_rows_at_a_time_do_not_matter(towers, probe):
    method = Call("insight.interpret.relevance.chefer_relevance")
    whole, single = explained(towers, probe.batch, method), explained(towers, probe.batch, method, rows_at_once=1)
    torch.testing.assert_close(whole.image, single.image, atol=1e-5, rtol=1e-4)
    assert (whole.cost.forwards, whole.cost.backwards) == (single.cost.forwards, single.cost.backwards) == (1, 1)


@pytest.mark.parametrize("rows_at_once", [2, 64])
def test_captions_and_phrases_asked_together_are_explained_as_each_alone(towers, probe, rows_at_once):
    method = Call("insight.interpret.relevance.chefer_relevance")
    found = look(towers, probe, method, rows_at_once)
    captions, phrases = explain(towers, probe.batch, None, method), explain(towers, probe.alone, None, method)
    for one, other in ((found.explanation, captions), (dataclasses.replace(phrases, image=found.phrases_Pgg), phrases)):
        torch.testing.assert_close(one.image, other.image, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(one.text, other.text, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(one.score, other.score, atol=1e-4, rtol=1e-4)
    assert found.explanation.target.index.tolist() == [0, 1, 2]


def test_words_get_the_sum_of_their_tokens_and_a_caption_without_one_is_refused():
    word_RT = torch.tensor([[-1, 0, 0, 1], [-1, 0, -1, -1]])
    value_RW, present_RW = by_word(torch.tensor([[9.0, 1, 2, 4], [9.0, 5, 9, 9]]), word_RT)
    assert value_RW.tolist() == [[3, 4], [5, 0]] and present_RW.tolist() == [[True, True], [True, False]]
    with pytest.raises(InputError, match="caption 1 has no word"):
        by_word(torch.ones(2, 2), torch.tensor([[0, 1], [-1, -1]]))


def test_a_record_is_read_back_with_each_examples_phrases_and_in_units_of_the_largest_value(towers, probe, tmp_path):
    scored = {name: score(towers, probe, Call(f"{PLANTED}.{name}"), steps=1) for name in ("first_patch", "corner_of_each_word")}
    arrays, facts = load_maps(save_maps(tmp_path / "epoch0001-step0000010.safetensors", *record(probe, scored, FACTS))[0])
    assert arrays["method/first_patch/image"][2].tolist() == [[1, 0], [0, 0]]
    assert arrays["method/corner_of_each_word/phrases"][1].tolist() == [[[1, 0], [0, 0]], [[0, 0], [0, 1]]]
    assert arrays["method/corner_of_each_word/pairs"].shape == (3, 6, 2, 2)
    assert facts.methods["first_patch"] == dataclasses.replace(scored["first_patch"].facts)
    assert facts.examples[0].score["first_patch"] == pytest.approx(float(scored["first_patch"].looked.explanation.score[0]))
    table = write_table(tmp_path).read_text().splitlines()
    assert table[0] == "stage,epoch,step,method,score,value" and "joint,1,10,first_patch,pointing_game_v1,0.5" in table
    assert len(table) == 1 + sum(len(one.scores) for one in facts.methods.values()) == 1 + len(list(lines(tmp_path)))
    json.loads((tmp_path / "epoch0001-step0000010.json").read_text())


def test_examples_with_fewer_phrases_are_filled_with_zeros(towers, probe, tmp_path):
    uneven = make_probe(probe.batch._replace(phrases=probe.batch.phrases[:3]), TOKENIZER, CONTEXT)
    arrays, _ = record(uneven, {"one": score(towers, uneven, Call(f"{PLANTED}.first_patch"), steps=0)}, FACTS)
    assert arrays["method/one/phrases"].shape == (3, 2, 2, 2)
    assert np.abs(arrays["method/one/phrases"]).sum(axis=(2, 3)).tolist() == [[1, 1], [1, 0], [0, 0]]


@pytest.mark.parametrize(("scoring", "validating"), [(0.1, 10.0), (2.0, 10.0), (2.01, 10.0), (31.0, 7.0), (5.0, 0.5)])
def test_the_cadence_is_the_smallest_that_takes_a_fifth(scoring, validating):
    by_trying = next(every for every in range(1, 1000) if scoring / every <= 0.2 * validating + 1e-9)
    assert cadence(scoring, validating) == by_trying


def test_ranks_of_pairs_are_those_of_counting_and_the_model_stays(towers):
    model, everything = towers.model, pairs_batch(range(8))
    model.train()
    state = torch.get_rng_state()
    found = pair_ranks(model, (pairs_batch(range(first, first + 3 if first < 6 else 8)) for first in (0, 3, 6)))
    assert model.training and torch.equal(torch.get_rng_state(), state)
    model.eval()
    with torch.no_grad():
        output = model(everything.image, everything.tokens, everything.token_mask)
        similarity = output.text.embedding @ output.image.embedding.T
    for row in range(8):
        expected = {
            "image_to_text": 1 + int((similarity[:, row] > similarity[row, row]).sum()),
            "text_to_image": 1 + int((similarity[row] > similarity[row, row]).sum()),
        }
        assert found[row, row] == expected
    with pytest.raises(InputError, match="empty"):
        pair_ranks(model, [])
