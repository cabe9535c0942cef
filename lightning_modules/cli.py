"""The front desk: the commands that work on a saved config.

python -m lightning_modules.cli multistage --config RUN/config.yaml [--model.init_args.embed_dim=256 ...]
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable
from pathlib import Path

from insight.continuations import Writing
from insight.errors import InputError, TrainingFailure, report
from insight.stages import nearest
from lightning_modules.drive import evaluate, run_stages
from lightning_modules.engine_cli import build
from lightning_modules.writing import read_writing, write_texts


def take(arguments: list[str], name: str) -> str | None:
    """Remove ``--name VALUE`` or ``--name=VALUE`` from the arguments and return the value."""
    for position, word in enumerate(arguments):
        if word == f"--{name}" and position + 1 < len(arguments):
            value = arguments[position + 1]
            del arguments[position : position + 2]
            return value
        if word.startswith(f"--{name}="):
            del arguments[position]
            return word.split("=", 1)[1]
    return None


def _multistage(arguments: list[str]) -> int:
    """Train all stages in a new run folder (or go on in --run_dir)."""
    return run_stages(build(arguments))


def _fit(arguments: list[str]) -> int:
    """Train one stage: --stage NAME [--weights CHECKPOINT to start from]."""
    name, weights = take(arguments, "stage"), take(arguments, "weights")
    cli = build(arguments)
    if name is None:
        raise InputError(f"fit needs --stage NAME; the config's stages: {', '.join(cli.plan.names)}")
    if name not in cli.plan.stages:
        raise InputError(f"--stage {name}: no such stage{nearest(name, cli.plan.names)}")
    return run_stages(cli, only=name, weights=Path(weights) if weights else None)


def _evaluate(arguments: list[str], function: str) -> int:
    checkpoint, output = take(arguments, "ckpt_path"), take(arguments, "output")
    cli = build(arguments)
    paths = cli.config.config or [None]  # the last --config is the run's
    return evaluate(cli, function, str(paths[-1]) if paths[-1] else None, checkpoint, output)


def _validate(arguments: list[str]) -> int:
    """Validation metrics of a run's best weights [--ckpt_path CHECKPOINT]."""
    return _evaluate(arguments, "validate")


def _test(arguments: list[str]) -> int:
    """Test metrics of a run's best weights, also on another folder: --data.init_args.root=PATH [--ckpt_path CHECKPOINT]."""
    return _evaluate(arguments, "test")


def _predict(arguments: list[str]) -> int:
    """Embeddings of the test split as safetensors + JSON [--output FOLDER] [--ckpt_path CHECKPOINT]."""
    return _evaluate(arguments, "predict")


def _generate(arguments: list[str]) -> int:
    """Texts by a run's language model: --prompt TEXT [--num 3 --temperature 0.8 --top_k 40 --top_p 0.95 | --beams 4] [--seed 0]."""
    checkpoint = take(arguments, "ckpt_path")
    words = {field.name: take(arguments, field.name) for field in dataclasses.fields(Writing)}
    wanted = read_writing({name: word for name, word in words.items() if word is not None})
    cli = build(arguments)
    paths = cli.config.config or [None]
    return write_texts(cli, str(paths[-1]) if paths[-1] else None, checkpoint, wanted)


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "multistage": _multistage,
    "fit": _fit,
    "validate": _validate,
    "test": _test,
    "predict": _predict,
    "generate": _generate,
}


def main(arguments: list[str]) -> int:
    """The command line; returns the exit code."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: python -m lightning_modules.cli COMMAND --config RUN/config.yaml [--key=value ...]\n\ncommands:")
        for name, command in COMMANDS.items():
            print(f"  {name:<12}{command.__doc__}")
        print("\nCOMMAND --help lists every key of the config; --model.init_args.embed_dim=256 overrides one.")
        return 0
    name, rest = arguments[0], list(arguments[1:])
    try:
        if name not in COMMANDS:
            raise InputError(f"no command '{name}'{nearest(name, COMMANDS)}")
        return COMMANDS[name](rest)
    except (InputError, TrainingFailure, FileNotFoundError) as error:
        return report(error, os.environ.get("HYDRA_FULL_ERROR") == "1")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
