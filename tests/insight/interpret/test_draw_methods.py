import numpy as np
import pytest

from insight.interpret.draw import draw_maps
from insight.interpret.draw_methods import (
    COLUMNS,
    checked,
    common_range,
    draw_methods_sheet,
    draw_score_sheet,
    figure,
    is_best,
    relative,
    shown_rows,
    verdict_words,
)
from insight.interpret.maps import BoxedPhrase, Example, MapFacts, MethodFacts, Verdict, save_maps
from insight.metric_names import check_metric_name

POINTING, DELETION = COLUMNS[0], COLUMNS[4]


def method(family="dual encoder", **scores):
    return MethodFacts("insight.interpret.relevance.chefer_relevance", {}, family, "phrase alone", scores, {"pointing_game_v1": (0.3, 0.7)})


def facts(verdicts=None, phrases=True):
    marked = (BoxedPhrase("a dog", 0, 5, "1", ((0.1, 0.1, 0.6, 0.6),)),) if phrases else ()
    examples = tuple(Example(f"{row}.jpg", "a dog runs", phrases=marked) for row in range(2))
    methods = {name: method(pointing_game_v1=value, seconds_per_pair=0.002) for name, value in (("good", 0.5), ("bad", 0.25))}
    return MapFacts("joint", 3, 30, 4, (), examples, methods=methods, verdicts=verdicts or {})


def arrays():
    lot = np.random.default_rng(0)
    found = {"picture": lot.integers(0, 255, (2, 32, 32, 3)).astype(np.uint8)}
    for name in ("good", "bad"):
        found |= {f"method/{name}/image": lot.random((2, 4, 4)), f"method/{name}/phrases": lot.random((2, 1, 4, 4))}
    return found


def red(image):
    pixels = np.asarray(image.convert("RGB")).astype(int)
    return int(((pixels[..., 0] > 150) & (pixels[..., 1] < 70) & (pixels[..., 2] < 70)).sum())


def test_a_map_is_shown_in_multiples_of_an_even_one_and_a_row_has_one_scale():
    assert relative(np.array([[3.0, -1], [0, 1]])).tolist() == [[3, 0], [0, 1]]  # mean of the positive values over all cells: 1
    assert relative(np.full((2, 2), -1.0)).tolist() == [[0, 0], [0, 0]]
    assert common_range([np.array([1.2]), np.array([4.0])]) == (1, 4)
    assert common_range([np.array([1.2])]) == (1, 1.5) and common_range([np.array([50.0])]) == (1, 8)


def test_a_method_that_failed_the_randomisation_check_is_marked_on_its_map_and_in_the_table():
    none, passed = facts(), facts({"good": Verdict(0.1, True), "bad": Verdict(0.1, True)})
    failed = facts({"good": Verdict(0.1, True), "bad": Verdict(0.8, False)})
    for draw in (lambda one: draw_methods_sheet(arrays(), one), draw_score_sheet):
        plain, marked = red(draw(passed)), red(draw(failed))
        assert marked > plain + 50, (plain, marked)
        assert red(draw(none)) <= plain + 50
    assert verdict_words(Verdict(0.8, False))[0] == "FAILED (ρ 0.80)" and verdict_words(Verdict(0.1, True))[0] == "passed (ρ 0.10)"
    assert checked({}, ["a"]) == "Randomisation check: at the stage's end."
    assert checked({"a": Verdict(0, True)}, ["a", "b"]) == "Not yet checked by randomisation: b."


def test_rows_are_phrases_or_captions_where_nobody_marked_any():
    assert shown_rows(facts()) == [(0, 0), (1, 0)]
    assert shown_rows(facts(phrases=False)) == [(0, None), (1, None)]
    assert draw_methods_sheet(arrays(), facts(phrases=False)).width > 700


def test_figures_and_what_is_best():
    one, two = method(pointing_game_v1=0.5), method(pointing_game_v1=0.25)
    assert figure(POINTING, one) == "0.50 ±0.20" and is_best(POINTING, one, [one, two]) and not is_best(POINTING, two, [one, two])
    here, there = method(deletion_image_token_drop_v1=1.0), method("cross-attention", deletion_image_token_drop_v1=-3.0)
    assert not is_best(DELETION, there, [here, there])  # of another score: they do not compare
    assert figure(COLUMNS[-1], method(seconds_per_pair=0.002)) == "2.0"


def test_every_column_is_a_metric_and_says_the_same_about_what_is_better():
    for column in COLUMNS:
        known = check_metric_name(f"insight/chefer/{column.score}")
        assert known.template != "insight/<method>/<score>"
        if column.better:
            assert known.better == column.better, column.score


def test_a_file_of_methods_is_drawn_as_two_sheets(tmp_path):
    path, _ = save_maps(tmp_path / "epoch0003-step0000030.safetensors", arrays(), facts())
    names = [picture.name for picture in draw_maps(path, tmp_path / "out")]
    assert names == ["epoch0003-step0000030-methods.png", "epoch0003-step0000030-score_card.png"]


@pytest.mark.parametrize("missing", ["good", "bad"])
def test_a_map_that_the_size_limit_left_out_leaves_its_place_empty(missing):
    some = {name: value for name, value in arrays().items() if f"/{missing}/" not in name}
    assert draw_methods_sheet(some, facts()).size == draw_methods_sheet(arrays(), facts()).size
