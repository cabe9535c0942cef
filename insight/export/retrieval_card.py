"""Results and failures of a retrieval test, for the model card: recalls with their intervals, and the worst queries."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from insight.export.card import table
from insight.metrics import DIRECTIONS, RECALL_AT, chance_recall
from insight.query_ranks import QueryRanks, recall_interval, worst

WORST = 5  # queries of each direction on the card


def retrieval_results(ranks: QueryRanks, test: Mapping[str, float]) -> str:
    """As Markdown.

    Args:
        ranks: Of every query of the test.
        test: Figures of the test by name.
    """
    counts = torch.bincount(ranks.picture_C, minlength=len(ranks.filenames)).tolist()
    chance, rows = chance_recall(len(counts), counts), []
    for direction in DIRECTIONS:
        for name in (f"{direction}_recall_at_{k}" for k in RECALL_AT):
            found = recall_interval(ranks, f"test/{name}")
            others = (test.get(f"test/{prefix}{name}") for prefix in ("reranked_", "baseline/colour_histogram/"))
            beside = [*("-" if value is None else f"{value:.3f}" for value in others), f"{chance[name]:.3f}"]
            rows.append([f"test/{name}", f"{found.value:.3f}", f"{found.low:.3f} to {found.high:.3f}", *beside])
    rest = (name for name in sorted(test) if name.startswith("test/") and "_recall_at_" not in name and "/baseline/" not in name)
    more = [[name, f"{test[name]:.3f}"] for name in rest]
    return (
        f"Test split: {len(ranks.filenames):,} pictures, {len(ranks.captions):,} captions. Recall is the fraction of queries "
        "with a right answer among the first k; the interval is 95 % bootstrap over pictures.\n\n"
        + table(["metric", "this model", "95 % interval", "re-ranked", "colour histogram", "chance"], rows)
        + ("\n\n" + table(["other figures", ""], more) if more else "")
    )


def retrieval_failures(ranks: QueryRanks) -> str:
    """The worst queries of each direction, as Markdown."""
    parts = []
    for direction in DIRECTIONS:
        title, misses = direction.replace("_", " "), worst(ranks, direction, WORST)
        if not misses:
            parts.append(f"{title}: every query of the test split found its answer first.")
            continue
        rows = [[miss.rank, miss.query, miss.found, miss.right] for miss in misses]
        parts.append(f"The worst queries, {title}:\n\n" + table(["rank", "query", "found first", "right"], rows))
    return "\n\n".join(parts)
