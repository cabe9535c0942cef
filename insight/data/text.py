"""Captions as tokens: byte-level BPE, trained on the training split, shared by training and serving.

C captions, T token positions.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, Self

import tokenizers
import torch
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor

from insight.errors import InputError

PAD, START, END, MASK = 0, 1, 2, 3  # token ids
SPECIAL = ("[PAD]", "[START]", "[END]", "[MASK]")
SMALLEST_VOCABULARY = len(SPECIAL) + 256  # every byte has a token, so that no character is ever unknown


class Word(NamedTuple):
    """One word of a caption, and where its tokens stand."""

    text: str
    start: int  # character span in the caption
    end: int
    positions: tuple[int, ...]  # columns of the (C, T) token matrix


class StoredTokenizer:
    """A tokenizer of Hugging Face and how it is kept: one JSON file."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self._backend = backend

    @classmethod
    def from_json(cls, text: str) -> Self:
        """
        Raises:
            InputError: ``text`` is no tokenizer, or not one of this kind.
        """
        try:
            backend = tokenizers.Tokenizer.from_str(text)
        except Exception as error:
            raise InputError(f"this is no tokenizer JSON: {error}") from error
        return cls(backend)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """
        Raises:
            InputError: no such file, or no tokenizer in it.
        """
        if not Path(path).is_file():
            raise InputError(f"{path}: no such tokenizer file; a run keeps its own as RUN/tokenizer.json")
        try:
            return cls.from_json(Path(path).read_text(encoding="utf-8"))
        except ValueError as error:  # UnicodeDecodeError is one too
            raise InputError(f"{path}: {error}") from error

    def to_json(self) -> str:
        return self._backend.to_str()

    def save(self, path: str | Path) -> None:
        """Atomically."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        temporary.write_text(self.to_json(), encoding="utf-8")
        os.replace(temporary, path)

    @property
    def size(self) -> int:
        """Number of tokens: what the embedding table must hold at least."""
        return self._backend.get_vocab_size()


class Tokenizer(StoredTokenizer):
    """Lower-cased byte-level BPE with [START] and [END] around every caption.

    >>> tokenizer = Tokenizer.train(["A dog runs.", "Two dogs run."], vocab_size=280)
    >>> tokens, mask = tokenizer.encode(["A DOG"], context_length=8)
    >>> tokens.shape, int(tokens[0, 0]), tokenizer.decode(tokens[0].tolist())
    (torch.Size([1, 8]), 1, 'a dog')
    """

    leading, added = 1, 2  # special tokens before the text, and in all

    @property
    def library_ids(self) -> list[int]:
        """Another library's id of each of our token ids, where this is its tokenizer; empty for one of our own."""
        return []

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        for index, word in enumerate(SPECIAL):
            if backend.token_to_id(word) != index:
                raise InputError(f"this is no tokenizer of this project: token {index} is {backend.id_to_token(index)!r}, not {word!r}")
        backend.encode_special_tokens = True  # a caption that holds the characters "[PAD]" is text like any other
        super().__init__(backend)

    @classmethod
    def train(cls, captions: Iterable[str], vocab_size: int) -> Tokenizer:
        """Learn the merges. The same captions give the same tokenizer.

        Raises:
            InputError: ``vocab_size`` has no room for the 256 bytes and the special tokens.
        """
        if vocab_size < SMALLEST_VOCABULARY:
            raise InputError(
                f"vocab_size={vocab_size}: must be at least {SMALLEST_VOCABULARY}, for 256 bytes and {len(SPECIAL)} special tokens"
            )
        backend = tokenizers.Tokenizer(models.BPE())
        backend.normalizer = normalizers.Sequence(
            [normalizers.NFC(), normalizers.Lowercase(), normalizers.Replace(tokenizers.Regex(r"\s+"), " "), normalizers.Strip()]
        )
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=list(SPECIAL),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        backend.train_from_iterator(captions, trainer)
        return cls(backend)

    def encode(self, texts: Sequence[str], context_length: int) -> tuple[Tensor, Tensor]:
        """Captions -> (tokens (C, T) int64, mask (C, T) bool, True = a real token). A long caption loses its tail, never [END].

        Raises:
            InputError: an empty caption, or a ``context_length`` without room for one token.
        """
        if context_length < 3:
            raise InputError(f"context_length={context_length}: must be at least 3 ([START], one token, [END])")
        for row, text in enumerate(texts):
            if not text.strip():
                raise InputError(f"caption {row} of {len(texts)} is empty: give it some text")
        tokens_CT = torch.full((len(texts), context_length), PAD, dtype=torch.int64)
        for row, encoding in enumerate(self._backend.encode_batch_fast(list(texts), add_special_tokens=False)):
            ids = [START, *encoding.ids[: context_length - 2], END]
            tokens_CT[row, : len(ids)] = torch.tensor(ids)
        return tokens_CT, tokens_CT != PAD

    def decode(self, ids: Iterable[int]) -> str:
        """Tokens -> lower-cased text, without [START], [END] and padding."""
        return self._backend.decode([one for one in ids if one >= len(SPECIAL)]).strip()

    def words(self, text: str, context_length: int) -> list[Word]:
        """The words of a caption (punctuation marks count as words) that fit into the context, in order.

        A word whose tail was cut off keeps its whole span and the positions that were left.
        """
        encoding = self._backend.encode(text, add_special_tokens=False)
        columns: dict[int, list[int]] = {}
        for column, word in enumerate(encoding.word_ids):
            if word is not None:  # special tokens belong to no word; there are none here
                columns.setdefault(word, []).append(column)
        words: list[Word] = []
        for found in columns.values():
            kept = tuple(column + self.leading for column in found if column < context_length - self.added)
            start = min(encoding.offsets[column][0] for column in found)
            end = max(encoding.offsets[column][1] for column in found)
            start += len(text[start:end]) - len(text[start:end].lstrip())  # a token begins with the space before its word
            if words and start < words[-1].end:  # one character that lower-casing turned into two
                kept, start = words[-1].positions + kept, words[-1].start
                words.pop()
            if kept and text[start:end].strip():
                words.append(Word(text[start:end], start, end, kept))
        return words
