"""The card says what the run found, and what it did not measure."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from PIL import Image

from insight.export.card import SECTIONS, CardFacts, StageRecord, missing_sections, table, write_card
from insight.query_ranks import Miss, QueryRanks, recall_interval


@pytest.fixture
def facts(tmp_path) -> CardFacts:
    Image.new("RGB", (8, 8), "red").save(tmp_path / "epoch0002.png")
    ranks = QueryRanks(
        tuple(f"{n}.jpg" for n in range(4)),
        tuple(f"{n // 2}.jpg#{n % 2}" for n in range(8)),
        tuple(f"caption {n}" for n in range(8)),
        {"image_to_text": torch.tensor([1, 2, 7, 40]), "text_to_image": torch.tensor([1, 1, 2, 3, 1, 4, 4, 2])},
        {},
    )
    test = {
        f"test/{direction}_recall_at_{k}": (ranks.ranks[direction] <= k).float().mean().item()
        for direction in ranks.ranks
        for k in (1, 5, 10)
    }
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
        test={
            **test,
            "test/mean_recall": 0.5,
            "test/reranked_text_to_image_recall_at_1": 0.5,
            "test/baseline/colour_histogram/text_to_image_recall_at_1": 0.125,
        },
        chance={f"{direction}_recall_at_{k}": 0.25 for direction in ranks.ranks for k in (1, 5, 10)},
        ranks=ranks,
        misses={"image_to_text": [Miss("3.jpg", "caption 6", "caption | 0", 40)], "text_to_image": []},
        attention=[tmp_path / "epoch0002.png"],
        insight={},
        environment={"commit": "c" * 40, "torch": "2.14.1"},
    )


def test_a_card_holds_the_figures_with_their_intervals_beside_chance_and_baseline(facts, tmp_path):
    text = write_card(tmp_path / "card", facts).read_text()
    found = recall_interval(facts.ranks, "test/text_to_image_recall_at_1")
    assert f"| test/text_to_image_recall_at_1 | 0.375 | {found.low:.3f} to {found.high:.3f} | 0.500 | 0.125 | 0.250 |" in text
    assert "| test/mean_recall | 0.500 |" in text
    assert "| end_to_end | 3 | 120 | `*` | contrastive x 1, matching x 0.5 | 0.001 | 0.250 | 61 |" in text
    assert "3,200 train, 4 val, 4 test" in text and "f" * 64 in text and "12,345 parameters" in text and "stay under their terms" in text
    assert 'model = load("models:/flickr/VERSION")' in text and "| torch | 2.14.1 |" in text


def test_failures_are_named_and_a_bar_in_a_caption_breaks_no_table(facts, tmp_path):
    text = write_card(tmp_path / "card", facts).read_text()
    assert "| 40 | 3.jpg | caption \\| 0 | caption 6 |" in text
    assert "text to image: every query of the test split found its answer first" in text


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
    bare = dataclasses.replace(facts, test={}, ranks=None, misses={}, attention=[])
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
