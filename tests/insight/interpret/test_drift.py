import json

import pytest
import torch
from scipy.stats import spearmanr

from insight.errors import InputError
from insight.interpret.drift import Entry, Limits, Look, append_entry, head_figures, load_entries, look, stability, warnings_of
from insight.interpret.record import attention_layers
from insight.stages import Call

CHEFER = Call("insight.interpret.relevance.chefer_relevance")
METRIC = "val/mean_recall"
UP, DOWN = torch.arange(9.0).view(1, 3, 3), -torch.arange(9.0).view(1, 3, 3)


def seen(epoch=1, accuracy=0.5, map_Bgg=UP, **head):
    """One layer of two heads; the figures given are those of head 1."""
    figures = {"written": 1.0, "entropy": 0.7, "class_mass": 0.2} | head
    return Look(
        epoch, 10 * epoch, accuracy, {"chefer": map_Bgg}, {"image.blocks.0.attention": {name: [0.5, it] for name, it in figures.items()}}
    )


def told(before, now):
    return [(one.kind, one.what) for one in warnings_of(now, before, Limits(), METRIC)]


def test_maps_that_turn_while_accuracy_stays_are_told_with_the_method_and_the_figures():
    (one,) = warnings_of(seen(2, 0.51, DOWN), seen(), Limits(), METRIC)
    assert (one.kind, one.what) == ("explanation", "chefer")
    assert "since epoch 1" in one.message and "-1.00" in one.message and "0.500 -> 0.510" in one.message
    assert one.figures == {"map_stability": pytest.approx(-1), "before": 0.5, "now": 0.51}


@pytest.mark.parametrize("now", [seen(2, 0.7, DOWN), seen(2, 0.5, UP), seen(2, None, DOWN)], ids=["better", "same maps", "no metric"])
def test_nothing_is_told_where_accuracy_moved_too_or_the_maps_stayed(now):
    assert told(seen(), now) == []


def test_stability_is_scipys_rank_correlation_and_a_map_without_a_rank_counts_as_moved():
    one, other = (torch.randn(4, 3, 3, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    expected = sum(spearmanr(one[row].flatten(), other[row].flatten()).statistic for row in range(4)) / 4
    assert stability(seen(2, map_Bgg=one), seen(map_Bgg=other))["chefer"] == pytest.approx(expected)
    assert stability(seen(2, map_Bgg=torch.ones(1, 3, 3)), seen())["chefer"] == 0


@pytest.mark.parametrize(
    ("before", "now", "kind"),
    [
        ({}, {"written": 0.01}, "dead head"),
        ({}, {"entropy": 0.995}, "dead head"),
        ({}, {"entropy": 0.01}, "collapsed head"),
        ({}, {"class_mass": 0.97}, "collapsed head"),
        ({"written": 0.01}, {"written": 0.01}, None),  # it was before
        ({"entropy": 0.97}, {"entropy": 0.995}, None),  # noise at the limit
        ({}, {"entropy": 0.9, "written": 0.5, "class_mass": 0.6}, None),
    ],
)
def test_a_head_that_dies_or_collapses_is_named_once(before, now, kind):
    expected = [] if kind is None else [(kind, "image.blocks.0.attention head 1")]
    assert told(seen(**before), seen(2, **now)) == expected


def broken(family, layer, head, how):
    """The head's queries, keys or values are changed in place."""
    attention = attention_layers(family.model)[layer]
    width = attention.output.weight.shape[1] // attention.heads
    rows = slice(head * width, (head + 1) * width)
    with torch.no_grad():
        if how == "silent":
            attention.output.weight[:, rows] = 0
        else:
            attention.query.weight[rows] *= 0 if how == "even" else 1000
            attention.query.bias[rows] *= 0 if how == "even" else 1000


BROKEN = [("silent", "dead head", "written"), ("even", "dead head", "entropy"), ("peaked", "collapsed head", "entropy")]


@pytest.mark.parametrize(("how", "kind", "figure"), BROKEN)
@pytest.mark.parametrize("layer", ["image.blocks.0.attention", "text.blocks.1.attention"])
def test_a_head_that_was_broken_in_a_model_is_found(dual_encoder, batch, layer, how, kind, figure):
    before = look(dual_encoder, batch, {}, 1, 1, None)
    broken(dual_encoder, layer, 1, how)
    found = warnings_of(look(dual_encoder, batch, {}, 2, 2, None), before, Limits(single=0.3), METRIC)
    assert any(one.kind == kind and one.what == f"{layer} head 1" and figure in next(iter(one.figures)) for one in found), found
    assert not any(one.what == f"{layer} head 0" for one in found)


def test_what_heads_write_is_measured_against_the_mean_of_their_layer(dual_encoder, batch):
    figures = head_figures(dual_encoder, batch)
    for layer, found in figures.items():
        assert sum(found["written"]) / len(found["written"]) == pytest.approx(1), layer
        assert all(0 <= share <= 1 + 1e-5 for share in found.get("entropy", found.get("class_entropy")))
    assert "entropy" not in figures["image.blocks.1.attention"]  # nobody reads what patches read in the last layer
    broken(dual_encoder, "image.blocks.0.attention", 0, "even")
    assert head_figures(dual_encoder, batch)["image.blocks.0.attention"]["entropy"][0] == pytest.approx(1, abs=1e-5)


def test_words_of_every_length_have_even_attention_at_one(dual_encoder, batch):
    broken(dual_encoder, "text.blocks.0.attention", 1, "even")
    assert head_figures(dual_encoder, batch)["text.blocks.0.attention"]["entropy"][1] == pytest.approx(1, abs=0.02)


def test_a_method_of_words_alone_has_no_map_to_compare(dual_encoder, batch):
    with pytest.raises(InputError, match=r"methods\.words: .*words_alone says nothing of patches"):
        look(dual_encoder, batch, {"words": (dual_encoder, Call("tests.insight.interpret.planted.words_alone"))}, 1, 1, None)


def test_a_resumed_run_has_each_validation_once(tmp_path):
    path = tmp_path / "drift.json"
    (warned,) = warnings_of(seen(2, written=0.01), seen(), Limits(), METRIC)
    for epoch in (1, 2, 3, 2):
        append_entry(path, METRIC, Entry(epoch, 10 * epoch, 0.5, {"chefer": 0.9}, {"a": {"entropy": [0.5]}}, (warned,)))
    assert [one.epoch for one in load_entries(path)] == [1, 2]
    assert load_entries(path)[1].warnings == (warned,)
    assert load_entries(tmp_path / "nothing.json") == []
    good = json.loads(path.read_text())
    for bad, message in (("{", "not a file of drift"), ("[]", "not a file of drift"), (json.dumps({**good, "version": 9}), "version 9")):
        path.write_text(bad)
        with pytest.raises(InputError, match=message):
            load_entries(path)


@pytest.mark.parametrize("name", ["stability", "accuracy", "even", "single", "class_mass", "silent", "change"])
def test_a_limit_out_of_range_is_named(name):
    with pytest.raises(InputError, match=rf"limits\.{name}=1\.5"):
        Limits(**{name: 1.5})
