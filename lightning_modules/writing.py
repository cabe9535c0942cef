"""Texts by a run's language model: ``python -m lightning_modules.cli generate --config RUN/config.yaml --prompt "a red circle"``."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from jsonargparse import ArgumentError, ArgumentParser

from insight.data.language import TextCodec
from insight.errors import InputError
from insight.generation import Generated, Sampling, beam_search, generate
from insight.interpret.untouched import evaluating
from insight.models.language_model import LanguageModel, LanguageReader
from lightning_modules.drive import best_of, hush, say
from lightning_modules.engine_cli import EngineCLI, shorten
from lightning_modules.results import load_weights


@dataclasses.dataclass(frozen=True)
class Writing:
    """What to write; every field is a word of the command line.

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


def read_writing(words: dict[str, str]) -> Writing:
    """
    Raises:
        InputError: a value of another type.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Writing, "write")
    try:
        return parser.instantiate(parser.parse_args([f"--write.{name}={word}" for name, word in words.items()])).write
    except ArgumentError as error:
        raise InputError(shorten(str(error)).replace("write.", "--")) from error


def write_texts(cli: EngineCLI, config_path: str | None, checkpoint: str | None, wanted: Writing) -> int:
    """Print the texts. Returns the exit code.

    Raises:
        InputError: no language model, no weights, a prompt that is too long for the context, a setting out of range.
    """
    hush()
    model = cli.model.model
    if not isinstance(model, LanguageModel):
        raise InputError(f"generate: a {type(model).__name__} writes no text; give the config of a run of +experiment=language_model")
    run_dir = Path(config_path).parent if config_path else None
    path = Path(checkpoint) if checkpoint else best_of(run_dir, "generate")
    load_weights(cli.model, path, cli.datamodule)
    for text in continued(model, cli.datamodule.codec, wanted):
        say(text)
    return 0


def continued(model: LanguageModel, codec: TextCodec, wanted: Writing) -> list[str]:
    """Whole texts, prompts included."""
    if wanted.num < 1:
        raise InputError(f"--num {wanted.num}: must be at least 1")
    prompt = [codec.start, *codec.ids([wanted.prompt])[0]]
    most = wanted.max_new_tokens if wanted.max_new_tokens is not None else max(1, model.context_length - len(prompt))
    with evaluating(model):
        if wanted.beams:
            found: Generated = beam_search(LanguageReader(model), [prompt], most, codec.end, wanted.beams, wanted.length_penalty)
        else:
            sampling = Sampling(wanted.temperature, wanted.top_k, wanted.top_p)
            found = generate(LanguageReader(model), [prompt] * wanted.num, most, codec.end, sampling, wanted.seed)
    return [codec.decode([*prompt, *tokens]) for tokens in found.tokens]
