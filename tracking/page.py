"""The page of a comparison: figures, curves and sample retrievals put into ``templates/compare.html``, pictures included."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from insight.chart import STYLE, Line, line_chart
from insight.comparison import MEAN_RECALL, RECALLS, Figure, telling_queries
from insight.errors import InputError
from insight.metrics import DIRECTIONS
from insight.query_ranks import QueryRanks
from tracking.past import PastRun
from tracking.reproduce import Difference

CURVES = (
    "train/loss",
    "val/loss",
    "val/mean_recall",
    "val/image_to_text_recall_at_10",
    "val/text_to_image_recall_at_10",
    "train/scale",
    "train/gradient_norm",
    "val/alignment",
    "val/effective_rank_image",
)
JUDGED = (MEAN_RECALL, *RECALLS)  # the figures that have intervals
QUERIES = 3  # of each kind and direction
PICTURES = "pictures"  # key of ranks.json


class Side(NamedTuple):
    """One of the two runs."""

    run: PastRun
    summary: dict[str, Any]
    ranks: QueryRanks | None

    @property
    def seconds(self) -> float:
        return sum(stage.get("seconds", 0.0) for stage in self.summary["stages"])


def render(
    first: Side,
    second: Side,
    figures: list[Figure],
    verdict: str,
    note: str,
    config: list[Difference],
    made: list[Difference],
) -> str:
    """The whole page as text; nothing in it is fetched from elsewhere."""
    environment = Environment(
        loader=FileSystemLoader([Path(__file__).parent / "templates", STYLE.parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    environment.filters["figure"] = lambda value: "–" if value is None else f"{value:.3f}"
    environment.filters["signed"] = lambda value: f"{value:+.3f}".replace("-", "−")
    return environment.get_template("compare.html").render(
        first=first,
        second=second,
        verdict=verdict,
        winner=next((figure.winner for figure in figures if figure.name == MEAN_RECALL), ""),
        note=note,
        rows=[(figure, forest(figure, figures)) for figure in figures if figure.name in JUDGED],
        others=[(figure, None) for figure in figures if figure.name not in JUDGED],
        config=config,
        made=made,
        charts=[chart for chart in (curve(name, first.run, second.run) for name in CURVES) if chart],
        samples=list(samples(first, second)) if first.ranks and second.ranks and not note else [],
    )


def forest(figure: Figure, figures: list[Figure]) -> dict[str, float] | None:
    """Where the interval of a difference lies between the widest of all, in percent from the left; 50 is no difference."""
    found = [other.difference for other in figures if other.difference is not None]
    if figure.difference is None:
        return None
    widest = max(max(abs(one.low), abs(one.high)) for one in found) or 1.0
    low, value, high = (50 + 48 * end / widest for end in (figure.difference.low, figure.difference.value, figure.difference.high))
    return {"low": round(low, 2), "value": round(value, 2), "width": round(high - low, 2)}


def curve(name: str, first: PastRun, second: PastRun) -> tuple[str, str] | None:
    """The name and chart of one metric over all stages of both runs; None where neither has it."""
    lines: list[Line] = []
    marks: dict[str, float] = {}
    for label, style, run in (("A", "a", first), ("B", "b", second)):
        points: list[tuple[float, float]] = []
        begin = 0
        for stage, curves in run.curves.items():
            own = curves.get(name, [])
            points += [(begin + step, value) for step, value in own]
            marks.setdefault(stage.partition("-")[2] or stage, begin)
            begin += 1 + max((steps[-1][0] for steps in curves.values() if steps), default=-1)
        if points:
            lines.append(Line(f"{label} {run.name}", style, points))
    if not lines:
        return None
    return name, line_chart(name, lines, [(begin, stage) for stage, begin in marks.items()])


class Sheet:
    """The small pictures of a run's test, cut out of its contact sheet as data addresses."""

    def __init__(self, folder: Path) -> None:
        layout = json.loads((folder / "ranks.json").read_text()).get(PICTURES, {})
        path = folder / layout.get("file", "test_pictures.jpg")
        self.cell, self.columns, self.count = (layout.get(name, 0) for name in ("cell", "columns", "count"))
        self._sheet = Image.open(path).convert("RGB") if path.is_file() else None
        self._cut: dict[int, str] = {}

    def picture(self, row: int) -> str:
        """``data:image/jpeg;base64,...``, empty where the sheet lacks it."""
        if self._sheet is None or row >= self.count:
            return ""
        if row not in self._cut:
            left, top = row % self.columns * self.cell, row // self.columns * self.cell
            buffer = io.BytesIO()
            self._sheet.crop((left, top, left + self.cell, top + self.cell)).save(buffer, "JPEG", quality=88)
            self._cut[row] = f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
        return self._cut[row]


def samples(first: Side, second: Side) -> Iterable[dict[str, Any]]:
    """By direction and kind: each query with what both models brought first."""
    if first.ranks is None or second.ranks is None:
        raise InputError("samples need the ranks of both runs")
    sheet = Sheet(first.run.folder)
    picture_C = first.ranks.picture_C.tolist()
    for direction in DIRECTIONS[::-1]:  # pictures are quicker to see than captions
        to_image = direction == "text_to_image"
        chosen = telling_queries(first.ranks, second.ranks, direction, QUERIES)
        for kind, queries in chosen.items():
            rows = []
            for query in queries:
                own = picture_C[query.row] if to_image else query.row
                answers = []
                for side, rank in ((first, query.first_rank), (second, query.second_rank)):
                    assert side.ranks is not None
                    found = side.ranks.best[direction][query.row].tolist()
                    items = [
                        {
                            "right": (row if to_image else picture_C[row]) == own,
                            "picture": sheet.picture(row) if to_image else "",
                            "text": side.ranks.filenames[row] if to_image else side.ranks.texts[row],
                        }
                        for row in found
                    ]
                    answers.append({"rank": rank, "answers": items})
                text = first.ranks.texts[query.row] if to_image else first.ranks.filenames[query.row]
                rows.append({"text": text, "picture": sheet.picture(own), "sides": answers})
            if rows:
                yield {"direction": direction, "kind": kind, "queries": rows}
