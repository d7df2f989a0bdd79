"""The report's chart of size against believed loss: every size that the search can tell of."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

from octavo.core.report import text
from octavo.core.report.front_table import loss, verdict
from octavo.core.report.model import ReportData
from octavo.core.scoring.front import FrontPoint

from .axes import Axis, axis_of
from .plots import Line, Look, Mark, Plot

_LOOKS: Mapping[str, Look] = {
    "believed": Look("circle", "s0", False, "least believed loss, not measured"),
    "uniform": Look("square", "s1", False, "one width for every op"),
}
_PASSES = Look("diamond", "s2", False, "trial, reaches the goal")
_MISSES = Look("diamond", "s2", True, "trial, does not")

_WIDTHS = {"believed": 10.0, "uniform": 14.0, "trial": 14.0}
"""Of the marks, in pixels."""


def size_against_loss(data: ReportData) -> Plot | None:
    """Return the points of a run by size and believed loss.

    Their place on the axes is a logarithm where they span much. The float model, which loses
    nothing, has no place on it.

    Args:
        data: The run.

    Returns:
        The chart; None where fewer than two points have a believed loss.
    """
    every = enumerate(data.front)
    shown = [(row, point) for row, point in every if point.loss]
    if len(shown) < 2:
        return None
    points = [point for _, point in shown]
    sizes = [point.size for point in points]
    x = axis_of("size (less is better)", sizes, may_be_log=True, label=text.size)
    losses = [point.loss for point in points if point.loss]
    kind = next((p.sensitivity for p in points if p.sensitivity), "")
    told = f"believed loss: {kind}, summed over the ops (less is better)"
    y = axis_of(told, losses, may_be_log=True)
    return Plot(
        name="front",
        title="Size against loss",
        description=_described(points),
        x=x,
        y=y,
        marks=[_mark(data, point, row, x, y) for row, point in shown],
        lines=_segments(points, x, y),
        notes=_notes(data),
        leads="Every mark leads to its row in the table below it.",
        line="the least loss of each size",
    )


def _described(points: list[FrontPoint]) -> str:
    counts = {
        "trials": sum(point.kind == "trial" for point in points),
        "believed points": sum(point.kind == "believed" for point in points),
        "uniform widths": sum(point.kind == "uniform" for point in points),
    }
    told = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    return f"{told}, by the size of the file."


def _notes(data: ReportData) -> list[str]:
    unknown = [point for point in data.front if point.loss is None]
    if not unknown:
        return []
    some = "One trial has" if len(unknown) == 1 else f"{len(unknown)} trials have"
    return [f"{some} no believed loss and no mark: the table has the scores."]


def _mark(data: ReportData, point: FrontPoint, row: int, x: Axis, y: Axis) -> Mark:
    assert point.loss is not None
    best = data.best
    return Mark(
        x=x.at(point.size),
        y=100 - y.at(point.loss),
        look=_look(point),
        target=f"front-{row}",
        told=_told(data, point),
        width=_WIDTHS[point.kind],
        is_best=best is not None
        and point.kind == "trial"
        and point.trial == best.number,
    )


def _look(point: FrontPoint) -> Look:
    if point.kind == "trial":
        return _PASSES if point.passed else _MISSES
    return _LOOKS[point.kind]


def _told(data: ReportData, point: FrontPoint) -> tuple[str, ...]:
    """Return what hovering over a point's mark tells, line by line."""
    measured = f"trial {point.trial}, goal {verdict(point)}"
    lines = [
        point.name if point.kind != "trial" else measured,
        f"size {text.size(point.size)} ({point.share:.3g} of float)",
        f"{point.bits:.4g} bits a weight",
        f"believed loss {loss(point)}",
    ]
    if data.metric in point.scores:
        lines.append(f"{data.metric} {point.scores[data.metric]:.5g}")
    if point.kind == "uniform" and point.trial is not None:
        lines.append(f"measured as {measured}")
    return tuple(lines)


def _segments(points: list[FrontPoint], x: Axis, y: Axis) -> list[Line]:
    """Return the segments through the points that no other one beats."""
    places = [
        (x.at(point.size), 100 - y.at(point.loss))
        for point in points
        if point.unbeaten and point.loss
    ]
    return [(*one, *other) for one, other in pairwise(places)]


__all__ = ["size_against_loss"]
