"""Changes of captions and pictures: how often, what stays, and the same for the same lot."""

from __future__ import annotations

import json
import random

import pytest
import torch

from insight.data.augmentation import MEAN, ImageAugmentation, TextAugmentation
from insight.data.images import ImageTransform
from insight.errors import InputError

TEXT = "A brown dog runs quickly over wet grass."
WORDS = TEXT.split()


def changed(augmentation, times=400, text=TEXT):
    lot = random.Random(0)
    return [augmentation(text, lot) for _ in range(times)]


def test_without_any_chance_a_caption_stays_and_no_lot_is_drawn():
    lot = random.Random(5)
    assert TextAugmentation()("two  spaces", lot) == "two  spaces" and lot.random() == random.Random(5).random()


def test_words_are_dropped_as_often_as_asked_and_one_always_stays():
    texts = [text.split() for text in changed(TextAugmentation(drop=0.25))]
    assert all(words == [word for word in WORDS if word in words] for words in texts)  # in their order, nothing new
    assert sum(map(len, texts)) / len(texts) == pytest.approx(0.75 * len(WORDS), abs=0.25)  # 4 standard deviations
    assert all(len(text.split()) == 1 for text in changed(TextAugmentation(drop=1.0), 20))


def test_swapping_moves_words_and_loses_none():
    texts = [text.split() for text in changed(TextAugmentation(swap=0.2))]
    assert all(sorted(words) == sorted(WORDS) for words in texts)
    assert 0.1 < sum(words == WORDS for words in texts) / len(texts) < 0.35  # .8 ** 7 = .21
    assert changed(TextAugmentation(swap=1.0), 1) == [" ".join([*WORDS[1:], WORDS[0]])]


def test_a_misspelt_word_has_one_swap_one_loss_or_one_double_inside_and_short_words_stay():
    for text in changed(TextAugmentation(misspell=1.0), 100):
        for old, new in zip(WORDS, text.split(), strict=True):
            core, other = old.strip("."), new.strip(".")
            if len(core) < 4:
                assert new == old
                continue
            losses = {core[:i] + core[i + 1 :] for i in range(1, len(core) - 1)}
            doubles = {core[:i] + core[i] + core[i:] for i in range(1, len(core) - 1)}
            swaps = {core[:i] + core[i + 1] + core[i] + core[i + 2 :] for i in range(1, len(core) - 2)}
            assert other in losses | doubles | swaps and (new.endswith(".") == old.endswith("."))


def test_synonyms_come_from_the_table_and_keep_punctuation(tmp_path):
    path = tmp_path / "synonyms.json"
    path.write_text(json.dumps({"Dog": ["hound", "pup"], "grass": ["lawn"]}))
    texts = changed(TextAugmentation(replace=0.5, synonyms=str(path)))
    assert {text.split()[2] for text in texts} == {"dog", "hound", "pup"} and {text.split()[-1] for text in texts} == {"grass.", "lawn."}
    assert sum("dog" not in text for text in texts) / len(texts) == pytest.approx(0.5, abs=0.1)
    assert all(text.split()[:2] == WORDS[:2] for text in texts)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"drop": 1.5}, r"text_augmentation\.drop=1\.5"),
        ({"replace": 0.1}, "replace and synonyms"),
        ({"replace": 0.1, "synonyms": "nowhere.json"}, "nowhere.json: no such file"),
    ],
)
def test_a_text_setting_that_makes_no_sense_is_named(arguments, message):
    with pytest.raises(InputError, match=message):
        TextAugmentation(**arguments)


@pytest.mark.parametrize("content", ["[", '["dog"]', '{"dog": []}', '{"dog": "pup"}'])
def test_a_file_that_is_no_table_of_synonyms_is_named(tmp_path, content):
    path = tmp_path / "broken.json"
    path.write_text(content)
    with pytest.raises(InputError, match=r"synonyms=.*broken\.json"):
        TextAugmentation(replace=0.1, synonyms=str(path))


PICTURE = torch.randint(0, 256, (3, 20, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_grey_takes_out_the_colours_and_keeps_the_brightness():
    grey = ImageAugmentation(grey=1.0)(PICTURE, random.Random(0))
    expected = (0.2989 * PICTURE[0].float() + 0.587 * PICTURE[1].float() + 0.114 * PICTURE[2].float()).to(torch.uint8)
    assert torch.equal(grey[0], grey[1]) and (grey[0].int() - expected.int()).abs().max() <= 1


def test_blur_smooths_and_keeps_the_mean():
    blurred = [ImageAugmentation(blur=1.0)(PICTURE, random.Random(seed)).float() for seed in range(5)]
    assert min(picture.std() for picture in blurred) < 0.6 * PICTURE.float().std()
    assert all(abs(picture.mean() - PICTURE.float().mean()) < 5 for picture in blurred)


def test_erasing_fills_one_rectangle_with_the_mean_colour():
    fill = torch.tensor([round(255 * one) for one in MEAN], dtype=torch.uint8)[:, None, None]
    for seed in range(10):
        erased = ImageAugmentation(erase=1.0)(PICTURE, random.Random(seed))
        gone = (erased == fill).all(dim=0) & (fill != PICTURE).any(dim=0)
        rows, columns = gone.any(dim=1).nonzero(), gone.any(dim=0).nonzero()
        inside = gone[int(rows.min()) : int(rows.max()) + 1, int(columns.min()) : int(columns.max()) + 1]
        assert inside.all() and 0.01 < gone.float().mean() < 0.4 and torch.equal(erased[:, ~gone], PICTURE[:, ~gone])


def test_a_picture_is_changed_as_often_as_asked_and_the_same_for_the_same_lot():
    augmentation = ImageAugmentation(grey=0.3)
    times = sum(not torch.equal(augmentation(PICTURE, random.Random(seed)), PICTURE) for seed in range(300))
    assert times / 300 == pytest.approx(0.3, abs=0.1)
    every = ImageAugmentation(0.5, 0.5, 0.5)
    assert torch.equal(every(PICTURE, random.Random(3)), every(PICTURE, random.Random(3)))
    with pytest.raises(InputError, match=r"image_augmentation\.erase=2"):
        ImageAugmentation(erase=2)


def test_a_transform_without_further_changes_draws_what_it_drew_before():
    plain, with_none = ImageTransform(16, 0.5, 0.3, True), ImageTransform(16, 0.5, 0.3, True, None)
    first, second = random.Random(1), random.Random(1)
    assert torch.equal(plain.augment(PICTURE, first)[0], with_none.augment(PICTURE, second)[0]) and first.random() == second.random()
    with_more = ImageTransform(16, 0.5, 0.3, True, ImageAugmentation(grey=1.0))
    pixels, crop = with_more.augment(PICTURE, random.Random(1))
    assert torch.equal(pixels[0], pixels[1]) and crop == plain.augment(PICTURE, random.Random(1))[1]
