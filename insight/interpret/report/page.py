"""The report as one page: sections put into ``report.html``, pictures included; nothing in it is fetched from elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from insight.chart import STYLE
from insight.errors import InputError
from insight.interpret.draw_methods import HIGHEST
from insight.interpret.report.figures import card, curves, drift, method_styles, recalls
from insight.interpret.report.files import RunFiles
from insight.interpret.report.maps import Amount, films, findings, methods, retrievals, words
from insight.interpret.report.panels import Photos, gradient
from insight.interpret.search import WITHIN

MAX_BYTES = 2_000_000
AMOUNTS = (  # the first whose page is not too large
    Amount(),
    Amount(retrievals=4, phrases=3, examples=4, words=10, films=2, epochs=8, findings=6, quality=75),
    Amount(retrievals=2, phrases=2, examples=2, words=6, films=1, epochs=5, findings=3, quality=60),
)


def render(run: RunFiles, max_bytes: int = MAX_BYTES) -> str:
    """The whole page as text, at most ``max_bytes`` in UTF-8: with fewer examples where it would be more.

    Raises:
        InputError: a damaged file of maps; a run of which not even the fewest examples fit.
    """
    for amount in AMOUNTS:
        page = _page(run, amount)
        if len(page.encode()) <= max_bytes:
            return page
    raise InputError(f"{run.name}: even with the fewest examples the page has more than {max_bytes:,} bytes")


def _page(run: RunFiles, amount: Amount) -> str:
    photos = Photos(amount.quality)
    layer, word_rows = words(run, photos, amount)
    columns, lines = recalls(run)
    scored = [stage for stage in run.stages if stage.scored]
    sections: dict[str, Any] = {
        "run": run,
        "recall_columns": columns,
        "recalls": lines,
        "retrievals": retrievals(run.search, run.num_pictures, photos, amount) if run.search else None,
        "cards": [found for found in map(card, run.stages) if found],
        "curves": curves(run),
        "styles": method_styles(run),
        "methods": methods(scored[-1], photos, amount) if scored else [],
        "last_scored": scored[-1].name if scored else "",
        "layer": layer,
        "words": word_rows,
        "films": films(run, photos, amount),
        "findings": findings(run.search, photos, amount) if run.search else None,
        "drift": drift(run),
        "highest": HIGHEST,
        "within": WITHIN,
    }
    environment = Environment(
        loader=FileSystemLoader([Path(__file__).parent, STYLE.parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = Markup(photos.style())  # base64 of our own pictures
    return environment.get_template("report.html").render(**sections, photo_style=style, gradient=Markup(gradient()))
