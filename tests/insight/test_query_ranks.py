"""Ranks with names: compared query by query, read back, and the worst of them."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from insight.errors import InputError
from insight.metrics import retrieval_ranks, retrieval_scores
from insight.query_ranks import QueryRanks, hits, read_ranks, recall_difference, recall_interval, worst

PICTURE = torch.tensor([0, 0, 1, 2, 2, 2])
NAMES = ("a.jpg", "b#1.jpg", "c.jpg")
CAPTIONS = ("a.jpg#0", "a.jpg#1", "b#1.jpg#0", "c.jpg#0", "c.jpg#1", "c.jpg#2")
TEXTS = tuple(f"caption {row}" for row in range(6))


@pytest.fixture
def embeddings() -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(5)
    return torch.randn(3, 4, generator=draw), torch.randn(6, 4, generator=draw)


@pytest.fixture
def ranks(embeddings) -> QueryRanks:
    images, texts = embeddings
    found = retrieval_ranks(images, texts, torch.arange(3), PICTURE)
    scores = images @ texts.T
    best = {"image_to_text": scores.topk(4).indices, "text_to_image": scores.T.topk(2).indices}
    return QueryRanks(NAMES, CAPTIONS, TEXTS, {"image_to_text": found.image_to_text_B, "text_to_image": found.text_to_image_C}, best)


def with_ranks(ranks: QueryRanks, *text_to_image: int) -> QueryRanks:
    return ranks._replace(ranks={**ranks.ranks, "text_to_image": torch.tensor(text_to_image)})


def test_the_mean_of_the_hits_is_the_recall(ranks, embeddings):
    scores = retrieval_scores(retrieval_ranks(*embeddings, torch.arange(3), PICTURE))
    for name in ("image_to_text_recall_at_1", "text_to_image_recall_at_1", "image_to_text_recall_at_5"):
        assert recall_interval(ranks, f"test/{name}").value == pytest.approx(scores[name])


def test_captions_are_drawn_with_their_picture(ranks):
    assert ranks.picture_C.tolist() == PICTURE.tolist()
    of_picture = [[1, 1], [0], [1, 0, 0]]
    every = [np.mean([hit for part in drawn for hit in part]) for drawn in itertools.product(of_picture, repeat=3)]
    some = with_ranks(ranks, 1, 1, 3, 1, 3, 3)
    found = recall_interval(some, "test/text_to_image_recall_at_1", confidence=0.6, samples=100_000)
    assert (found.low, found.high) == pytest.approx((np.quantile(every, 0.2), np.quantile(every, 0.8)), abs=1e-9)


def test_a_difference_is_paired_so_that_equal_models_differ_by_nothing_at_all(ranks):
    metric = "test/text_to_image_recall_at_1"
    assert recall_difference(ranks, ranks, metric) == (0.0, 0.0, 0.0)
    assert recall_difference(with_ranks(ranks, *[1] * 6), with_ranks(ranks, *[3] * 6), metric) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    "change",
    [
        {"filenames": ("a.jpg", "b#1.jpg", "d.jpg")},
        {"texts": (*TEXTS[:5], "another")},
        {"captions": (*CAPTIONS[:5], "c.jpg#3")},
    ],
)
def test_models_tested_on_different_queries_are_not_compared(ranks, change):
    with pytest.raises(InputError, match="3 pictures and 6 captions"):
        recall_difference(ranks, ranks._replace(**change), "test/text_to_image_recall_at_1")


@pytest.mark.parametrize("direction", ["image_to_text", "text_to_image"])
def test_the_worst_queries_are_those_that_sorting_by_hand_finds(ranks, embeddings, direction):
    scores = (embeddings[0] @ embeddings[1].T).tolist()
    from_picture = direction == "image_to_text"
    by_hand = []
    for query in range(3 if from_picture else 6):
        answers = range(6) if from_picture else range(3)
        row = {answer: scores[query][answer] if from_picture else scores[answer][query] for answer in answers}
        right = [one for one in answers if (PICTURE[one] == query if from_picture else PICTURE[query] == one)]
        order = sorted(answers, key=lambda answer: -row[answer])
        rank = 1 + min(order.index(one) for one in right)
        if rank > 1:
            names = (NAMES, TEXTS) if from_picture else (TEXTS, NAMES)
            by_hand.append((names[0][query], names[1][right[0]], names[1][order[0]], rank))
    by_hand.sort(key=lambda miss: (-miss[3], miss[0]))
    assert by_hand and worst(ranks, direction, 10) == by_hand
    assert worst(ranks, direction, 1) == by_hand[:1]


def test_a_collapsed_model_has_worst_queries_too(ranks):
    same = ranks._replace(best={"image_to_text": torch.tensor([[0, 1], [0, 1], [0, 1]]), "text_to_image": ranks.best["text_to_image"]})
    same = same._replace(ranks={"image_to_text": torch.tensor([5, 6, 4]), "text_to_image": ranks.ranks["text_to_image"]})
    assert [miss.found for miss in worst(same, "image_to_text", 3)] == ["caption 0", "(scores are equal)", "caption 0"]


def written(folder: Path, ranks: QueryRanks) -> None:
    tensors = {f"test/{name}": value for name, value in ranks.ranks.items()}
    save_file(tensors | {f"test/{name}_best": value.contiguous() for name, value in ranks.best.items()}, folder / "ranks.safetensors")
    names = {"test/image_to_text": ranks.filenames, "test/text_to_image": ranks.captions, "texts": ranks.texts}
    (folder / "ranks.json").write_text(json.dumps(names))


def test_what_is_read_is_what_was_written_and_its_digest_changes_with_it(ranks, tmp_path):
    written(tmp_path, ranks)
    again, digest = read_ranks(tmp_path)
    assert again[:3] == ranks[:3] and again.queries == ranks.queries
    assert all(
        torch.equal(again.ranks[name], ranks.ranks[name]) and torch.equal(again.best[name], ranks.best[name]) for name in ranks.ranks
    )
    written(tmp_path, with_ranks(ranks, 1, 1, 1, 1, 1, 1))
    assert read_ranks(tmp_path)[1] != digest


def test_what_is_no_file_of_ranks_is_named(ranks, tmp_path):
    with pytest.raises(InputError, match=r"ranks\.safetensors: no such file; a run with run\.test=true leaves it"):
        read_ranks(tmp_path)
    written(tmp_path, with_ranks(ranks, 1, 2))
    with pytest.raises(InputError, match=r"does not fit to ranks\.json"):
        read_ranks(tmp_path)
    (tmp_path / "ranks.json").write_text(json.dumps({"texts": []}))
    with pytest.raises(InputError, match="no ranks, or a damaged file"):
        read_ranks(tmp_path)
    written(tmp_path, ranks._replace(captions=(*CAPTIONS[:5], "unknown#1")))
    with pytest.raises(InputError, match="unknown"):
        read_ranks(tmp_path)
    path = tmp_path / "ranks.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(InputError, match="damaged file"):
        read_ranks(tmp_path)


@pytest.mark.parametrize("metric", ["test/mean_recall", "val/image_to_text_recall_at_1", "test/image_to_text_recall_at_0"])
def test_a_metric_that_ranks_do_not_give_is_named(ranks, metric):
    with pytest.raises(InputError, match=f"'{metric}' is no recall"):
        hits(ranks, metric)
