"""Captions become tokens and back; words know their characters and their tokens."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch

from insight.data.text import END, PAD, SMALLEST_VOCABULARY, START, Tokenizer
from insight.errors import InputError

CAPTIONS = ["A dog runs across the grass .", "Two dogs are running .", "A man's dog, tri-colored, jumps!", "the dog and the man"] * 3
STRANGE = ["日本語 🎉", "na\u00efve cafe\u0301", "İstanbul", "[PAD] [END] [START]", "a\tb\nc", "\x00\x7f", "x" * 500]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(CAPTIONS, vocab_size=320)


def test_tokens_begin_and_end_and_are_padded(tokenizer: Tokenizer) -> None:
    tokens, mask = tokenizer.encode(["A dog", "Two dogs are running ."], context_length=16)
    assert tokens.shape == mask.shape == (2, 16) and tokens.dtype == torch.int64 and mask.dtype == torch.bool
    for row, real in zip(tokens.tolist(), mask.tolist(), strict=True):
        length = sum(real)
        assert real == [True] * length + [False] * (16 - length)
        assert row[0] == START and row[length - 1] == END and row[length:] == [PAD] * (16 - length)
    assert int(tokens.max()) < tokenizer.size <= 320


def test_a_long_caption_loses_its_tail_but_not_its_end_token(tokenizer: Tokenizer) -> None:
    long = "two dogs and a man " * 10
    whole, _ = tokenizer.encode([long], context_length=200)
    cut, mask = tokenizer.encode([long], context_length=8)
    assert cut[0].tolist() == [*whole[0, :7].tolist(), END] and mask.all()


@pytest.mark.parametrize("text", CAPTIONS[:4] + STRANGE)
def test_decoding_gives_the_lower_cased_caption_back(tokenizer: Tokenizer, text: str) -> None:
    tokens, _ = tokenizer.encode([text], context_length=600)
    assert tokenizer.decode(tokens[0].tolist()) == " ".join(text.replace("e\u0301", "é").lower().split())


def test_special_words_written_in_a_caption_are_plain_text(tokenizer: Tokenizer) -> None:
    tokens, mask = tokenizer.encode(["a [PAD] b [END]"], context_length=40)
    inner = tokens[0, 1 : int(mask.sum()) - 1]
    assert not torch.isin(inner, torch.tensor([PAD, START, END])).any()


def test_capitals_make_no_difference(tokenizer: Tokenizer) -> None:
    upper, _ = tokenizer.encode(["A DOG RUNS"], 16)
    lower, _ = tokenizer.encode(["a dog runs"], 16)
    assert torch.equal(upper, lower)


def test_training_is_deterministic_and_frequent_words_become_one_token(tokenizer: Tokenizer) -> None:
    assert Tokenizer.train(CAPTIONS, vocab_size=320).to_json() == tokenizer.to_json()
    _, mask = tokenizer.encode(["dog"], 16)
    assert mask.sum() == 3


def test_saving_and_loading_keeps_every_token(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "deep" / "tokenizer.json")
    loaded = Tokenizer.load(tmp_path / "deep" / "tokenizer.json")
    for one, other in zip(tokenizer.encode(CAPTIONS + STRANGE, 32), loaded.encode(CAPTIONS + STRANGE, 32), strict=True):
        assert torch.equal(one, other)
    assert loaded.size == tokenizer.size and [path.name for path in (tmp_path / "deep").iterdir()] == ["tokenizer.json"]


@pytest.mark.parametrize("text", CAPTIONS[:4] + STRANGE[:4])
def test_words_name_their_characters_and_their_tokens(tokenizer: Tokenizer, text: str) -> None:
    words = tokenizer.words(text, context_length=64)
    _, mask = tokenizer.encode([text], context_length=64)
    positions = [position for word in words for position in word.positions]
    assert positions == list(range(1, int(mask.sum()) - 1))  # every token between [START] and [END] belongs to one word, in order
    for word in words:
        assert text[word.start : word.end] == word.text and word.text == word.text.strip() != ""
    assert all(one.end <= other.start for one, other in pairwise(words))


def test_words_are_split_at_spaces_and_punctuation(tokenizer: Tokenizer) -> None:
    words = [word.text for word in tokenizer.words("  A man's dog,  tri-colored!", 64)]
    assert words == ["A", "man", "'s", "dog", ",", "tri", "-", "colored", "!"]


def test_a_words_tokens_decode_to_the_word(tokenizer: Tokenizer) -> None:
    text = "Two zebras, running"
    tokens, _ = tokenizer.encode([text], 64)
    for word in tokenizer.words(text, 64):
        assert tokenizer.decode(tokens[0, list(word.positions)].tolist()) == word.text.lower()


def test_words_beyond_the_context_are_left_out(tokenizer: Tokenizer) -> None:
    assert [word.text for word in tokenizer.words("dog dog dog dog dog", context_length=5)] == ["dog", "dog", "dog"]


@pytest.mark.parametrize("text", ["", "   ", "\n\t"])
def test_an_empty_caption_is_an_error(tokenizer: Tokenizer, text: str) -> None:
    with pytest.raises(InputError, match="caption 1 of 2 is empty"):
        tokenizer.encode(["fine", text], 16)


def test_mistakes_are_named(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="vocab_size=100"):
        Tokenizer.train(CAPTIONS, vocab_size=100)
    assert Tokenizer.train(["a"], SMALLEST_VOCABULARY).size == SMALLEST_VOCABULARY
    with pytest.raises(InputError, match="context_length=2"):
        tokenizer.encode(["a"], 2)
    with pytest.raises(InputError, match=r"none\.json: no such tokenizer file"):
        Tokenizer.load(tmp_path / "none.json")
    for content in ("{}", "no json", '{"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}'):
        (tmp_path / "bad.json").write_text(content)
        with pytest.raises(InputError, match=r"bad\.json: this is no tokenizer"):
            Tokenizer.load(tmp_path / "bad.json")
