"""The errors that end a run with one message: what happened, where, and what to do."""


class InputError(ValueError):
    """A mistake in what the user gave (a key, a file, a value). The message names it and says what would be right."""


class TrainingFailure(RuntimeError):
    """Training cannot go on (a loss that is not a number). The message names the step and the examples."""
