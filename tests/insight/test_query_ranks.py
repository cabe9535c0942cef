"""Ranks with names: compared query by query, kept and read back, and the worst of them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from insight.errors import InputError
from insight.metrics import retrieval_ranks, retrieval_scores
from insight.query_ranks import QueryRanks, hits, load_ranks, named, recall_difference, recall_interval, save_ranks, worst

PICTURE = torch.tensor([0, 0, 1, 2, 2, 2])


def ranked(images: torch.Tensor, texts: torch.Tensor) -> QueryRanks:
    found = retrieval_ranks(images, texts, torch.arange(len(images)), PICTURE)
    return QueryRanks(("a.jpg", "b.jpg", "c.jpg"), tuple(f"caption {row}" for row in range(6)), PICTURE, named(found))


@pytest.fixture
def embeddings() -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(5)
    return torch.randn(3, 4, generator=draw), torch.randn(6, 4, generator=draw)


def test_the_mean_of_the_hits_is_the_recall(embeddings):
    ranks = ranked(*embeddings)
    scores = retrieval_scores(retrieval_ranks(*embeddings, torch.arange(3), PICTURE))
    for name in ("image_to_text_recall_at_1", "text_to_image_recall_at_1", "image_to_text_recall_at_5"):
        assert recall_interval(ranks, f"test/{name}").value == pytest.approx(scores[name])


def test_captions_are_drawn_with_their_picture():
    ranks = QueryRanks(("a", "b", "c"), tuple("123456"), PICTURE, {"text_to_image": torch.tensor([1, 1, 3, 1, 3, 3])})
    of_picture = [[1, 1], [0], [1, 0, 0]]
    every = [np.mean([hit for part in drawn for hit in part]) for drawn in itertools.product(of_picture, repeat=3)]
    found = recall_interval(ranks, "test/text_to_image_recall_at_1", confidence=0.6, samples=100_000)
    assert (found.low, found.high) == pytest.approx((np.quantile(every, 0.2), np.quantile(every, 0.8)), abs=1e-9)


def test_a_difference_is_paired_so_that_equal_models_differ_by_nothing_at_all(embeddings):
    ranks = ranked(*embeddings)
    assert recall_difference(ranks, ranks, "test/text_to_image_recall_at_1") == (0.0, 0.0, 0.0)
    better = ranks._replace(ranks={"text_to_image": torch.ones(6, dtype=torch.int64)})
    worse = ranks._replace(ranks={"text_to_image": torch.full((6,), 3)})
    assert recall_difference(better, worse, "test/text_to_image_recall_at_1") == (1.0, 1.0, 1.0)


def test_models_tested_on_different_queries_are_not_compared(embeddings):
    ranks = ranked(*embeddings)
    for changed in (
        ranks._replace(filenames=("a.jpg", "b.jpg", "d.jpg")),
        ranks._replace(texts=(*ranks.texts[:5], "another")),
        ranks._replace(picture_C=torch.tensor([0, 0, 1, 1, 2, 2])),
    ):
        with pytest.raises(InputError, match="3 pictures and 6 captions"):
            recall_difference(ranks, changed, "test/text_to_image_recall_at_1")


@pytest.mark.parametrize("direction", ["image_to_text", "text_to_image"])
def test_the_worst_queries_are_those_that_sorting_by_hand_finds(embeddings, direction):
    images, texts = embeddings
    ranks = ranked(images, texts)
    scores = (images @ texts.T).tolist()
    by_hand = []
    for query in range(3 if direction == "image_to_text" else 6):
        answers = range(6) if direction == "image_to_text" else range(3)
        row = {answer: scores[query][answer] if direction == "image_to_text" else scores[answer][query] for answer in answers}
        right = [one for one in answers if (PICTURE[one] == query if direction == "image_to_text" else PICTURE[query] == one)]
        order = sorted(answers, key=lambda answer: -row[answer])
        rank = 1 + min(order.index(one) for one in right)
        names = (ranks.filenames, ranks.texts) if direction == "image_to_text" else (ranks.texts, ranks.filenames)
        best, first = max(right, key=row.__getitem__), next(one for one in order if one not in right)
        if rank > 1:
            by_hand.append((names[0][query], names[1][best], names[1][first], rank))
    by_hand.sort(key=lambda miss: (-miss[3], miss[0]))
    assert by_hand and worst(ranks, images, texts, direction, 10) == by_hand
    assert worst(ranks, images, texts, direction, 1) == by_hand[:1]


def test_ranks_come_back_as_they_were_kept(embeddings, tmp_path):
    ranks = ranked(*embeddings)
    ranks.ranks["reranked_image_to_text"] = torch.tensor([1, 2, 3])
    save_ranks(tmp_path / "ranks.safetensors", ranks)
    again = load_ranks(tmp_path / "ranks.safetensors")
    assert (again.filenames, again.texts, again.queries) == (ranks.filenames, ranks.texts, ranks.queries)
    assert again.ranks.keys() == ranks.ranks.keys()
    assert all(torch.equal(again.ranks[name], ranks.ranks[name]) for name in ranks.ranks)
    assert list(tmp_path.iterdir()) == [tmp_path / "ranks.safetensors"]


def test_what_is_no_file_of_ranks_is_named(embeddings, tmp_path):
    with pytest.raises(InputError, match=r"nowhere: no such file"):
        load_ranks(tmp_path / "nowhere")
    path = tmp_path / "ranks.safetensors"
    save_ranks(path, ranked(*embeddings))
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(InputError, match="damaged file"):
        load_ranks(path)
    save_file({"weight": torch.ones(2)}, path)
    with pytest.raises(InputError, match="no ranks"):
        load_ranks(path)
    save_ranks(path, ranked(*embeddings)._replace(texts=("one",)))
    with pytest.raises(InputError, match="not 'query ranks 1'"):
        load_ranks(path)


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        ("test/mean_recall", "'test/mean_recall' is no recall"),
        ("val/image_to_text_recall_at_1", "no recall"),
        ("test/reranked_image_to_text_recall_at_1", "does not re-rank"),
    ],
)
def test_a_metric_that_ranks_do_not_give_is_named(embeddings, metric, said):
    with pytest.raises(InputError, match=said):
        hits(ranked(*embeddings), metric)
