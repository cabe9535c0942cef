"""The errors that end a run with one message: what happened, where, and what to do."""

from __future__ import annotations

import sys


class InputError(ValueError):
    """A mistake in what the user gave (a key, a file, a value). The message names it and says what would be right."""


class TrainingFailure(RuntimeError):
    """Training cannot go on (a loss that is not a number). The message names the step and the examples."""


class Pruned(RuntimeError):
    """A trial of a sweep is ended early, on purpose: others were better by then."""


class TrialFailed(Exception):
    """A trial of Hydra's multirun has ended with the exit code ``args[0]``, and said why. Hydra raises it after the other trials."""


def report(error: Exception, full: bool) -> int:
    """Print one message, or with ``full`` raise, so that the traceback shows. Returns the exit code: 2 = the user's to mend."""
    if full:
        raise error
    sys.stderr.write(f"\nerror: {error}\n")
    return 1 if isinstance(error, TrainingFailure) else 2
