"""Texts by a language model: how they begin, and by which search or lots they go on."""

from __future__ import annotations

import dataclasses

from insight.data.language import TextCodec
from insight.errors import InputError
from insight.generation import Generated, Sampling, beam_search, generate
from insight.models.language_model import LanguageModel, LanguageReader


@dataclasses.dataclass(frozen=True)
class Writing:
    """What to write; every field is a word of the command line too.

    Args:
        prompt: How the text begins; empty: from nothing.
        num: How many texts, by lot.
        max_new_tokens: Longest continuation; null: as far as the context reaches.
        temperature: Divides the logits; 0 takes the most probable token (greedy).
        top_k: Draw among so many of the most probable tokens; null: among all.
        top_p: Draw among the fewest most probable tokens that together have this probability.
        beams: Search by so many beams instead of drawing; 0: draw.
        length_penalty: Of the beams: log-probability / length ** this wins.
        seed: Of the lots.
    """

    prompt: str = ""
    num: int = 1
    max_new_tokens: int | None = None
    temperature: float = 0.8
    top_k: int | None = None
    top_p: float = 0.95
    beams: int = 0
    length_penalty: float = 1.0
    seed: int = 0


def write_texts(model: LanguageModel, codec: TextCodec, wanted: Writing) -> list[str]:
    """Whole texts, prompts included. The model is in evaluation mode, and no gradient is asked for.

    Raises:
        InputError: a prompt that is too long for the context, or a setting out of range.
    """
    if wanted.num < 1:
        raise InputError(f"num={wanted.num}: must be at least 1")
    prompt = [codec.start, *codec.ids([wanted.prompt])[0]]
    most = wanted.max_new_tokens if wanted.max_new_tokens is not None else max(1, model.context_length - len(prompt))
    device = model.classes.device
    if wanted.beams:
        found: Generated = beam_search(LanguageReader(model), [prompt], most, codec.end, wanted.beams, wanted.length_penalty, device)
    else:
        sampling = Sampling(wanted.temperature, wanted.top_k, wanted.top_p)
        found = generate(LanguageReader(model), [prompt] * wanted.num, most, codec.end, sampling, wanted.seed, device)
    return [codec.decode([*prompt, *tokens]) for tokens in found.tokens]
