"""The card says what the run found, and what it did not measure."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from PIL import Image

from insight.export.card import NOT_TESTED, SECTIONS, CardFacts, StageRecord, TaskFacts, figures_table, missing_sections, table, write_card
from insight.export.retrieval_card import retrieval_failures, retrieval_results
from insight.query_ranks import QueryRanks, recall_interval

TASK = TaskFacts(
    "compares pictures with captions",
    "pictures",
    ("val/mean_recall",),
    "recall (fraction of queries)",
    "| test/mean_recall | 0.500 |",
    "The worst queries:",
    'model.similarity(["picture.jpg"], ["a dog"])',
)


@pytest.fixture
def facts(tmp_path) -> CardFacts:
    Image.new("RGB", (8, 8), "red").save(tmp_path / "epoch0002.png")
    stage = StageRecord(
        "end_to_end",
        {"train": ["*"], "losses": {"contrastive": {"weight": 1.0}, "matching": {"weight": 0.5}}, "learning_rate": 1e-3},
        {"epochs": 3, "steps": 120, "metrics": {"val/mean_recall": 0.25}, "seconds": 61.4},
        {"train/loss": {0: 3.0, 60: 2.0}, "val/mean_recall": {60: 0.1, 120: 0.25}},
    )
    return CardFacts(
        title="flickr",
        run="2026-01-01_flickr",
        architecture="MultiModalTransformer",
        arguments={"dim": 16},
        num_parameters=12345,
        seed=3,
        data={"fingerprint": "f" * 64, "splits": {"train": 3200, "val": 4, "test": 4}, "description": "Flickr30k at photos"},
        generated=False,
        stages=[stage],
        task=TASK,
        attention=[tmp_path / "epoch0002.png"],
        insight={},
        environment={"commit": "c" * 40, "torch": "2.14.1"},
    )


@pytest.fixture
def ranks() -> QueryRanks:
    """Four pictures of two captions each; picture 3 finds the first caption of all before its own."""
    return QueryRanks(
        tuple(f"{n}.jpg" for n in range(4)),
        tuple(f"{n // 2}.jpg#{n % 2}" for n in range(8)),
        ("caption | 0", *(f"caption {n}" for n in range(1, 8))),
        {"image_to_text": torch.tensor([1, 2, 7, 40]), "text_to_image": torch.tensor([1, 1, 2, 3, 1, 4, 4, 2])},
        {"image_to_text": torch.tensor([[0], [0], [0], [0]]), "text_to_image": torch.tensor([[0], [0], [0], [0], [2], [0], [0], [0]])},
    )


def test_a_card_says_what_the_run_was(facts, tmp_path):
    text = write_card(tmp_path / "card", facts).read_text()
    assert "`MultiModalTransformer`: it compares pictures with captions. 12,345 parameters (dim=16)" in text
    assert "| test/mean_recall | 0.500 |" in text and "seconds |\n" in text and "rate | val/mean_recall |" in text
    assert "| end_to_end | 3 | 120 | `*` | contrastive x 1, matching x 0.5 | 0.001 | 0.250 | 61 |" in text
    assert "Pictures: 3,200 train, 4 val, 4 test" in text and "f" * 64 in text and "stay under their terms" in text
    assert 'model = load("models:/flickr/VERSION")' in text and "| torch | 2.14.1 |" in text
    assert 'model = load("FOLDER")  # the folder above this card\nmodel.similarity(["picture.jpg"], ["a dog"])\n' in text


def test_recalls_stand_with_their_intervals_beside_chance_and_baseline(ranks):
    test = {
        f"test/{direction}_recall_at_{k}": (ranks.ranks[direction] <= k).float().mean().item()
        for direction in ranks.ranks
        for k in (1, 5, 10)
    }
    test |= {
        "test/mean_recall": 0.5,
        "test/reranked_text_to_image_recall_at_1": 0.5,
        "test/baseline/colour_histogram/text_to_image_recall_at_1": 0.125,
    }
    text, found = retrieval_results(ranks, test), recall_interval(ranks, "test/text_to_image_recall_at_1")
    assert f"| test/text_to_image_recall_at_1 | 0.375 | {found.low:.3f} to {found.high:.3f} | 0.500 | 0.125 | 0.250 |" in text
    assert "| test/mean_recall | 0.500 |" in text and "4 pictures, 8 captions" in text


def test_failures_are_named_and_a_bar_in_a_caption_breaks_no_table(ranks):
    assert "| 40 | 3.jpg | caption \\| 0 | caption 6 |" in retrieval_failures(ranks)
    perfect = ranks._replace(ranks={**ranks.ranks, "text_to_image": torch.ones(8, dtype=torch.int64)})
    assert "text to image: every query of the test split found its answer first" in retrieval_failures(perfect)


def test_figures_of_any_task_stand_beside_what_they_are_compared_with():
    test = {"test/perplexity": 4.0, "test/baseline/bigram/perplexity": 8.0, "test/loss": 1.386, "insight/x/y": 1.0}
    shown, tests = {"perplexity": "per token"}, {"test": "test/", "test, bigrams": "test/baseline/bigram/", "test, others": "test/none/"}
    assert figures_table(test, shown, tests, {"chance": {"perplexity": 300.0}}) == (
        "| metric | this model | bigrams | chance |\n| --- | --- | --- | --- |\n| test/perplexity | 4.000 | 8.000 | 300.000 |\n\n"
        "| other figures |  |\n| --- | --- |\n| test/loss | 1.386 |"
    )
    assert figures_table({}, shown, tests, {}) == ""


def test_a_whole_card_lacks_only_what_was_not_measured(facts, tmp_path):
    write_card(tmp_path / "card", facts)
    assert missing_sections(tmp_path / "card") == ["Robustness and faithfulness (not measured)"]
    measured = dataclasses.replace(facts, insight={"insight/rollout/pointing_game": 0.5})
    assert "| insight/rollout/pointing_game | 0.500 |" in write_card(tmp_path / "card", measured).read_text()
    assert missing_sections(tmp_path / "card") == []
    assert {path.name for path in (tmp_path / "card").iterdir()} == {"model_card.md", "curves-01-end_to_end.png", "attention-1.png"}
    curves = Image.open(tmp_path / "card" / "curves-01-end_to_end.png")
    assert curves.size == (1000, 300) and len(curves.convert("RGB").getcolors(1 << 20)) > 10  # something is drawn


def test_a_run_without_a_test_or_maps_says_so(facts, tmp_path):
    bare = dataclasses.replace(facts, task=dataclasses.replace(TASK, results="", failures=NOT_TESTED), attention=[])
    write_card(tmp_path / "card", bare)
    lacking = ["Results", "What it looks at", "Known failures", "Robustness and faithfulness"]
    assert missing_sections(tmp_path / "card") == [f"{title} (not measured)" for title in lacking]
    assert missing_sections(tmp_path / "card", ["What it is", "Recipe"]) == []


def test_a_card_that_lost_something_is_not_complete(facts, tmp_path):
    path = write_card(tmp_path / "card", facts)
    (tmp_path / "card" / "attention-1.png").unlink()
    assert missing_sections(tmp_path / "card", SECTIONS[:6]) == ["What it looks at (picture attention-1.png is lost)"]
    path.write_text(path.read_text().replace("## Data\n", "## Dates\n"))
    assert missing_sections(tmp_path / "card", ["Data", "Dates"]) == ["Data (not there)"]
    path.unlink()
    assert missing_sections(tmp_path / "card") == ["model_card.md (there is none)"]


def test_a_table_is_markdown():
    assert table(["a", "b"], [[1, "x\ny"]]) == "| a | b |\n| --- | --- |\n| 1 | x y |"
