"""What a sweep says of its trials: a table, a picture, the command that trains with the best."""

from __future__ import annotations

import io
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from lightning_modules.settings import Sweep, Value
from lightning_modules.space import word
from lightning_modules.study import TrialRow, best_row

COLOURS = {"complete": "#1f77b4", "pruned": "#b0b0b0", "failed": "#d62728", "running": "#ff7f0e"}
PANELS_PER_LINE = 4


def trial_words(sweep: Sweep, values: dict[str, Value]) -> list[str]:
    """A trial's values as words of the command line."""
    return [word(dimension.key, values[name]) for name, dimension in sweep.space.items()]


def train_command(overrides: Sequence[str], sweep: Sweep, row: TrialRow) -> str:
    """The command that trains, tests and releases a model with a trial's values: the sweep's own words without the sweep."""
    kept = [one for one in overrides if not is_sweep_word(one)]
    return shlex.join(["python", "train.py", *kept, *trial_words(sweep, row.values)])


def is_sweep_word(override: str) -> bool:
    """Whether a word of the command line is about the sweep alone.

    >>> is_sweep_word("+sweep=rates"), is_sweep_word("sweep.num_trials=3"), is_sweep_word("seed_everything=1")
    (True, True, False)
    """
    key = override.lstrip("+~").partition("=")[0]
    return key == "sweep" or key.startswith("sweep.")


def trial_table(sweep: Sweep, rows: Sequence[TrialRow]) -> str:
    """All trials in order; the best is marked."""
    best = best_row(list(rows), sweep.mode)
    title = f"sweep {sweep.name}: {sweep.metric} ({sweep.mode} is best)"
    table = Table(title=title, title_justify="left")
    for column in ("trial", *sweep.space, sweep.metric, "", "validations"):
        table.add_column(column, justify="left" if not column else "right")
    for row in rows:
        mark = " *" if best is not None and row.number == best.number else ""
        value = "-" if row.value is None else f"{row.value:.4f}"
        state = f"{row.state}{mark}" + (f": {shorten(row.reason)}" if row.state == "failed" and row.reason else "")
        table.add_row(str(row.number), *(shown(row.values.get(name)) for name in sweep.space), value, state, str(len(row.curve)))
    out = io.StringIO()
    Console(file=out, width=150, force_terminal=False).print(table)
    return out.getvalue().rstrip()


def shown(value: Value) -> str:
    """
    >>> shown(0.00012345), shown(3), shown("multimodal")
    ('0.0001234', '3', 'multimodal')
    """
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def shorten(text: str, most: int = 80) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 3]}..."


def trial_facts(sweep: Sweep, rows: Sequence[TrialRow]) -> dict[str, Any]:
    """The same as plain data, for trials.json."""
    best = best_row(list(rows), sweep.mode)
    return {
        "sweep": sweep.name,
        "metric": sweep.metric,
        "mode": sweep.mode,
        "best": None if best is None else best.number,
        "trials": [{**row._asdict(), "keys": {sweep.space[name].key: value for name, value in row.values.items()}} for row in rows],
    }


def draw_trials(sweep: Sweep, rows: Sequence[TrialRow], path: Path) -> None:
    """A PNG: the curve of every trial over its validations, the value by trial, and the value by each dimension."""
    lines = -(-(2 + len(sweep.space)) // PANELS_PER_LINE)
    columns = min(2 + len(sweep.space), PANELS_PER_LINE)
    figure = Figure(figsize=(3.2 * columns, 2.7 * lines), layout="constrained")
    FigureCanvasAgg(figure)
    curves, history, *scatters = [figure.add_subplot(lines, columns, number + 1) for number in range(2 + len(sweep.space))]
    steps = sorted({step for row in rows for step in row.curve})
    for row in rows:
        xs = [steps.index(step) + 1 for step in row.curve]
        curves.plot(xs, list(row.curve.values()), color=COLOURS[row.state], marker="." if len(xs) < 30 else "", linewidth=1)
    curves.set_title("every validation", fontsize=9)
    valued = [row for row in rows if row.value is not None]
    for axes, name in zip([history, *scatters], [None, *sweep.space], strict=True):
        for state, colour in COLOURS.items():
            chosen = [row for row in valued if row.state == state and (name is None or name in row.values)]
            xs_any: list[Any] = [row.number if name is None else _position(row.values[name]) for row in chosen]
            if chosen:
                axes.scatter(xs_any, [row.value or 0.0 for row in chosen], color=colour, s=18, label=state)
        axes.set_title("trial" if name is None else name, fontsize=9)
        if name is not None and sweep.space[name].log:
            axes.set_xscale("log")
    if valued:
        history.legend(fontsize=7)
    for axes in (curves, history, *scatters):
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.3)
    curves.set_ylabel(sweep.metric, fontsize=8)
    figure.savefig(path, dpi=90)


def _position(value: Value) -> float | str:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else str(value)
