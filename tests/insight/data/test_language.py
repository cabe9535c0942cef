"""Texts as windows of tokens; bytes and words beside Python's own counts."""

from __future__ import annotations

import itertools

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from insight.data.language import END_OF_TEXT, TextCodec, windows
from insight.errors import InputError

TEXTS = ["A dog runs on the grass.", "Two dogs, one ball: été naïve 漢字!", "a [PAD] in a text"]


@pytest.fixture(scope="module")
def codec():
    return TextCodec.train(TEXTS * 3, 300)


def gpt2_like():
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=290, special_tokens=[END_OF_TEXT], initial_alphabet=alphabet))
    return backend


@pytest.mark.parametrize("text", TEXTS)
def test_tokens_stand_for_as_many_bytes_and_words_as_the_text_has(codec, text):
    ids = codec.ids([text])[0]
    plain = text.lower()
    assert codec.decode(ids) == plain
    assert int(codec.byte_counts()[ids].sum()) == len(plain.encode()) + 1  # a space stands before the first word
    assert int(codec.word_starts()[ids].sum()) == len(plain.split())
    assert codec.byte_counts()[[codec.start, codec.end, codec.pad]].tolist() == [0, 0, 0]


@pytest.mark.parametrize("context_length", [2, 3, 5, 40])
def test_windows_name_every_token_once_and_begin_with_the_token_before(codec, context_length):
    ids = codec.ids([TEXTS[1]])[0]
    whole = [codec.start, *ids, codec.end]
    cut = windows(ids, codec, context_length)
    pairs = [pair for window in cut for pair in itertools.pairwise(window)]
    assert pairs == list(itertools.pairwise(whole))
    assert all(len(window) <= context_length for window in cut)


def test_a_gpt2_tokenizer_marks_both_ends_with_its_one_special_token(tmp_path):
    gpt2_like().save(str(tmp_path / "tokenizer.json"))
    codec = TextCodec.load(tmp_path / "tokenizer.json")
    assert codec.start == codec.end == codec.pad == 0
    ids = codec.ids(["A dog"])[0]
    assert codec.decode([0, *ids, 0, 0]) == "A dog" and int(codec.byte_counts()[ids].sum()) == 5
    codec.save(tmp_path / "again.json")
    assert TextCodec.load(tmp_path / "again.json").ids(TEXTS) == codec.ids(TEXTS)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TextCodec.from_json("{}"), "this is no tokenizer JSON"),
        (lambda: TextCodec(tokenizers.Tokenizer(models.BPE())), "neither this project's special tokens nor"),
        (lambda: TextCodec.load("nowhere.json"), "nowhere.json: no such tokenizer file"),
        (lambda: windows([5], TextCodec.train(TEXTS, 260), 1), "context_length=1: must be at least 2"),
    ],
)
def test_what_is_no_tokenizer_is_named(make, message):
    with pytest.raises(InputError, match=message):
        make()
