"""Tokenizers of pretrained text encoders, behind the same interface, and with the same special ids, as this project's own.

V entries, C captions, T token positions. Ids 0..3 are [PAD], [START], [END], [MASK] here too: the library's ids are renumbered, so that
masks, losses and figures need not know whose tokenizer it is. A text tower turns the numbers back (``library_ids``).
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import tokenizers
import torch
from torch import Tensor

from insight.data.siglip_text import HUB, siglip_backend, siglip_files
from insight.data.text import END, MASK, PAD, SPECIAL, START, Tokenizer
from insight.errors import InputError

FORMAT = "library tokenizer, renumbered"


class PretrainedTokenizer(Tokenizer):
    """A fast tokenizer of Hugging Face. Special tokens stand where the library itself puts them.

    Args:
        backend: The tokenizer itself.
        special: Library ids of padding, start, end and mask; None where it has none.
        filled: Whether the padding is text like any other, so that every text has the context's length.
    """

    def __init__(self, backend: tokenizers.Tokenizer, special: Sequence[int | None], filled: bool = False) -> None:
        self._backend, self._filled = backend, filled
        self._special = list(special)
        backend.no_padding()
        backend.no_truncation()
        known = [one for one in self._special if one is not None]
        if not known:
            raise InputError("this tokenizer has no special token at all: give one of a text encoder")
        size = backend.get_vocab_size()
        others = [one for one in range(size) if one not in set(known)]
        self._library_ids = [known[0] if one is None else one for one in self._special] + others
        self._own_id = [0] * size
        for own in [*range(len(SPECIAL), len(self._library_ids)), PAD, MASK, START, END]:  # CLIP pads with its end: that is an end
            if own >= len(SPECIAL) or self._special[own] is not None:
                self._own_id[self._library_ids[own]] = own
        framed, bare = backend.encode("a").ids, backend.encode("a", add_special_tokens=False).ids
        self.added = len(framed) - len(bare)
        self.leading = next(start for start in range(self.added + 1) if framed[start : start + len(bare)] == bare)

    @property
    def library_ids(self) -> list[int]:
        return self._library_ids

    @property
    def size(self) -> int:
        return len(self._library_ids)

    @classmethod
    def from_pretrained(cls, place: str) -> PretrainedTokenizer:
        """A folder that ``save_pretrained`` wrote, or ``hf-hub:OWNER/MODEL``. Needs transformers.

        Raises:
            InputError: nothing there, the hub cannot be reached, or a tokenizer that has no fast form.
        """
        siglip = siglip_files(place)
        if siglip is not None:
            return cls(*siglip_backend(siglip), filled=True)
        try:
            transformers: Any = importlib.import_module("transformers")
            found = transformers.AutoTokenizer.from_pretrained(place.removeprefix(HUB), use_fast=True)
        except ImportError as error:
            raise InputError(f"transformers is not installed ({error}): pip install 'multimodal-insight-engine[pretrained]'") from error
        except (OSError, ValueError, KeyError) as error:
            raise InputError(
                f"tokenizer={place}: not found, or not a tokenizer ({str(error).splitlines()[0]}): give a folder with tokenizer.json, "
                "or go online once"
            ) from error
        backend = getattr(found, "backend_tokenizer", None)
        if backend is None:
            raise InputError(f"tokenizer={place}: {type(found).__name__} has no fast form (tokenizer.json), which is what is read here")
        start = found.bos_token_id if found.cls_token_id is None else found.cls_token_id
        end = found.eos_token_id if found.sep_token_id is None else found.sep_token_id
        return cls(tokenizers.Tokenizer.from_str(backend.to_str()), [found.pad_token_id, start, end, found.mask_token_id])

    def to_json(self) -> str:
        filled = {"filled": True} if self._filled else {}
        values = {"format": FORMAT, "special": self._special, **filled, "backend": json.loads(self._backend.to_str())}
        return json.dumps(values, ensure_ascii=False)

    def encode(self, texts: Sequence[str], context_length: int) -> tuple[Tensor, Tensor]:
        if context_length <= self.added:
            raise InputError(f"context_length={context_length}: must be at least {self.added + 1}, for special tokens and one of text")
        for row, text in enumerate(texts):
            if not text.strip():
                raise InputError(f"caption {row} of {len(texts)} is empty: give it some text")
        tokens_CT = torch.full((len(texts), context_length), PAD, dtype=torch.int64)
        mask_CT = torch.zeros(len(texts), context_length, dtype=torch.bool)
        self._backend.enable_truncation(context_length)
        try:
            encodings = self._backend.encode_batch(list(texts))
        finally:
            self._backend.no_truncation()
        for row, encoding in enumerate(encodings):
            tokens_CT[row, : len(encoding.ids)] = torch.tensor([self._own_id[one] for one in encoding.ids])
            mask_CT[row, : context_length if self._filled else len(encoding.ids)] = True
        return tokens_CT, mask_CT

    def decode(self, ids: Iterable[int]) -> str:
        return self._backend.decode([self._library_ids[one] for one in ids if one >= len(SPECIAL)]).strip()


def read_tokenizer(text: str) -> Tokenizer:
    """What ``to_json`` of either kind wrote.

    Raises:
        InputError: neither.
    """
    try:
        found = json.loads(text)
    except ValueError as error:
        raise InputError(f"this is no tokenizer JSON: {error}") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        return Tokenizer.from_json(text)
    special = found.get("special")
    if not isinstance(special, list) or len(special) != len(SPECIAL) or not all(one is None or type(one) is int for one in special):
        raise InputError("this tokenizer JSON lacks its special tokens: it is damaged")
    try:
        backend = tokenizers.Tokenizer.from_str(json.dumps(found.get("backend")))
    except Exception as error:
        raise InputError(f"this is no tokenizer JSON: {error}") from error
    return PretrainedTokenizer(backend, special, found.get("filled") is True)


def load_tokenizer(place: str | Path) -> Tokenizer:
    """RUN/tokenizer.json; or a folder or ``hf-hub:`` name of a pretrained one.

    Raises:
        InputError: nothing of the kind is there.
    """
    if str(place).startswith(HUB) or Path(place).is_dir():
        return PretrainedTokenizer.from_pretrained(str(place))
    if not Path(place).is_file():
        raise InputError(f"{place}: no such tokenizer file; a run keeps its own as RUN/tokenizer.json")
    try:
        return read_tokenizer(Path(place).read_text(encoding="utf-8"))
    except ValueError as error:  # UnicodeDecodeError is one too
        raise InputError(f"{place}: {error}") from error
