"""The points of size against loss as a table."""

from __future__ import annotations

from collections.abc import Sequence

from octavo.core.scoring.front import FrontPoint

from . import text
from .tables import TextTable, table


def loss(point: FrontPoint) -> str:
    """Return what a point is believed to lose, or a dash."""
    return "-" if point.loss is None else f"{point.loss:.3g}"


def verdict(point: FrontPoint) -> str:
    """Return what was found of the goal at a point, or a dash where nothing was measured."""
    if point.passed is None:
        return "-"
    return "reached" if point.passed else "missed"


def front_table(points: Sequence[FrontPoint]) -> TextTable:
    """Return one row a point.

    Args:
        points: By size.
    """
    metrics = tuple(dict.fromkeys(name for p in points for name in p.scores))
    rows: list[tuple[object, ...]] = []
    for place, point in enumerate(points):
        scores = [_score(point, name) for name in metrics]
        rows.append(
            (
                place,
                point.name,
                text.size(point.size),
                f"{point.share:.3f}",
                f"{point.bits:.3f}",
                loss(point),
                *scores,
                verdict(point),
                "yes" if point.unbeaten else "",
            )
        )
    figures = ("size", "of float", "bits", "believed loss", *metrics)
    columns = ("#", "point", *figures, "goal", "unbeaten")
    return table(
        columns,
        rows,
        title=f"{len(points)} points of size against loss",
        right=("#", *figures),
        least=("goal", *reversed(metrics), "of float"),
    )


def _score(point: FrontPoint, metric: str) -> str:
    found = point.scores.get(metric)
    return "-" if found is None else f"{found:.5g}"


__all__ = ["front_table", "loss", "verdict"]
