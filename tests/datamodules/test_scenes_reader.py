import pytest

from datamodules.scenes_captions import Caption, CaptionPhrase, Description
from datamodules.scenes_files import make_example
from datamodules.scenes_reader import Group, Reading, is_true, read

EXAMPLES = [make_example(0, "test", index) for index in range(80)]


def marked(*parts: str | tuple[str, str]) -> Caption:
    """A caption from its words; phrases as (words, kind)."""
    text, phrases = "", []
    for part in parts:
        words, kind = (part, None) if isinstance(part, str) else part
        text += " " if text else ""
        if kind:
            phrases.append(CaptionPhrase(len(text), len(text) + len(words), frozenset(), kind))
        text += words
    return Caption(text + ".", tuple(phrases))


def test_every_caption_is_true_of_its_own_picture():
    for example in EXAMPLES:
        for caption in example.captions:
            assert is_true(read(caption), example.scene, example.picture), caption.text


def test_a_caption_that_is_read_the_wrong_way_round_is_false():
    turned = 0
    for example in EXAMPLES:
        for caption in example.captions:
            reading = read(caption)
            if reading.relation not in (None, "near"):
                turned += 1
                assert not is_true(reading._replace(groups=reading.groups[::-1]), example.scene, example.picture), caption.text
    assert turned > 50


@pytest.mark.parametrize(
    ("caption", "reading"),
    [
        (
            marked("There are", ("two tiny spotted red discs", "other"), "on", ("a rough pale blue backdrop", "scene")),
            Reading((Group(Description("small", "dotted", "red", "circle"), 2),), None, None, (frozenset(["grainy"]), "pale blue")),
        ),
        (
            marked("To the left of", ("a blue box", "other"), "there is", ("an orange plus sign", "other")),
            Reading(
                (Group(Description(colour="orange", shape="cross"), 1), Group(Description(colour="blue", shape="square"), 1)),
                "left",
                None,
                None,
            ),
        ),
        (
            marked(("A picture", "notvisual"), "of", ("a huge round shape", "other"), "in the upper left"),
            Reading((Group(Description(size="large", shape="circle"), 1),), None, "top left", None),
        ),
    ],
)
def test_words_are_read_as_a_person_would(caption, reading):
    assert read(caption) == reading


def test_a_word_that_scenes_do_not_use_is_an_error():
    with pytest.raises(ValueError, match="'wooden'"):
        read(marked(("A wooden circle", "other")))
