import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from insight.errors import InputError
from insight.interpret import draw, draw_parts
from insight.interpret.maps import BoxedPhrase, Example, MapFacts, WordSpan, save_maps

GRID = 4
WORDS = (WordSpan("a", 0, 1, (1,)), WordSpan("dog", 2, 5, (2, 3)), WordSpan(".", 5, 6, (4,)))
DOG = BoxedPhrase("dog", 2, 5, "1", ((0.5, 0.5, 0.75, 0.75),))


def facts(**changes):
    example = Example("dog_of_$5.jpg", "a dog.", WORDS, (DOG,))
    return MapFacts("joint", 2, 40, GRID, ("image.blocks.0.attention",), (example,), **changes)


def hot_at(*cells, share=0.9):
    """Weights over [class token, patches] with the same share on each of the cells (row, column)."""
    weights = np.full(1 + GRID**2, (1 - share) / GRID**2, dtype=np.float32)
    for row, column in cells:
        weights[1 + row * GRID + column] = share / len(cells)
    return weights


def arrays(first_head=None, dog=None):
    even = np.full(1 + GRID**2, 1 / (1 + GRID**2), dtype=np.float32)
    words = np.tile(even, (1, 6, 1))
    words[0, 2:4] = even if dog is None else dog
    return {
        "picture": np.full((1, 16, 16, 3), 128, np.uint8),
        "rollout": even[None],
        "class/image.blocks.0.attention": np.stack([even if first_head is None else first_head, even])[None],
        "words/fusion.0.cross_attention": words,
    }


def pixels(image):
    return np.asarray(image, dtype=np.int64)


def difference(one, other):
    """Pixels that two sheets of the same size paint differently, without the colour bars' figures."""
    return (np.abs(pixels(one) - pixels(other)).sum(axis=-1) > 30).astype(bool)


def test_a_hot_patch_is_painted_where_it_is_and_nowhere_else():
    grey = np.full((16, 16, 3), 128, np.uint8)
    heat = draw.patch_heat(hot_at((1, 2)), GRID)
    cold, hot = draw_parts.overlay(grey, heat * 0, 1, 8, size=80), draw_parts.overlay(grey, heat, 1, 8, size=80)
    changed = np.abs(hot - cold).sum(axis=-1) > 0.2
    assert changed[25:35, 45:55].all()  # row 1, column 2 of 20-pixel patches
    assert not changed[:, :20].any() and not changed[60:].any()
    assert hot[30, 50] == pytest.approx(0.88 * np.array(draw_parts.HEAT(1.0)[:3]) + 0.12 * cold[30, 50], abs=0.02)


def test_upsampling_keeps_the_values_in_the_middles_of_the_patches():
    heat = np.random.default_rng(0).random((4, 4)).astype(np.float32)
    large = draw_parts.upsample(heat, 4 * 21)
    np.testing.assert_allclose(large[10::21, 10::21], heat, atol=1e-5)
    assert large.min() >= heat.min() and large.max() <= heat.max()


def test_heat_is_in_multiples_of_even_attention_and_reads_patches_row_by_row():
    weights = np.arange(17, dtype=np.float32) / 136
    heat = draw.patch_heat(weights, GRID)
    assert heat[0, 1] == pytest.approx(2 / 136 * 17)
    assert heat[1, 0] == pytest.approx(5 / 136 * 17)
    np.testing.assert_allclose(draw.patch_heat(np.full(17, 1 / 17), GRID), 1, rtol=1e-6)


def test_a_words_heat_is_the_mean_over_its_tokens():
    weights = np.zeros((6, 17), np.float32)
    weights[2, 1], weights[3, 2] = 1.0, 0.5
    heat = draw.word_heat(weights, WORDS[1], GRID)
    assert heat[0, 0] == pytest.approx(0.5 * 17) and heat[0, 1] == pytest.approx(0.25 * 17)


def test_flat_attention_paints_nothing():
    heats = [np.ones((4, 4)), np.full((4, 4), 0.9)]
    grey = np.full((16, 16, 3), 128, np.uint8)
    assert np.ptp(draw_parts.overlay(grey, heats[0], *draw.attention_range(heats))) < 1e-6


def test_the_class_sheet_changes_in_the_panel_of_the_head_that_changed():
    hot = hot_at((1, 2))
    before = draw.draw_class_sheet(arrays(), facts(), "image.blocks.0.attention")
    after = draw.draw_class_sheet(arrays(first_head=hot), facts(), "image.blocks.0.attention")
    changed = difference(before, after)
    left = draw_parts.MARGIN + 2 * draw_parts.STEP + draw_parts.SCALE
    top = draw_parts.HEADER + draw_parts.TITLE
    patch = draw_parts.PANEL // GRID
    assert changed[top + patch : top + 2 * patch, left + 2 * patch : left + 3 * patch].mean() > 0.9
    assert not changed[:, :left].any()  # photo and rollout
    assert not changed[:, left + draw_parts.STEP : left + 2 * draw_parts.STEP - 8].any()  # the other head


def test_the_word_sheet_changes_in_the_panel_of_the_word_that_changed_and_frames_its_phrase():
    layer = "fusion.0.cross_attention"
    before = draw.draw_word_sheet(arrays(), facts(), layer)
    after = draw.draw_word_sheet(arrays(dog=hot_at((2, 2))), facts(), layer)
    changed = difference(before, after)
    left, top = draw_parts.MARGIN + draw_parts.STEP + 20 + draw_parts.STEP, draw_parts.HEADER + draw_parts.CAPTION + draw_parts.TITLE
    patch = draw_parts.PANEL // GRID
    assert changed[top + 2 * patch + 6 : top + 3 * patch - 6, left + 2 * patch + 6 : left + 3 * patch - 6].all()
    assert not changed[:, : left - 8].any()
    edge = pixels(before)[top + draw_parts.PANEL // 2 - 1 : top + draw_parts.PANEL // 2 + 1, left + draw_parts.PANEL // 2 + 20]
    assert (edge[:, 2] > 200).any() and (edge[:, 0] < 80).any()  # the first box colour, cyan
    unframed = pixels(before)[top + draw_parts.PANEL // 2, left - draw_parts.STEP + draw_parts.PANEL // 2 + 20]
    assert np.ptp(unframed) < 5  # the word "a" is of no phrase: grey


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0])
def test_maps_of_a_broken_model_are_still_drawn(bad):
    broken = {name: array if name == "picture" else np.full_like(array, bad) for name, array in arrays().items()}
    draw.draw_class_sheet(broken, facts(), "image.blocks.0.attention")
    draw.draw_word_sheet(broken, facts(), "fusion.0.cross_attention")


def test_files_are_drawn_again_from_the_command_line_without_torch(tmp_path):
    path, _ = save_maps(tmp_path / "epoch0002.safetensors", arrays(hot_at((0, 0))), facts())
    code = (
        "import sys; from insight.interpret.draw import main; status = main(sys.argv[1:]); sys.exit(status or 9 * ('torch' in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", code, str(path), "--out", str(tmp_path / "figures")], check=True)
    drawn = sorted((tmp_path / "figures").iterdir())
    assert [one.name for one in drawn] == ["epoch0002-class-image.blocks.0.attention.png", "epoch0002-words.png"]
    for one in drawn:
        with Image.open(one) as image:
            image.load()
            assert image.width >= 760 and image.height > 300


def test_a_file_that_cannot_be_drawn_is_a_message_and_status_two(tmp_path, capsys):
    assert draw.main([str(tmp_path / "no.safetensors")]) == 2
    assert "no.safetensors" in capsys.readouterr().err
    path, _ = save_maps(tmp_path / "x.safetensors", arrays(), facts(), max_bytes_per_example=10)
    with pytest.raises(InputError, match="left out for their size: picture"):
        draw.draw_maps(path, tmp_path)


def test_the_last_fusion_layer_is_drawn_even_past_ten():
    names = {f"words/fusion.{index}.cross_attention": np.zeros(1) for index in (2, 10, 9)}
    assert draw.last_crossing(names) == "fusion.10.cross_attention"
    assert draw.last_crossing({"rollout": np.zeros(1)}) is None


def test_a_hard_caption_and_many_words_fit_on_the_sheet():
    words = tuple(WordSpan(f"word{index}", index, index + 1, (index % 6,)) for index in range(20))
    example = Example("x" * 200 + ".jpg", "costs $5 and $6_{\\bad 狗 \n" * 30, words, ())
    sheet = draw.draw_word_sheet(arrays(), MapFacts("", 1, 1, GRID, (), (example,)), "fusion.0.cross_attention")
    assert (
        sheet.height == draw_parts.HEADER + draw_parts.CAPTION + 3 * (draw_parts.TITLE + draw_parts.STEP) + 12 + draw_parts.FOOTER
    )  # 20 words, 7 in a line
