"""What a run says about each test query, beside sorting by hand and the run's own figures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file

from lightning_modules.cli import main
from lightning_modules.drive import run_stages
from lightning_modules.engine_cli import build
from lightning_modules.retrievals import best_candidates, contact_sheet


@pytest.fixture
def tested(tiny_config) -> Path:
    """A run of one short stage, tested."""
    tiny_config["stages"] = {"cross_modal": {**tiny_config["stages"]["cross_modal"], "epochs": 1}}
    assert run_stages(build(tiny_config)) == 0
    return Path(tiny_config["run_dir"])


def test_a_run_keeps_each_test_query_and_the_figures_follow_from_it(tested, tmp_path):
    names, ranks = json.loads((tested / "ranks.json").read_text()), load_file(tested / "ranks.safetensors")
    summary = json.loads((tested / "summary.json").read_text())["test"]
    pictures, captions = names["test/image_to_text"], names["test/text_to_image"]
    assert pictures == json.loads((tested / "splits.json").read_text())["test"]
    assert len(set(captions)) == len(captions) == len(names["texts"]) and {one.split("#")[0] for one in captions} == set(pictures)
    for direction, ids in (("image_to_text", pictures), ("text_to_image", captions)):
        rank = ranks[f"test/{direction}"]
        assert rank.dtype == torch.int64 and len(rank) == len(ids)
        for k in (1, 5, 10):
            assert float((rank <= k).double().mean()) == pytest.approx(summary[f"test/{direction}_recall_at_{k}"])
    for row, best in enumerate(ranks["test/text_to_image_best"].tolist()):  # a right answer among the best five, at the place of its rank
        rank = int(ranks["test/text_to_image"][row])
        assert (captions[row].split("#")[0] in [pictures[one] for one in best]) == (rank <= 5)
    assert main(["test", "--config", str(tested / "config.yaml"), "--output", str(tmp_path / "again")]) == 0
    again = load_file(tmp_path / "again" / "ranks.safetensors")
    assert all(torch.equal(value, again[name]) for name, value in ranks.items())


def test_the_best_candidates_are_those_that_sorting_finds():
    draw = torch.Generator().manual_seed(0)
    queries, candidates = (F.normalize(torch.randn(rows, 8, generator=draw), dim=-1) for rows in (7, 30))
    expected = [sorted(range(30), key=lambda row, one=one: -float(one @ candidates[row]))[:5] for one in queries]
    assert best_candidates(queries, candidates, at_once=3).tolist() == expected
    assert best_candidates(queries, candidates[:2]).shape == (7, 2)


@pytest.mark.parametrize(("side", "cell"), [(16, 16), (128, 96)])
def test_each_picture_is_where_the_layout_says(tmp_path, side, cell):
    colours = torch.randint(0, 256, (7, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    sheet, layout = contact_sheet(colours[:, :, None, None].expand(7, 3, side, side))
    assert layout == {"cell": cell, "columns": 3, "count": 7} and sheet.size == (3 * cell, 3 * cell)
    sheet.save(tmp_path / "sheet.png")
    pixels = np.asarray(Image.open(tmp_path / "sheet.png"))
    for number, colour in enumerate(colours.tolist()):
        top, left = number // 3 * cell, number % 3 * cell
        assert (pixels[top : top + cell, left : left + cell] == colour).all()
