"""The statistics of the grounding benchmark, each beside a simpler count."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.grounding import (
    beyond,
    colour_segments,
    interval,
    judged_words,
    marked_words,
    measure,
    middle_map,
    word_scores,
)
from insight.data.batch import ImageTextBatch, Phrase
from insight.data.text import Tokenizer
from insight.interpret.explain import Cost, Explanation
from insight.interpret.families import CrossAttention, DualEncoder
from insight.interpret.family import Target
from insight.interpret.localisation import PhraseScores
from insight.interpret.probe import make_probe
from insight.interpret.scorecard import ALONE, IN_CAPTION, Looked
from insight.models.cross_attention import CrossAttentionMultiModalTransformer
from insight.stages import Call

TEXTS = ("a red dog and a cat", "the dog")
LEFT, RIGHT = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)


@pytest.fixture(scope="module")
def probe():
    tokenizer = Tokenizer.train([*TEXTS, "red dog cat"], 270)
    tokens, mask = tokenizer.encode(TEXTS, 24)
    phrases = (
        Phrase(0, "a red dog", 0, 9, "1", (LEFT,)),
        Phrase(0, "a cat", 14, 19, "2", (RIGHT,)),
        Phrase(1, "the dog", 0, 7, "1", (LEFT,)),
    )
    image = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    rows = torch.arange(2)
    return make_probe(ImageTextBatch(image, None, tokens, mask, rows, rows, rows, TEXTS, ("a.jpg", "b.jpg"), phrases), tokenizer, 24)


def test_the_words_of_phrases_are_judged_without_articles(probe):
    words = marked_words(probe)
    assert [(word.text, word.caption, word.boxes, word.others) for word in words] == [
        ("red", 0, (LEFT,), (RIGHT,)),
        ("dog", 0, (LEFT,), (RIGHT,)),
        ("cat", 0, (RIGHT,), (LEFT,)),
        ("dog", 1, (LEFT,), ()),
    ]


def test_a_word_points_by_its_own_map_or_by_the_captions_where_the_method_has_no_other(probe):
    words, length = marked_words(probe), probe.batch.tokens.shape[1]
    pairs = torch.zeros(2, length, 2, 2)
    pairs[:, :, 0, 0] = 1.0  # every token points left ...
    pairs[0, list(words[2].columns)] = torch.tensor([[0.0, 1.0], [0.0, 0.0]])  # ... but those of "cat"
    image = torch.tensor([[[0.0, 1.0], [0.0, 0.0]]] * 2)  # the captions' maps point right

    def looked(with_pairs):
        facts = Target([0, 1], [0, 1]), Call("m.f"), Cost(1, 0, 0.0), {}
        return Looked(Explanation(image, None, pairs if with_pairs else None, torch.zeros(2), *facts), None, "")

    own = judged_words(word_scores(looked(True), words), words, probe, "each word")
    assert own["right"]["value"] == 1.0 and own["other"]["value"] == 0.0
    first_order = judged_words(word_scores(looked(False), words), words, probe, "the caption")
    assert first_order["right"]["value"] == 0.25  # "cat" of four words
    assert first_order["other"]["value"] == round(2 / 3, 4)  # of the three words with another object, "red" and "dog"


def test_differences_are_taken_phrase_by_phrase_and_pictures_are_drawn_whole():
    rng = np.random.default_rng(0)
    picture = torch.arange(30) // 3
    first, second = (PhraseScores(*rng.random((4, 30))) for _ in range(2))
    found = beyond(first, second, picture)["pointing_game_v1"]
    sums = (first.pointing - second.pointing).reshape(10, 3).sum(axis=1)
    means = [sums[rng.integers(10, size=10)].sum() / 30 for _ in range(4000)]
    assert found["value"] == pytest.approx((first.pointing - second.pointing).mean(), abs=1e-4)
    assert [found["low"], found["high"]] == pytest.approx(np.quantile(means, [0.025, 0.975]).tolist(), abs=0.02)
    swapped = beyond(second, first, picture)["pointing_game_v1"]
    assert swapped["value"] == -found["value"]


def test_figures_that_do_not_exist_take_no_part():
    values = np.array([1.0, np.nan, 0.0])
    assert interval(values, torch.arange(3))["value"] == 0.5
    assert interval(np.array([np.nan]), torch.arange(1)) is None


def test_segments_are_regions_of_one_colour_that_touch():
    picture = np.zeros((8, 8, 3), np.uint8)
    picture[:2, :2] = picture[6:, 6:] = (250, 0, 0)  # two red corners that don't touch
    label = colour_segments(picture, 4).reshape(4, 4)
    assert label[0, 0] != label[3, 3] and len(np.unique(label)) == 3
    assert (label == label[1, 1]).sum() == 14
    ramp = np.repeat(np.linspace(0, 255, 8).astype(np.uint8)[None, :, None], 8, axis=0).repeat(3, axis=2)
    assert len(np.unique(colour_segments(ramp, 8, like=0.3))) == 1  # each is like its neighbour
    assert len(np.unique(colour_segments(ramp, 8, like=0.1))) == 8


def test_the_middle_map_points_at_the_middle_and_spreads_over_the_middle_half():
    map_gg = middle_map(8)
    assert (map_gg > 0).sum() == 16 and (map_gg[2:6, 2:6] > 0).all()
    best = np.argwhere(map_gg == map_gg.max())
    assert best.min() == 3 and best.max() == 4


def test_every_method_stands_beside_the_baselines_and_what_a_family_lacks_is_named(probe):
    torch.manual_seed(0)
    shape = {"vocab_size": 270, "image_size": 16, "patch_size": 4, "context_length": 24, "dim": 8, "heads": 2}
    model = CrossAttentionMultiModalTransformer(**shape, image_depth=1, text_depth=1, embed_dim=8, fusion_depth=1).eval()
    families, methods = [DualEncoder(model), CrossAttention(model)], ["rollout", "banzhaf_interactions"]
    found = measure(families, probe, methods, say=lambda line: None)
    explained = ["dual encoder/rollout", "dual encoder/banzhaf_interactions", "cross-attention/rollout"]
    assert list(found["phrases"]) == ["middle", "largest_segment", "even", *explained]
    assert "no product" in found["left_out"]["cross-attention/banzhaf_interactions"]
    assert [found["phrases"][name]["query"] for name in explained] == [ALONE, IN_CAPTION, IN_CAPTION]
    assert found["phrases"]["even"]["energy_in_box_v1"]["value"] == 0.5  # each box is half of the picture
    for name in explained:
        gain = found["phrases"][name]["energy_in_box_v1"]["value"] - 0.5
        assert found["phrases"][name]["minus_even"]["energy_in_box_v1"]["value"] == pytest.approx(gain, abs=2e-4)
    assert found["words"]["count"] == 4 and found["words"]["reachable"] == 1.0
    assert [one["query"] for one in found["words"]["methods"].values()] == ["the caption for every word", "each word", "each word"]
