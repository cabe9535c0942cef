"""The page of two runs: what it says follows from their files, it fetches nothing, and it is an artifact of both."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from insight.metrics import Ranks, retrieval_scores
from tracking.compare import main
from tracking.records import Journal
from tracking.sync import sync

PICTURES = 60


def write_run(folder: Path, store: str, seed: int, spread: float, pictures: int = PICTURES, **config) -> Path:
    """A finished run's folder; the smaller ``spread``, the better its ranks."""
    draw = torch.Generator().manual_seed(seed)
    names = [f"{number}.jpg" for number in range(pictures)]
    captions = [f"{name}#{number}" for name in names for number in range(2)]
    ranks = Ranks(*((1 + spread * torch.rand(count, generator=draw) ** 2).long() for count in (pictures, 2 * pictures)))
    best = [torch.randint(0, pictures, (count, 5), generator=draw) for count in (pictures, 2 * pictures)]
    folder.mkdir(parents=True)
    save_file(
        {
            "test/image_to_text": ranks.image_to_text_B,
            "test/text_to_image": ranks.text_to_image_C,
            "test/image_to_text_best": best[0],
            "test/text_to_image_best": best[1],
        },
        folder / "ranks.safetensors",
    )
    layout = {"file": "test_pictures.jpg", "cell": 8, "columns": 8, "count": pictures}
    texts = [f"<script>alert('{one}')</script> & a dog" for one in captions]
    lists = {"test/image_to_text": names, "test/text_to_image": captions, "texts": texts, "pictures": layout}
    (folder / "ranks.json").write_text(json.dumps(lists))
    Image.new("RGB", (64, 64), (200, 30, 30)).save(folder / "test_pictures.jpg")
    test = {f"test/{name}": value for name, value in retrieval_scores(ranks).items()}
    stages = [{"name": "only", "epochs": 2, "seconds": 12.0}]
    (folder / "summary.json").write_text(json.dumps({"stages": stages, "test": test}))
    whole = {"seed_everything": seed, "model": {"class_path": "m.Model", "init_args": {"dim": 8, **config}}, "run": {"name": folder.name}}
    (folder / "config.yaml").write_text(yaml.safe_dump(whole))
    environment = {"machine": {"cpu_count": 2}, "packages": {"torch": f"2.{seed}"}}
    (folder / "tracking" / "run").mkdir(parents=True)
    (folder / "tracking" / "run" / "environment.json").write_text(json.dumps(environment))
    tags = {"mlflow.source.git.commit": "c" * 40, "data": "scenes", "data.fingerprint": "f" * 64, "seed": str(seed), "env": "dev"}
    fields = {"experiment": "tests", "tags": {}, "tracking_uri": store, "artifact_location": None}
    parent, stage = Journal(folder / "tracking" / "run"), Journal(folder / "tracking" / "01-only")
    parent.append("open", {**fields, "key": f"{folder.name}-run", "name": folder.name, "parent": None})
    parent.append("tags", {"values": tags})
    for name in ("config.yaml", "summary.json", "ranks.json", "ranks.safetensors", "test_pictures.jpg", "tracking/run/environment.json"):
        parent.append("artifact", {"path": name, "to": None})
    stage.append("open", {**fields, "key": f"{folder.name}-stage", "name": "01-only", "parent": "run"})
    for step in range(20):
        stage.append("metrics", {"step": step, "values": {"train/loss": 1 / (step + seed)}})
    for journal in (stage, parent):
        journal.append("status", {"status": "FINISHED"})
        journal.close()
    return folder


class Page(HTMLParser):
    """What a browser would see: text, table rows, and every address that it would fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text, self.addresses, self.tags = "", [], []
        self.rows: list[list[str]] = []
        self.in_cell = False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href", "srcset", "data")]
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
            self.in_cell = True

    def handle_endtag(self, tag):
        self.in_cell = self.in_cell and tag not in ("td", "th")

    def handle_data(self, data):
        self.text += data
        if self.in_cell:
            self.rows[-1][-1] += data

    def row(self, key: str) -> list[str]:
        (found,) = [row for row in self.rows if row and row[0].strip() == key]
        return [" ".join(cell.split()) for cell in found]


@pytest.fixture
def runs(tmp_path, store, monkeypatch) -> tuple[Path, Path]:
    monkeypatch.chdir(tmp_path)
    return write_run(tmp_path / "first", store, 1, 40.0), write_run(tmp_path / "second", store, 2, 9.0, dim=16)


def test_the_page_says_what_follows_from_the_files_of_the_runs(runs, tmp_path, capsys):
    assert main([*map(str, runs), "--output", "page.html"]) == 0
    said = capsys.readouterr().out
    tests = [json.loads((folder / "summary.json").read_text())["test"] for folder in runs]
    values = [test["test/mean_recall"] for test in tests]
    assert said.startswith(f"B is better: mean recall {values[0]:.4f} and {values[1]:.4f}, difference {values[1] - values[0]:+.4f} (95 %")
    assert said.endswith("page: page.html\n")
    page = Page((tmp_path / "page.html").read_text())
    assert said.splitlines()[0] in page.text
    row = page.row("test/text_to_image_recall_at_5")
    both = [test["test/text_to_image_recall_at_5"] for test in tests]
    assert row[1].startswith(f"{both[0]:.3f} ") and row[2].startswith(f"{both[1]:.3f} ") and row[3].startswith(f"{both[1] - both[0]:+.3f} ")
    assert page.row("model.init_args.dim") == ["model.init_args.dim", "8", "16"] and page.row("seed_everything")[1:] == ["1", "2"]
    assert page.row("package torch") == ["package torch", "2.1", "2.2"]
    assert not [row for row in page.rows if row and row[0].startswith(("run.", "machine", "commit"))]  # places, and what is equal
    assert page.tags.count("polyline") == 2 and page.tags.count("svg") == 1  # train/loss of both


def test_the_page_fetches_nothing_and_runs_nothing_whatever_the_captions_hold(runs, tmp_path):
    assert main([*map(str, runs), "--output", "page.html"]) == 0
    page = Page((tmp_path / "page.html").read_text())
    assert page.addresses and all(address.startswith("data:image/jpeg;base64,") for address in page.addresses)
    assert "script" not in page.tags and "<script>alert('" in page.text
    assert "url(" not in (tmp_path / "page.html").read_text() and "@import" not in (tmp_path / "page.html").read_text()


def test_the_page_is_the_same_by_ids_and_an_artifact_of_both_runs(runs, tmp_path, store, client):
    for folder in runs:
        sync(folder)
    ids = {run.info.run_name: run.info.run_id for run in client.search_runs(["1"]) if "mlflow.parentRunId" not in run.data.tags}
    assert main([*map(str, runs), "--output", "folders.html"]) == 0
    assert main([ids["first"], ids["second"], "--output", "ids.html", "--tracking-uri", store]) == 0
    assert (tmp_path / "ids.html").read_text() == (tmp_path / "folders.html").read_text()
    for run_id in ids.values():
        kept = {file.path for file in client.list_artifacts(run_id, "comparisons")}
        assert kept == {"comparisons/folders.html", "comparisons/ids.html"}


def test_runs_on_other_queries_or_without_ranks_are_shown_and_not_judged(runs, tmp_path, store, capsys):
    smaller = write_run(tmp_path / "smaller", store, 3, 9.0, pictures=40)
    assert main([str(runs[0]), str(smaller), "--output", "page.html"]) == 0
    assert "Nobody can say which is better: the two were tested on different queries (60 pictures and 120" in capsys.readouterr().out
    (runs[1] / "ranks.json").unlink()
    assert main([*map(str, runs), "--output", "page.html"]) == 0
    assert "no ranks of single queries were kept by second" in capsys.readouterr().out
    page = Page((tmp_path / "page.html").read_text())
    assert "–" not in page.row("test/mean_recall")[2]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["{first}", "0123456789abcdef"], "run=0123456789abcdef: no run of this id in sqlite:///"),
        (["no/where", "{first}"], "run=no/where: there is no such folder"),
        (["{first}", "{tmp}"], "holds no config.yaml; give the folder of a run"),
        (["{first}", "{untested}"], "run untested has no test to compare (summary.json says none; its status is FINISHED)"),
        (["{first}", "{first}", "--tracking-uri", "htp://x"], "tracking_uri: 'htp://x'"),
    ],
    ids=["unknown id", "no folder", "no run", "no test", "no store"],
)
def test_a_mistake_is_one_line_that_names_it(runs, tmp_path, store, capsys, words, said):
    untested = write_run(tmp_path / "untested", store, 3, 9.0)
    (untested / "summary.json").unlink()
    names = {"first": runs[0], "tmp": tmp_path, "untested": untested}
    assert main([word.format(**names) for word in words]) == 2
    error = capsys.readouterr().err.strip()
    assert said in error and "\n" not in error


def test_a_store_that_is_away_costs_a_page_only_where_runs_are_given_by_id(runs, tmp_path, capsys, caplog):
    away = "http://127.0.0.1:9"
    assert main(["0123456789abcdef", str(runs[0]), "--tracking-uri", away]) == 1
    assert "the tracking store can't be reached" in capsys.readouterr().err
    assert main([*map(str, runs), "--tracking-uri", away]) == 0
    assert (tmp_path / "outputs" / "comparisons" / "first_and_second.html").exists()
    assert len([text for text in caplog.messages if "is in no store, so the page is no artifact of it" in text]) == 2
