import json

import numpy as np
import pytest

from insight.errors import InputError
from insight.interpret.maps import BoxedPhrase, Example, MapFacts, MethodFacts, save_maps
from insight.interpret.search import main, search_run, told, validation_file, with_ranks, wrong_regions

LEFT, RIGHT = ((0.0, 0.0, 0.5, 0.5),), ((0.5, 0.5, 1.0, 1.0),)  # the first and the last of 2 x 2 quarters


def example(name, rank, phrases=("dog", "cat")):
    boxes = {"dog": LEFT, "cat": RIGHT}
    marked = tuple(BoxedPhrase(text, 0, 3, text, boxes[text]) for text in phrases)
    return Example(name, f"a caption of {name}", phrases=marked, ranks={"text_to_image": rank})


def at(row, column, beside=0.0):
    """4 x 4 cells, one of them high; ``beside`` in the upper left cell."""
    found = np.zeros((4, 4))
    found[0, 0] = beside
    found[row, column] = 1
    return found


EXAMPLES = (example("right.jpg", 1), example("away.jpg", 2), example("other.jpg", 3), example("lost.jpg", 11), example("split.jpg", 1))
MAPS = np.stack(
    [
        np.stack([at(0, 0), at(3, 3)]),  # both where they should be
        np.stack([at(0, 3), at(0, 3, beside=0.5)]),  # both in a corner that nobody marked
        np.stack([at(3, 3), at(3, 3)]),  # the dog at the cat
        np.stack([at(0, 3), at(0, 3)]),  # wrong, but not retrieved
        np.stack([np.zeros((4, 4)), at(1, 1) + at(0, 3)]),  # nothing; a tie of the dog's box and of nobody's
    ]
)


def test_findings_are_the_right_answers_with_a_wrong_region_the_clearest_first():
    found = wrong_regions(MAPS, EXAMPLES)
    assert [(one.filename, one.text, one.elsewhere) for one in found] == [
        ("away.jpg", "dog", True),
        ("away.jpg", "cat", True),  # half as much in marked boxes
        ("split.jpg", "cat", False),  # the dog's cell is among the highest
        ("other.jpg", "dog", False),
    ]
    assert found[0].highest == (0.875, 0.125) and found[0].energy_marked == 0 and found[0].area_of_box == pytest.approx(0.25)
    assert found[1].energy_marked == pytest.approx(1 / 3) and found[1].energy_in_box == 0
    assert found[3].energy_in_box == 0 and found[3].energy_marked == 1


def test_within_decides_what_counts_as_retrieved():
    assert {one.filename for one in wrong_regions(MAPS, EXAMPLES, within=1)} == {"split.jpg"}
    assert "lost.jpg" in {one.filename for one in wrong_regions(MAPS, EXAMPLES, within=11)}
    with pytest.raises(InputError, match="within=0"):
        wrong_regions(MAPS, EXAMPLES, within=0)
    with pytest.raises(InputError, match=r"'a\.jpg' has no rank"):
        wrong_regions(MAPS[:1], (Example("a.jpg", "a"),))


@pytest.fixture
def run(tmp_path):
    method = MethodFacts("insight.interpret.relevance.chefer_relevance", {}, "dual encoder")
    facts = MapFacts("joint", 2, 20, 4, (), EXAMPLES, methods={"chefer": method, "bare": method})
    arrays = {"picture": np.zeros((5, 8, 8, 3), np.uint8), "method/chefer/phrases": MAPS}
    for stage in ("00-single", "01-joint"):
        save_maps(tmp_path / stage / "score_card" / "validation.safetensors", arrays, facts)
    return tmp_path


def test_a_run_is_searched_in_its_last_stage_or_the_one_that_is_named(run):
    assert validation_file(run).parts[-3] == "01-joint"
    assert validation_file(run, "single").parts[-3] == validation_file(run, "00-single").parts[-3] == "00-single"
    findings, facts, arrays, method = search_run(run)
    assert len(findings) == 4 and method == "chefer" and facts.stage == "joint" and "picture" in arrays
    text = told(findings, facts, method, 10, top=2).splitlines()
    assert text[0].startswith("4 of 5 captions find their picture among the first 10; of their 8 phrases, chefer points outside")
    assert "in 4: 2 elsewhere, 2 at another object" in text[0] and len(text) == 3 and "away.jpg" in text[1]


def test_ranks_are_added_by_row():
    facts = with_ranks(MapFacts("", 1, 1, 4, (), EXAMPLES[:2]), {0: {"text_to_image": 7}, 1: {"text_to_image": 8}})
    assert [one.ranks["text_to_image"] for one in facts.examples] == [7, 8]


def test_the_command_lists_findings_and_writes_all_of_them(run, tmp_path, capsys):
    assert main([str(run), "--top", "1", "--output", str(tmp_path / "found.json")]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert [one["filename"] for one in json.loads((tmp_path / "found.json").read_text())["findings"]][:2] == ["away.jpg"] * 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--stage", "jont"], "joint"),
        (["--method", "chefr"], "chefer"),
        (["--method", "bare"], "bare has no map of a phrase"),
        (["--within", "0"], "within=0"),
    ],
)
def test_what_cannot_be_searched_is_one_line_that_says_why(run, capsys, words, message):
    assert main([str(run), *words]) == 2
    assert message in capsys.readouterr().err


def test_a_run_without_a_score_card_is_told_what_it_lacks(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert "search_examples" in capsys.readouterr().err
