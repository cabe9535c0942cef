"""Texts for a language model: whole documents cut into windows of tokens, and what their tokens cost in bytes and words.

C windows, T tokens of the batch's longest window.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import tokenizers
import torch
from torch import Tensor

from insight.data.text import END, PAD, START, StoredTokenizer, Tokenizer
from insight.errors import InputError

END_OF_TEXT = "<|endoftext|>"  # GPT-2's one special token: it stands before a text, after it, and for padding
SPACE = "Ġ"  # how byte-level BPE spells the space that begins a word


class TextBatch(NamedTuple):
    """Windows of texts. Every token but a window's first is to be named from those before it."""

    tokens: Tensor  # (C, T) int64
    token_mask: Tensor  # (C, T) bool, True = a real token
    text_id: Tensor  # (C,) int64: index of the window in its split
    texts: tuple[str, ...]  # the windows as text
    names: tuple[str, ...]  # of the documents
    num_named: int  # tokens that are to be named


class TextCodec(StoredTokenizer):
    """Texts to token ids and back: this project's own tokenizer, or a byte-level BPE with GPT-2's end-of-text token.

    Attributes:
        start: Id before every text.
        end: Id after every text.
        pad: Id where a window of a batch has no token.

    >>> codec = TextCodec.train(["A dog runs.", "Two dogs run."], vocab_size=280)
    >>> ids = codec.ids(["a dog"])[0]
    >>> codec.decode(ids), int(codec.byte_counts()[ids].sum()), int(codec.word_starts()[ids].sum())
    ('a dog', 6, 2)
    """

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        super().__init__(backend)
        own = backend.token_to_id("[PAD]") == PAD and backend.token_to_id("[START]") == START and backend.token_to_id("[END]") == END
        end_of_text = backend.token_to_id(END_OF_TEXT)
        if own:
            self.start, self.end, self.pad = START, END, PAD
        elif end_of_text is not None:
            self.start = self.end = self.pad = end_of_text
        else:
            raise InputError(f"this tokenizer has neither this project's special tokens nor {END_OF_TEXT}: give a run's or a GPT-2 one")
        backend.encode_special_tokens = True  # a text that holds the characters "[PAD]" is text like any other

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> TextCodec:
        """This project's own tokenizer, learnt from the texts.

        Raises:
            InputError: ``vocab_size`` is too small for bytes and special tokens.
        """
        return cls.from_json(Tokenizer.train(texts, vocab_size).to_json())

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokens of whole texts, nothing added and nothing cut off."""
        return [encoding.ids for encoding in self._backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Iterable[int]) -> str:
        """Tokens -> text, without special tokens."""
        special = {self.start, self.end, self.pad}
        return self._backend.decode([one for one in ids if one not in special]).strip()

    def byte_counts(self) -> Tensor:
        """(vocabulary,) int64: bytes that each token stands for, the space before a word among them; 0 for special tokens."""
        special = {self.start, self.end, self.pad, *self._backend.get_added_tokens_decoder()}
        spelled = [self._backend.id_to_token(id) or "" for id in range(self.size)]  # byte-level BPE: one character a byte
        return torch.tensor([0 if id in special else len(token) for id, token in enumerate(spelled)])

    def word_starts(self) -> Tensor:
        """(vocabulary,) int64: 1 for a token that begins a word, with the space before it."""
        return torch.tensor([int((self._backend.id_to_token(id) or "").startswith(SPACE)) for id in range(self.size)])


def windows(ids: Sequence[int], codec: TextCodec, context_length: int) -> list[list[int]]:
    """``start ... end`` cut into windows of ``context_length`` tokens. A window begins with the last token of the one before, so that every
    token but the start is to be named exactly once.

    Raises:
        InputError: a ``context_length`` without room for two tokens.

    >>> codec = TextCodec.train(["a b c"], 260)
    >>> windows([10, 11, 12, 13], codec, context_length=3)
    [[1, 10, 11], [11, 12, 13], [13, 2]]
    """
    if context_length < 2:
        raise InputError(f"context_length={context_length}: must be at least 2, a token and the one to be named after it")
    whole = [codec.start, *ids, codec.end]
    return [whole[first : first + context_length] for first in range(0, len(whole) - 1, context_length - 1)]
