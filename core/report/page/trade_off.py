"""The report's chart of what trials cost and score."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from octavo.core.report import text
from octavo.core.report.front import front, is_best
from octavo.core.report.model import ReportData
from octavo.core.values.trial import Measurement, Trial

from .axes import Axis, axis_of
from .plots import SERIES, SHAPES, Level, Line, Look, Mark, Plot

FAR = 1.5
"""How many times the range of what passes the goal, or a trial that misses it, may lie away before
the axis leaves it out. Stretched further, an axis would press all that passes into one line."""

SMALLEST = 9.0
LARGEST = 20.0
"""Widths of a mark in pixels, of the smallest and the largest model."""

Point = tuple[float, float]


def score_axis(data: ReportData, trials: Sequence[Trial]) -> Axis:
    """Return an axis of scores that fits what passes.

    It holds the goal, and trials that miss it, where these are near.

    Args:
        data: The run.
        trials: Which are drawn, the float model among them.
    """
    scores = [t.metrics[data.metric] for t in trials]
    core = [t.metrics[data.metric] for t in trials if t.passed or not t.number]
    if len(set(core)) < 2:
        core = scores
    low, high = min(core), max(core)
    reach = FAR * (high - low)
    others = [score for score in scores if score not in core]
    if data.bound is not None:
        others.append(data.bound)
    near = [score for score in others if low - reach <= score <= high + reach]
    more = "more" if data.higher_is_better else "less"
    return axis_of(f"{data.metric} ({more} is better)", [*core, *near])


def level_notes(data: ReportData, axis: Axis, trials: Sequence[Trial]) -> list[str]:
    """Return what is said of what lies beyond the ends of a score axis."""
    notes = []
    bound = data.bound
    if bound is not None and not axis.holds(bound):
        side = "below" if bound < axis.low else "above"
        notes.append(f"The goal, {bound:.5g}, lies {side} this axis.")
    beyond = [t for t in trials if not axis.holds(t.metrics[data.metric])]
    if beyond:
        some = f"{len(beyond)} trials lie" if len(beyond) > 1 else "One trial lies"
        notes.append(
            f"{some} beyond this axis and {'are' if len(beyond) > 1 else 'is'} drawn at its end."
        )
    return notes


def told(data: ReportData, trial: Trial) -> tuple[str, ...]:
    """Return what hovering over a trial's mark tells, line by line."""
    name = f"trial {trial.number}" if trial.number else "float model"
    if data.best is not None and trial.number == data.best.number:
        name += ", the best"
    if trial.recipe.backend:
        name += f", on {trial.recipe.backend}"
    lines = [name, f"{data.metric} {text.score(trial, data.metric)}"]
    for objective, measurement in trial.objectives.items():
        lines.append(f"{objective} {text.pair(measurement)}")
    if trial.number and not trial.passed:
        lines.append("does not reach the goal")
    return tuple(lines)


def levels(data: ReportData, axis: Axis) -> list[Level]:
    """Return the lines of a score axis: the goal's, where it lies on it."""
    if data.bound is None or not axis.holds(data.bound):
        return []
    return [Level(100 - axis.at(data.bound), "good", "goal")]


@dataclass(frozen=True)
class _TradeOff:
    """Trials by what they cost and score.

    Attributes:
        data: The run.
        objective: What is on the horizontal axis.
    """

    data: ReportData
    objective: str

    @cached_property
    def shown(self) -> list[Trial]:
        """The float model and the trials that have both numbers."""
        trials = (self.data.baseline, *self.data.completed)
        return [trial for trial in trials if self._has_place(trial)]

    def _has_place(self, trial: Trial) -> bool:
        cost = trial.objectives.get(self.objective)
        score = trial.metrics.get(self.data.metric, math.nan)
        return cost is not None and math.isfinite(cost.value) and math.isfinite(score)

    @cached_property
    def searched(self) -> list[Trial]:
        """What is shown, without the float model."""
        return [trial for trial in self.shown if trial.number]

    @cached_property
    def is_relative(self) -> bool:
        """True if all trials are shown as shares of the float model.

        Ratios are taken in one interleaved run, so they can be compared across trials when the
        machine's speed drifts.
        """
        return all(self.cost(trial).ratio is not None for trial in self.searched)

    def cost(self, trial: Trial) -> Measurement:
        """Return what is measured of a trial, as the axis shows it."""
        return trial.objectives[self.objective]

    def figures(self, trial: Trial) -> tuple[float, float, float]:
        """Return (cost, its lower end, its upper end) in the unit of the axis."""
        measured = self.cost(trial)
        if not self.is_relative:
            return measured.value, measured.low, measured.high
        if not trial.number:
            return 1.0, 1.0, 1.0
        share = measured.relative
        return share.value, share.low, share.high

    @cached_property
    def x(self) -> Axis:
        """The horizontal axis."""
        unit = self.cost(self.shown[0]).unit
        costs = [self.figures(trial)[0] for trial in self.shown]
        less = "less is better"
        if self.cost(self.shown[0]).lower_is_better is False:
            less = "more is better"
        if self.is_relative:
            name = f"{self.objective}, share of the float model's ({less})"
            return axis_of(name, costs, may_be_log=True)
        label = text.size if unit == "bytes" else None
        measure = f" in {unit}" if unit and label is None else ""
        name = f"{self.objective}{measure} ({less})"
        return axis_of(name, costs, may_be_log=True, label=label)

    @cached_property
    def y(self) -> Axis:
        """The vertical axis."""
        return score_axis(self.data, self.shown)

    def place(self, trial: Trial) -> Point:
        """Return a trial's place in percent, from the left and from the top."""
        score = trial.metrics[self.data.metric]
        return self.x.at(self.figures(trial)[0]), 100 - self.y.at(score)

    @cached_property
    def _largest(self) -> float:
        sizes = [t.objectives["size"].value for t in self.shown if _has_size(t)]
        return max(sizes, default=0.0)

    def width(self, trial: Trial) -> float:
        """Return how wide a mark is: its area follows the size of the model's file."""
        if not _has_size(trial) or self._largest <= 0:
            return 13.0
        share = trial.objectives["size"].value / self._largest
        return SMALLEST + (LARGEST - SMALLEST) * math.sqrt(max(share, 0.0))

    def look(self, trial: Trial) -> Look:
        """Return a trial's look: a shape and a colour for its backend, hollow where it misses
        the goal."""
        if not trial.number:
            return Look("cross", "ink", False, "float model")
        index = self._backends.index(trial.recipe.backend) % SERIES
        verdict = "reaches the goal" if trial.passed else "does not"
        label = f"{trial.recipe.backend or 'trial'}, {verdict}"
        return Look(SHAPES[index], f"s{index}", not trial.passed, label)

    @cached_property
    def _backends(self) -> list[str]:
        return sorted({trial.recipe.backend for trial in self.searched})

    def mark(self, trial: Trial) -> Mark:
        """Return a trial's mark."""
        x, y = self.place(trial)
        _, low, high = self.figures(trial)
        spread = None
        if low < high < math.inf:
            spread = (self.x.at(low), self.x.at(high))
        return Mark(
            x,
            y,
            self.look(trial),
            f"trial-{trial.number}",
            told(self.data, trial),
            self.width(trial),
            spread,
            is_best(self.data, trial),
        )

    @cached_property
    def front(self) -> list[Trial]:
        """Passing trials that no other one beats in this chart, from the cheapest on; the best is
        always one of them."""
        return front(self.data, self.searched, lambda trial: self.figures(trial)[0])

    @property
    def beaten_by(self) -> list[Trial]:
        """Trials that beat the best in both of this chart's figures; it beats them in another, or
        ties with them."""
        best = next((t for t in self.searched if is_best(self.data, t)), None)
        if best is None:
            return []
        cost = self.figures(best)[0]
        score = best.metrics[self.data.metric]
        sign = 1 if self.data.higher_is_better else -1
        found = []
        for trial in self.front:
            more = sign * (trial.metrics[self.data.metric] - score)
            less = cost - self.figures(trial)[0]
            if trial is not best and more >= 0 and less >= 0:
                found.append(trial)
        return found


def _has_size(trial: Trial) -> bool:
    found = trial.objectives.get("size")
    return found is not None and math.isfinite(found.value)


def trade_off(data: ReportData, objective: str) -> Plot | None:
    """Score against one objective, a mark's area the size of the saved model; one shape a backend.

    Args:
        data: The run.
        objective: What the horizontal axis shows.

    Returns:
        The chart; None where no trial has both numbers.
    """
    plot = _TradeOff(data, objective)
    if len(plot.shown) < 2 or plot.shown[0].number:
        return None
    title = f"{data.metric} and {objective} of every trial"
    if "size" in data.baseline.objectives and objective != "size":
        title = f"{data.metric}, {objective} and size of every trial"
    return Plot(
        name="trade-off",
        title=title,
        description=_described(plot),
        x=plot.x,
        y=plot.y,
        marks=[plot.mark(trial) for trial in plot.shown],
        levels=levels(data, plot.y),
        lines=_segments([plot.place(trial) for trial in plot.front]),
        notes=_notes(plot),
    )


def _segments(points: Sequence[Point]) -> list[Line]:
    return [(*one, *other) for one, other in pairwise(points)]


def _notes(plot: _TradeOff) -> list[str]:
    notes = level_notes(plot.data, plot.y, plot.shown)
    others = plot.beaten_by
    if others:
        numbers = ", ".join(f"#{trial.number}" for trial in others)
        verb = "lie" if len(others) > 1 else "lies"
        notes.append(
            f"{numbers} {verb} ahead of the best here, within what is a tie or behind it in what "
            "this chart does not show."
        )
    left_out = len(plot.data.completed) - len(plot.searched)
    if left_out:
        notes.append(f"{left_out} trials have no finite figure and are not drawn.")
    return notes


def _described(plot: _TradeOff) -> str:
    data = plot.data
    both = f"{data.metric} against {plot.objective}"
    said = f"{both} of {len(plot.searched)} trials and the float model."
    if data.best is None:
        return said
    cost = text.pair(data.best.objectives.get(plot.objective))
    return f"{said} The best, trial {data.best.number}, takes {cost}."
