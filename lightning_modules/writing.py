"""Texts by a run's language model: ``python -m lightning_modules.cli generate --config RUN/config.yaml --prompt "a red circle"``."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentError, ArgumentParser

from insight import continuations
from insight.continuations import Writing
from insight.errors import InputError
from insight.interpret.untouched import evaluating
from insight.models.language_model import LanguageModel
from lightning_modules.drive import best_of, hush, say
from lightning_modules.engine_cli import EngineCLI, shorten
from lightning_modules.results import load_weights


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
    with evaluating(model):
        texts = continuations.write_texts(model, cli.datamodule.codec, wanted)
    for text in texts:
        say(text)
    return 0
