"""Ranks against sorting in plain Python, chance against counting every draw, and what torchmetrics says where it means the same."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torchmetrics.retrieval import RetrievalHitRate

from insight import metrics
from insight.errors import InputError
from insight.metric_names import check_metric_name, metric_names
from insight.metrics import Ranks, RetrievalMetrics, rerank, retrieval_ranks, retrieval_scores

UNEQUAL = [5, 4, 6, 1, 5, 5, 6, 4, 5, 5, 2]


def unit(rows, width=16, seed=0):
    return F.normalize(torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)), dim=-1)


def split(counts=UNEQUAL, seed=0, noise=1.5):
    """Pictures with scattered ids, captions shuffled, near their pictures."""
    generator = torch.Generator().manual_seed(seed)
    image_id = torch.randperm(10 * len(counts), generator=generator)[: len(counts)]
    own = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    own = own[torch.randperm(len(own), generator=generator)]
    image = unit(len(counts), seed=seed + 1)
    text = F.normalize(image[own] + noise * unit(len(own), seed=seed + 2), dim=-1)
    return image, text, image_id, image_id[own]


def sorted_ranks(scores, image_id, caption_image_id):
    """Sort every query's candidates, wrong ones first among equals; the place of the first right one."""

    def rank(row, right):
        order = sorted(range(len(row)), key=lambda j: (-row[j], right[j]))
        return 1 + next(place for place, j in enumerate(order) if right[j])

    table = scores.tolist()
    right = [[int(a) == int(b) for b in caption_image_id] for a in image_id]
    to_text = [rank(row, mine) for row, mine in zip(table, right, strict=True)]
    to_image = [rank([row[j] for row in table], [row[j] for row in right]) for j in range(len(caption_image_id))]
    return Ranks(torch.tensor(to_text), torch.tensor(to_image))


def same(ours, theirs):
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("block", [1, 2, 4, 5, 10, 11, 1024])
@pytest.mark.parametrize("seed", [0, 1])
def test_ranks_equal_sorting_for_any_block_and_unequal_numbers_of_captions(block, seed):
    image, text, image_id, caption_image_id = split(seed=seed)
    expected = sorted_ranks(image @ text.T, image_id, caption_image_id)
    assert expected.text_to_image_C.max() > 1
    assert same(retrieval_ranks(image, text, image_id, caption_image_id, block=block), expected)
    assert same(metrics.ranks_from_scores(image @ text.T, image_id, caption_image_id), expected)


def test_ties_in_a_score_matrix_count_against_us():
    scores = torch.randint(0, 3, (11, sum(UNEQUAL)), generator=torch.Generator().manual_seed(0)).float()
    _, _, image_id, caption_image_id = split()
    expected = sorted_ranks(scores, image_id, caption_image_id)
    assert same(metrics.ranks_from_scores(scores, image_id, caption_image_id), expected)


@pytest.mark.parametrize("block", [7, 64, 1024])
@pytest.mark.parametrize("pictures", [3, 37, 101])
def test_equal_embeddings_tie_wherever_they_lie_in_the_matrix(block, pictures):
    """A collapsed model embeds all the same and must rank last, not first: its scores may not differ by a last bit."""
    one, own = unit(1, width=100), torch.arange(pictures).repeat_interleave(5)
    ranks = retrieval_ranks(one.expand(pictures, -1), one.expand(5 * pictures, -1), torch.arange(pictures), own, block=block)
    assert (ranks.image_to_text_B == 5 * (pictures - 1) + 1).all() and (ranks.text_to_image_C == pictures).all()


@pytest.mark.parametrize("block", [7, 16, 1024])
def test_a_doubled_picture_under_another_id_never_helps(block):
    image, text, image_id, caption_image_id = split(counts=[5] * 20, noise=0.1)
    image, text = torch.cat([image, image]), torch.cat([text, text])
    ids, caption_ids = torch.cat([image_id, image_id + 1000]), torch.cat([caption_image_id, caption_image_id + 1000])
    ranks = retrieval_ranks(image, text, ids, caption_ids, block=block)
    assert (ranks.text_to_image_C == 2).all()  # its twin scores the same
    assert (ranks.image_to_text_B == 2).all()  # and so does the twin's best caption


def test_the_order_of_pictures_and_captions_does_not_matter():
    image, text, image_id, caption_image_id = split()
    ranks = retrieval_ranks(image, text, image_id, caption_image_id, block=4)
    rows, columns = torch.randperm(len(image)), torch.randperm(len(text))
    shuffled = retrieval_ranks(image[rows], text[columns], image_id[rows], caption_image_id[columns], block=4)
    assert same(shuffled, Ranks(ranks.image_to_text_B[rows], ranks.text_to_image_C[columns]))


@pytest.mark.parametrize("k", [1, 5, 10])
def test_recall_equals_the_hit_rate_of_torchmetrics(k):
    image, text, image_id, caption_image_id = split(counts=[5] * 30)
    scores = image @ text.T + 2  # torchmetrics counts matches that score 0 or less as misses
    right = image_id[:, None] == caption_image_id[None, :]
    ours = retrieval_scores(retrieval_ranks(image, text, image_id, caption_image_id))
    for direction, table, target in (("image_to_text", scores, right), ("text_to_image", scores.T, right.T)):
        theirs = RetrievalHitRate(top_k=k)
        query = torch.arange(len(table))[:, None].expand_as(table)
        theirs.update(table.flatten(), target.flatten(), indexes=query.flatten())
        assert ours[f"{direction}_recall_at_{k}"] == pytest.approx(theirs.compute().item(), abs=1e-6)


def test_scores_by_hand():
    scores = retrieval_scores(Ranks(torch.tensor([1, 5, 6, 20]), torch.tensor([1, 2, 11])))
    assert [scores[f"image_to_text_recall_at_{k}"] for k in (1, 5, 10)] == [0.25, 0.5, 0.75]
    assert [scores[f"text_to_image_recall_at_{k}"] for k in (1, 5, 10)] == pytest.approx([1 / 3, 2 / 3, 2 / 3])
    assert (scores["image_to_text_median_rank"], scores["image_to_text_mean_rank"]) == (5.5, 8.0)
    assert (scores["text_to_image_median_rank"], scores["text_to_image_mean_rank"]) == (2.0, pytest.approx(14 / 3))
    assert scores["mean_recall"] == pytest.approx((0.25 + 0.5 + 0.75 + 5 / 3) / 6)


@pytest.mark.parametrize("counts", [[2, 2, 2], [1, 3, 2], [6, 7]])
def test_chance_equals_counting_every_possible_top_k(counts):
    own = [picture for picture, count in enumerate(counts) for _ in range(count)]
    chance = metrics.chance_recall(len(counts), counts)
    for k in (1, 5, 10):
        draws = list(itertools.combinations(own, min(k, len(own))))
        hits = sum(sum(picture in draw for draw in draws) / len(draws) for picture in range(len(counts))) / len(counts)
        assert chance[f"image_to_text_recall_at_{k}"] == pytest.approx(hits)
        assert chance[f"text_to_image_recall_at_{k}"] == pytest.approx(min(1, k / len(counts)))
    if len(set(counts)) == 1:
        assert metrics.chance_recall(len(counts), counts[0]) == chance


def test_unrelated_embeddings_are_at_chance():
    """No leak: neither order nor ids help. Within four standard deviations of as many draws as there are queries."""
    pictures, own = 300, torch.arange(300).repeat_interleave(5)
    scores = retrieval_scores(retrieval_ranks(unit(pictures, 64, seed=1), unit(5 * pictures, 64, seed=2), torch.arange(pictures), own))
    for name, expected in metrics.chance_recall(pictures).items():
        queries = 5 * pictures if name.startswith("text") else pictures
        assert abs(scores[name] - expected) <= 4 * math.sqrt(expected * (1 - expected) / queries), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": torch.full((2, 4), math.nan)}, "NaN or infinity in 2 of 2 image rows"),
        ({"text": torch.full((3, 4), math.inf)}, "NaN or infinity in 3 of 3 text rows"),
        ({"image_id": torch.tensor([7, 7])}, "picture id 7 occurs more than once"),
        ({"caption_image_id": torch.tensor([7, 7, 7])}, r"1 pictures have no caption \(first: id 8\)"),
        ({"caption_image_id": torch.tensor([7, 8, 9])}, r"pictures of 1 captions are missing \(first: id 9\)"),
        ({"image": torch.empty(0, 4), "image_id": torch.empty(0, dtype=torch.int64)}, "needs pictures and captions, got 0 and 3"),
    ],
)
def test_what_cannot_be_ranked_is_named(change, message):
    given = {
        "image": unit(2, 4),
        "text": unit(3, 4),
        "image_id": torch.tensor([7, 8]),
        "caption_image_id": torch.tensor([7, 8, 8]),
    } | change
    with pytest.raises(InputError, match=message):
        retrieval_ranks(*given.values())


# --- re-ranking ---
def reranked_by_sorting(scores, second, image_id, caption_image_id, k):
    def rank(row, again, right):
        order = sorted(range(len(row)), key=lambda j: (-row[j], right[j]))
        order = sorted(order[:k], key=lambda j: (-again[j], right[j])) + order[k:]
        return 1 + next(place for place, j in enumerate(order) if right[j])

    right = image_id[:, None] == caption_image_id[None, :]
    to_text = [rank(*rows) for rows in zip(scores.tolist(), second.tolist(), right.tolist(), strict=True)]
    to_image = [rank(*rows) for rows in zip(scores.T.tolist(), second.T.tolist(), right.T.tolist(), strict=True)]
    return Ranks(torch.tensor(to_text), torch.tensor(to_image))


@pytest.mark.parametrize("k", [1, 3, 10, 1000])
@pytest.mark.parametrize("levels", [0, 4])
def test_reranking_equals_sorting_the_first_k_again(k, levels):
    """``levels`` > 0: whole-number second scores, so that there are ties (ties of the first scores: the next test)."""
    image, text, image_id, caption_image_id = split(seed=4)
    scores, second = image @ text.T, torch.randn(11, len(text), generator=torch.Generator().manual_seed(1))
    if levels:
        second = (second * levels / 4).round()
    calls = []

    def match(image_rows, caption_rows):
        calls.append(list(zip(image_rows.tolist(), caption_rows.tolist(), strict=True)))
        return second[image_rows, caption_rows]

    ours = rerank(scores, image_id, caption_image_id, match, k, pairs_at_once=16)
    assert same(ours, reranked_by_sorting(scores, second, image_id, caption_image_id, k))
    pairs = [pair for call in calls for pair in call]
    assert len(pairs) == len(set(pairs)) and max(map(len, calls)) <= 16  # each pair once, in bounded calls


def test_at_a_tie_for_the_last_candidate_the_wrong_one_gets_in():
    scores = torch.tensor([[0.5, 0.5], [0.1, 0.1]])
    ids = torch.tensor([0, 1])
    asked = []

    def match(image_rows, caption_rows):
        asked.extend(zip(image_rows.tolist(), caption_rows.tolist(), strict=True))
        return torch.ones(len(image_rows))

    assert rerank(scores, ids, ids, match, k=1).image_to_text_B.tolist() == [2, 2]
    assert (0, 1) in asked and (1, 0) in asked and (1, 1) not in asked


def test_reranking_by_the_first_scores_changes_nothing():
    image, text, image_id, caption_image_id = split(seed=5)
    scores = image @ text.T
    ours = rerank(scores, image_id, caption_image_id, lambda b, c: scores[b, c], k=4)
    assert same(ours, retrieval_ranks(image, text, image_id, caption_image_id))


def test_reranking_refuses_what_makes_no_sense():
    scores, ids = torch.eye(2), torch.tensor([0, 1])
    with pytest.raises(InputError, match="k=0"):
        rerank(scores, ids, ids, lambda b, c: b.float(), k=0)
    with pytest.raises(InputError, match="NaN or infinity in 2 of 2 match rows"):
        rerank(scores, ids, ids, lambda b, c: torch.full((len(b),), math.nan), k=1)
    with pytest.raises(ValueError, match="one score per pair"):
        rerank(scores, ids, ids, lambda b, c: torch.zeros(len(b), 2), k=1)
    with pytest.raises(ValueError, match="scores are"):
        rerank(scores[:1], ids, ids, lambda b, c: b.float(), k=1)


def test_hard_negative_accuracy_counts_a_tie_as_a_miss():
    assert metrics.hard_negative_accuracy(torch.tensor([0.3, 0.2, 0.5, 0.9]), torch.tensor([0.1, 0.2, 0.6, 0.8])) == 0.5
    with pytest.raises(InputError, match="at least one pair"):
        metrics.hard_negative_accuracy(torch.empty(0), torch.empty(0))
    with pytest.raises(InputError, match="NaN"):
        metrics.hard_negative_accuracy(torch.tensor([math.nan]), torch.tensor([0.0]))


# --- the metric ---
def batches(data, sizes):
    """Pictures in batches with all their captions: the arguments of update()."""
    image, text, image_id, caption_image_id = data
    for rows in torch.arange(len(image)).split(sizes):
        mine = torch.isin(caption_image_id, image_id[rows])
        yield image[rows], text[mine], image_id[rows], torch.arange(len(text))[mine], caption_image_id[mine]


def test_the_metric_over_batches_is_exact_over_the_whole_split():
    data, metric = split(), RetrievalMetrics()
    for batch in batches(data, 4):
        metric.update(*batch)
    assert metric.compute() == retrieval_scores(retrieval_ranks(*data))
    metric.reset()
    few = split(counts=[5, 5, 5])
    metric.update(*next(batches(few, 3)))
    assert metric.compute() == retrieval_scores(retrieval_ranks(*few))  # nothing left of what was before


def test_pictures_and_captions_that_come_twice_count_once():
    data, metric = split(), RetrievalMetrics()
    for batch in [*batches(data, 4), *batches(data, 3)]:
        metric.update(*batch)
    assert metric.compute() == retrieval_scores(retrieval_ranks(*data))


def test_the_metric_keeps_no_graph_and_takes_half_precision():
    image, text, image_id, caption_image_id = split()
    metric = RetrievalMetrics()
    metric.update(image.bfloat16().requires_grad_(), text.bfloat16(), image_id, torch.arange(len(text)), caption_image_id)
    assert not metric.image_values[0].requires_grad
    expected = retrieval_ranks(image.bfloat16().float(), text.bfloat16().float(), image_id, caption_image_id)
    assert metric.compute() == retrieval_scores(expected)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_a_metric_that_saw_nothing_says_so():
    with pytest.raises(InputError, match="is the split empty"):
        RetrievalMetrics().compute()


def test_a_batch_whose_ids_do_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"lengths \[2, 2, 3, 3, 2\]"):
        RetrievalMetrics().update(unit(2), unit(3), torch.arange(2), torch.arange(3), torch.arange(2))


# --- names ---
def test_what_is_computed_has_its_name_in_the_list():
    computed = retrieval_scores(Ranks(torch.tensor([1]), torch.tensor([1])))
    assert set(metrics.chance_recall(3)) <= set(computed)
    for name in computed:
        for prefix in ("val/", "test/", "test/reranked_"):
            check_metric_name(prefix + name)
        check_metric_name(f"test/baseline/blind_prior/{name}")


def test_names_hold_only_what_mlflow_takes_and_each_is_there_once():
    names = metric_names()
    assert len(names) == len(set(names))
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789_/<>") for name in names)
    assert {"val/image_to_text_recall_at_1", "test/hard_negative_accuracy_unseen", "train/loss/<term>"} <= set(names)
    assert not any(name.startswith(("test/", "train/")) for name in metric_names(splits=["val"]))


@pytest.mark.parametrize(
    ("name", "better"),
    [
        ("val/loss/contrastive", "min"),
        ("val/text_to_image_median_rank", "min"),
        ("val/mean_recall", "max"),
        ("insight/rollout/pointing", ""),
        ("insight/rollout/pointing_game_v1", "max"),
        ("insight/rollout/deletion_image_token_drop_v1", "min"),
        ("insight/score_card_fraction", "min"),
    ],
)
def test_a_known_name_says_which_way_is_better(name, better):
    assert check_metric_name(name).better == better


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("val/mean_recal", "did you mean 'val/mean_recall'"),
        ("val/image_to_text_recall@1", "did you mean 'val/image_to_text_recall_at_1'"),
        ("val/image_to_text_recall_at_2", "did you mean 'val/image_to_text_recall_at_"),
        ("train/mean_recall", "did you mean 'val/mean_recall'"),
        ("val/loss/", "did you mean 'val/loss'"),
        ("zebra", "known: insight/<callback>_fraction"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(name, suggestion):
    with pytest.raises(InputError) as raised:
        check_metric_name(name)
    assert name in str(raised.value) and suggestion in str(raised.value)
