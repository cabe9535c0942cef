"""``python -m insight.interpret.report RUN_FOLDER [--output FILE]``: what a finished run's model looks at, as one page.

Exit codes: 0 written, 2 a mistake in what was asked.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from insight.interpret.maps import write_atomically
from insight.interpret.report.files import read_run
from insight.interpret.report.page import render


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m insight.interpret.report", description="What a finished run's model looks at, as one page that needs nothing else."
    )
    parser.add_argument("run", type=Path, help="folder of a run, e.g. outputs/latest")
    parser.add_argument("--output", type=Path, help="where the page goes; by default RUN/report.html")
    options = parser.parse_args(arguments)
    try:
        page = render(read_run(options.run))
        path = options.output or options.run / "report.html"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda temporary: temporary.write_text(page, encoding="utf-8"))
    except (ValueError, OSError) as error:  # InputError is a ValueError
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return 2
    sys.stdout.write(f"page: {path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
