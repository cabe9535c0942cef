"""The report of a run: what it says follows from the run's files, it fetches nothing, and it stays small."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from insight.errors import InputError
from insight.interpret.checks import Check, mark_stage, save_checks
from insight.interpret.drift import Entry, Warned, append_entry
from insight.interpret.maps import BoxedPhrase, Example, MapFacts, MethodFacts, WordSpan, save_maps
from insight.interpret.report.__main__ import main
from insight.interpret.report.files import read_run
from insight.interpret.report.maps import pieces, spread
from insight.interpret.report.page import render
from insight.interpret.report.panels import Scale, heat_picture
from insight.interpret.sheet import HEAT

GRID = 4
EVIL = "<script>alert('caption')</script> & \"a dog\""
FUNCTIONS = {"honest": "insight.interpret.relevance.chefer_relevance", "blind": "insight.interpret.attention_maps.rollout_map"}
TOP_LEFT, BOTTOM_RIGHT = (0.0, 0.0, 0.25, 0.25), (0.75, 0.75, 1.0, 1.0)


class Page(HTMLParser):
    """What a browser would see, and every address that it would fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text, self.tags = "", []
        self.addresses = re.findall(r"url\(([^)]*)\)", text)
        self.pictures: list[dict[str, str | None]] = []
        self.rows: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.tags.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href", "srcset", "data", "action")]
        if tag == "img":
            self.pictures.append({"alt": found.get("alt"), "src": found["src"]})
        if found.get("role") == "img":
            self.pictures.append({"alt": found.get("aria-label"), "src": None})
        if tag == "article":
            self.rows.append("")

    def handle_data(self, data):
        self.text += data
        if self.rows:
            self.rows[-1] += data


def peak(row: int, column: int) -> np.ndarray:
    map_gg = np.full((GRID, GRID), 0.05)
    map_gg[row, column] = 1.0
    return map_gg


def example(number: int, caption: str, box: tuple[float, float, float, float], **facts) -> Example:
    words = (WordSpan("a", 0, 1, (1,)), WordSpan("dog", 2, 5, (2,)))
    return Example(f"{number}.jpg", caption, words, (BoxedPhrase("a dog", 0, 5, "1", (box,)),), **facts)


def write_run(folder: Path, side: int = 16, pairs: int = 6, num_methods: int = 2, captions: str = "a dog {}") -> Path:
    """A finished run of two stages: the honest method points at the top left, where all boxes are but those of odd search rows."""
    draw = np.random.default_rng(0)
    names = [*FUNCTIONS, *(f"method{number}" for number in range(2, num_methods))][:num_methods]
    done = []
    for place, stage in enumerate(("first", "second"), start=1):
        home = folder / f"{place:02d}-{stage}"
        for epoch in (1, 2):
            examples = tuple(example(number, captions.format(number), TOP_LEFT) for number in range(4))
            methods = {
                name: MethodFacts(
                    FUNCTIONS.get(name, "m.f"), {}, "dual encoder", "phrase alone", {"pointing_game_v1": epoch / 8 + place / 4}
                )
                for name in names
            }
            facts = MapFacts(stage, epoch, 10 * epoch, GRID, (), examples, methods=methods)
            arrays = {"picture": draw.integers(0, 256, (4, side, side, 3), dtype=np.uint8)}
            for name in names:
                arrays[f"method/{name}/image"] = np.stack([peak(0, 0)] * 4)
                arrays[f"method/{name}/phrases"] = np.stack([peak(0, 0)] * 4)[:, None]
            save_maps(home / "score_card" / f"epoch{epoch:04d}-step{10 * epoch:07d}.safetensors", arrays, facts)
        checks = {
            "honest": Check(FUNCTIONS["honest"], "dual encoder", 0.1, True, {"head": 0.1}, 0.5, 0.25),
            "blind": Check(FUNCTIONS["blind"], "dual encoder", 0.93, False, {"head": 0.93}, 0.5, 0.25),
        }
        save_checks(home / "score_card" / "checks.json", checks, {"stage": stage, "epoch": 2, "step": 20, "pairs": 4})
        mark_stage(home)
        done.append({"name": stage, "epochs": 2, "steps": 20, "metrics": {"val/image_to_text_recall_at_1": 0.1 * place}})
    searched = tuple(
        example(
            row,
            f"a dog {row} <b>{EVIL}",
            BOTTOM_RIGHT if row % 2 else TOP_LEFT,
            ranks={"text_to_image": 1 + 7 * row, "image_to_text": 1 + row},
            score={"honest": 1.0},
        )
        for row in range(pairs)
    )
    honest = MethodFacts(FUNCTIONS["honest"], {}, "dual encoder", "phrase alone")
    arrays = {"picture": draw.integers(0, 256, (pairs, side, side, 3), dtype=np.uint8)}
    arrays |= {"method/honest/image": np.stack([peak(0, 0)] * pairs), "method/honest/phrases": np.stack([peak(0, 0)] * pairs)[:, None]}
    facts = MapFacts("second", 2, 20, GRID, (), searched, methods={"honest": honest})
    save_maps(folder / "02-second" / "score_card" / "validation.safetensors", arrays, facts)
    warned = Warned("dead head", "image.blocks.0 head 1", "image.blocks.0, head 1: it writes next to <i>nothing</i> any more", {})
    append_entry(folder / "01-first" / "drift.json", "val/mean_recall", Entry(1, 10, 0.1, {}, {}, ()))
    append_entry(folder / "01-first" / "drift.json", "val/mean_recall", Entry(2, 20, 0.1, {"honest": 0.75}, {}, (warned,)))
    (folder / "config.yaml").write_text("seed_everything: 0\n")
    (folder / "splits.json").write_text(json.dumps({"val": [f"{row}.jpg" for row in range(99)]}))
    (folder / "stages.json").write_text(json.dumps({"stages": ["first", "second"], "done": done}))
    (folder / "summary.json").write_text(json.dumps({"stages": done, "test": {"test/text_to_image_recall_at_10": 0.625}}))
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "a<b>run")


@pytest.fixture(scope="module")
def page(run) -> Page:
    return Page(render(read_run(run)))


def test_the_best_retrievals_come_first_and_the_worst_begin_with_the_highest_rank(page):
    ranks = [int(found) for found in re.findall(r"finds its picture at rank (\d+) of 99", page.text)]
    assert ranks == [1, 8, 15, 36, 29, 22]  # 1 + 7 * row: the first three, and the last three from the end


def test_findings_are_the_right_answers_whose_boxes_lie_where_the_map_does_not_point(page):
    """Among the first ten are ranks 1 and 8; of these only row 1 has its box at the bottom right."""
    assert "2 of 6 captions find their picture among the first 10" in page.text
    found = [row for row in page.rows if "points elsewhere" in row]
    assert len(found) == 1 and "a dog 1" in found[0] and "at rank 8" in found[0]


def test_numbers_are_those_of_the_files(page):
    for number in ("0.100", "0.200", "0.625"):  # recalls of the two stages and of the test
        assert number in page.text
    assert page.text.index("second, epoch 2") < page.text.index("first, epoch 2")  # the newest card first
    assert "0.75" in page.text and "0.50" in page.text  # 2/8 + 2/4, 2/8 + 1/4
    assert "passed (ρ 0.10)" in page.text and "FAILED (ρ 0.93)" in page.text
    assert "it writes next to <i>nothing</i> any more" in page.text


def test_every_map_of_a_method_that_fails_the_randomisation_check_is_marked_and_no_other(page):
    maps = [picture["alt"] for picture in page.pictures if picture["src"]]
    blind = sum(alt.startswith("blind") for alt in maps)
    assert blind > 0 and any(alt.startswith("honest") for alt in maps)
    assert page.text.count("ρ 0.93") == blind + 2  # and a line in each of the two score cards
    assert "fails, ρ 0.10" not in page.text and "fails randomisation, ρ 0.10" not in page.text


def test_the_film_has_every_validation_of_every_stage_in_order(page):
    frames = [title for title in re.findall(r"(first|second) (\d)\b", page.text[page.text.index("Film over the training") :])]
    assert frames[:4] == [("first", "1"), ("first", "2"), ("second", "1"), ("second", "2")]


def test_names_and_captions_are_text_whatever_they_hold(page):
    assert "script" not in page.tags and "b" in page.tags  # the page's own <b> of the legend
    assert page.text.count(EVIL) >= 6 and "a<b>run" in page.text
    assert page.text.count("<b>") >= 6


def test_nothing_is_fetched_from_anywhere(run, page):
    assert all(address.startswith(("data:image/", "#")) for address in page.addresses)
    text = render(read_run(run)).replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert "http" not in text and "//" not in re.sub(r"base64,[A-Za-z0-9+/=]+", "", text)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)


def test_every_picture_says_what_it_is_for_those_who_cannot_see_it(page):
    assert len(page.pictures) > 40
    assert all(picture["alt"] for picture in page.pictures)
    assert any("highest, 9.1× even, at 12 % from the left and 12 % from the top" in picture["alt"] for picture in page.pictures)


def test_a_page_of_many_large_pictures_stays_below_two_megabytes_and_a_smaller_limit_shows_less(tmp_path):
    files = read_run(write_run(tmp_path / "large", side=170, pairs=40, num_methods=8, captions="a dog {}" + " and on" * 2000))
    large = render(files)
    assert len(large.encode()) <= 2_000_000
    small = render(files, max_bytes=len(large.encode()) - 1)
    assert len(small.encode()) < len(large.encode()) and small.count("<article") < large.count("<article")
    with pytest.raises(InputError, match="even with the fewest examples"):
        render(files, max_bytes=1000)


def test_the_command_writes_the_page_into_the_run(run, capsys):
    assert main([str(run)]) == 0
    assert capsys.readouterr().out == f"page: {run / 'report.html'}\n"
    assert (run / "report.html").read_text(encoding="utf-8") == render(read_run(run))
    assert main([str(run), "--output", str(run / "new" / "page.html")]) == 0
    assert (run / "new" / "page.html").is_file()


def no_run(folder):
    (folder / "config.yaml").unlink()


def unfinished(folder):
    (folder / "summary.json").unlink()
    ledger = json.loads((folder / "stages.json").read_text())
    (folder / "stages.json").write_text(json.dumps({**ledger, "done": ledger["done"][:1]}))


def never_looked(folder):
    for path in folder.glob("*/score_card/*"):
        path.unlink()


def damaged(folder):
    path = folder / "02-second" / "score_card" / "epoch0002-step0000020.safetensors"
    path.write_bytes(path.read_bytes()[:50])


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (no_run, "not the folder of a run (it has no config.yaml)"),
        (unfinished, "the run is not finished (1 of 2 stages are done); go on with `python train.py resume="),
        (never_looked, "the run left no maps; train one with the callbacks score_card or attention_maps"),
        (damaged, "epoch0002-step0000020.safetensors: not maps"),
    ],
)
def test_what_cannot_be_reported_is_one_line_with_the_fix_and_exit_code_two(tmp_path, capsys, spoil, said):
    folder = write_run(tmp_path / "run")
    spoil(folder)
    assert main([str(folder)]) == 2
    error = capsys.readouterr().err
    assert said in error and error.startswith("error: ") and error.count("\n") == 1
    assert not (folder / "report.html").exists()


def test_without_a_score_card_there_are_words_and_a_film_of_rollout_and_the_page_says_what_is_missing(tmp_path):
    folder = write_run(tmp_path / "run")
    never_looked(folder)
    for path in folder.glob("*/drift.json"):
        path.unlink()
    for epoch in (1, 2):
        arrays = {
            "picture": np.zeros((1, 8, 8, 3), np.uint8),
            "rollout": np.full((1, 17), 1 / 17),
            "words/fusion.0.cross_attention": np.full((1, 4, 17), 1 / 17),
        }
        if epoch == 2:
            del arrays["picture"]  # as if it had been too large to keep
        facts = MapFacts("first", epoch, epoch, GRID, (), (example(0, "a dog", TOP_LEFT),))
        save_maps(folder / "01-first" / "maps" / f"epoch{epoch:04d}-step{epoch:07d}.safetensors", arrays, facts)
    page = Page(render(read_run(folder)))
    alts = [picture["alt"] for picture in page.pictures]
    assert [alt.partition(":")[0] for alt in alts if "rollout" in alt] == ["rollout after first 1", "rollout after first 2"]
    assert any(alt.startswith("what “dog” reads: highest, 1.0× even") for alt in alts)
    for missing in ("search_examples", "without the callback score_card", "without the callback drift"):
        assert missing in page.text


def test_a_map_has_the_colour_of_the_scale_at_its_peak_and_nothing_where_it_is_even():
    heat = np.ones((GRID, GRID))
    heat[1, 2] = 3.0
    address = heat_picture(heat, Scale(1.0, 3.0))
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))).convert("RGBA"))
    cells = picture.reshape(GRID, 5, GRID, 5, 4)[:, 2, :, 2]  # the centre of each patch
    np.testing.assert_allclose(cells[1, 2, :3], np.array(HEAT(1.0)[:3]) * 255, atol=1)
    assert cells[1, 2, 3] == round(0.88 * 255) and cells[3, 0, 3] == 0


def test_a_caption_is_cut_at_its_phrases_and_loses_nothing():
    phrases = [
        BoxedPhrase("dog", 2, 5, "1", (TOP_LEFT,)),
        BoxedPhrase("og ru", 3, 8, "2", (TOP_LEFT,)),
        BoxedPhrase("a cat", 9, 14, "3", ()),
    ]
    assert [piece.text for piece in pieces("a dog ru a cat", phrases)] == ["a ", "dog", " ru a cat"]


@pytest.mark.parametrize("most", [2, 3, 7])
def test_a_film_of_many_validations_keeps_the_first_and_the_last_and_its_order(most):
    frames = [(None, number) for number in range(23)]
    found = [number for _, number in spread(frames, most)]
    assert len(found) == most and found[0] == 0 and found[-1] == 22 and found == sorted(set(found))
