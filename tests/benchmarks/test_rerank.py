"""The re-ranking benchmark, beside the plain figures and beside scoring every pair."""

from __future__ import annotations

import pytest
import torch

from benchmarks.rerank import MEAN, compared, hits, measure, verdict
from insight.data.batch import ImageTextBatch
from insight.metrics import Ranks, ranks_from_scores, retrieval_scores
from insight.models.cross_attention import CrossAttentionMultiModalTransformer

PICTURE_C = torch.tensor([0, 0, 1, 2, 2, 2])
BEFORE = Ranks(torch.tensor([1, 7, 20]), torch.tensor([1, 3, 8, 2, 1, 12]))
AFTER = Ranks(torch.tensor([1, 1, 4]), torch.tensor([1, 1, 1, 1, 1, 1]))


def test_numbers_per_picture_have_the_figures_as_their_means():
    expected = retrieval_scores(BEFORE)
    for name, values_B in hits(BEFORE, PICTURE_C).items():
        assert len(values_B) == 3
        assert float(values_B.mean()) == pytest.approx(expected[name])


def test_the_difference_is_that_of_the_figures_and_its_interval_holds_it():
    figures = compared(BEFORE, AFTER, PICTURE_C)
    expected = retrieval_scores(AFTER)[MEAN] - retrieval_scores(BEFORE)[MEAN]
    difference = figures[MEAN]["difference"]
    assert difference["value"] == pytest.approx(expected, abs=1e-4)
    assert difference["low"] <= difference["value"] <= difference["high"]
    assert all(set(one) == {"towers", "reranked", "difference"} for one in figures.values())


def test_a_verdict_is_the_sign_of_the_whole_interval():
    assert verdict({"low": 0.01, "high": 0.2}) == "better"
    assert verdict({"low": -0.2, "high": -0.01}) == "worse"
    assert verdict({"low": -0.1, "high": 0.1}).startswith("no difference")


def test_candidates_beyond_the_split_are_all_pairs_scored_one_by_one():
    torch.manual_seed(0)
    model = CrossAttentionMultiModalTransformer(
        20, 16, 8, context_length=6, dim=16, image_depth=1, text_depth=1, heads=2, embed_dim=8, fusion_depth=1
    )
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    model.eval()
    image, tokens = torch.randn(3, 3, 16, 16), torch.randint(4, 20, (6, 6))
    mask = torch.arange(6) < torch.tensor([6, 4, 5, 6, 3, 6])[:, None]
    ids = torch.tensor([5, 6, 7])
    cut = [(slice(0, 1), slice(0, 2)), (slice(1, 3), slice(2, 6))]  # the second batch has longer captions
    batches = [
        ImageTextBatch(image[b], None, tokens[c], mask[c], PICTURE_C[c] - b.start, ids[b], torch.arange(6)[c], ("",) * 6, ("",) * 3, ())
        for b, c in cut
    ]
    figures = measure(model, batches, [99])["99"]
    with torch.no_grad():
        scores = torch.stack(
            [
                torch.stack(
                    [model.pair_scores(model.encode_text(t[None], m[None]), m[None], model.encode_image(p[None]))[0] for p in image]
                )
                for t, m in zip(tokens, mask, strict=True)
            ],
            dim=1,
        )
    expected = retrieval_scores(ranks_from_scores(scores, ids, ids[PICTURE_C]))
    for name in (MEAN, "image_to_text_recall_at_1", "text_to_image_recall_at_1"):
        assert figures[name]["reranked"]["value"] == pytest.approx(expected[name], abs=1e-4)
