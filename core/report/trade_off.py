"""The report's chart of what trials cost and score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from octavo.core.values.trial import Trial

from .drawing import (
    ACCENT,
    FAINT,
    GOOD,
    INK,
    MARKERS,
    SERIES,
    logarithmic,
    new_figure,
    styled,
    to_svg,
)
from .model import ReportData
from .text import measured, size

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Point = tuple[float, float]

WIDE_RANGE = 8
"""Ratio of the dearest trial to the cheapest from which on a linear axis would press most of them
together."""


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
        metric = self.data.metric
        return [
            t for t in trials if self.objective in t.objectives and metric in t.metrics
        ]

    @cached_property
    def is_relative(self) -> bool:
        """True if all trials are shown as shares of the float model.

        Ratios are taken in one interleaved run, so they can be compared across trials when the
        machine's speed drifts.
        """
        searched = [t for t in self.shown if t is not self.data.baseline]
        return all(t.objectives[self.objective].ratio is not None for t in searched)

    @cached_property
    def _largest(self) -> float:
        sizes = [
            t.objectives["size"].value for t in self.shown if "size" in t.objectives
        ]
        return max(sizes, default=1.0)

    def area(self, trial: Trial) -> float:
        """Return the area of a trial's bubble, in square points: its model's size."""
        if "size" not in trial.objectives:
            return 90.0
        return 40 + 360 * trial.objectives["size"].value / self._largest

    def place(self, trial: Trial) -> Point:
        """Return (cost, score)."""
        score = trial.metrics[self.data.metric]
        measurement = trial.objectives[self.objective]
        if not self.is_relative:
            return measurement.value, score
        if trial is self.data.baseline:
            return 1.0, score
        return float(measurement.ratio or 0.0), score

    def group(self, backend: str, passed: bool) -> list[Trial]:
        """Return the searched trials of a backend that pass, or that do not."""
        searched = [t for t in self.shown if t is not self.data.baseline]
        return [
            t for t in searched if t.recipe.backend == backend and t.passed is passed
        ]


@styled
def trade_off(data: ReportData, objective: str) -> str:
    """Score against one objective, a bubble's area the size of the saved model; one shape a
    backend.

    Args:
        data: The run.
        objective: What the horizontal axis shows.

    Returns:
        An ``<svg>`` element, or an empty string where no trial has both numbers.
    """
    plot = _TradeOff(data, objective)
    if len(plot.shown) < 2:
        return ""
    figure, axes = new_figure(9.6, 4.6)
    _draw_front(axes, plot)
    _draw_trials(axes, plot)
    _draw_best(axes, plot)
    if data.bound is not None:
        axes.axhline(data.bound, color=GOOD, linewidth=1.2, label="goal")
    _label_costs(axes, plot)
    axes.set_ylabel(
        f"{data.metric}; {'more' if data.higher_is_better else 'less'} is better"
    )
    axes.margins(y=0.18)
    below = (0.5, -0.16)
    axes.legend(
        loc="upper center", bbox_to_anchor=below, ncols=3, markerscale=0.6, fontsize=9
    )
    title = f"{data.metric} and {objective}"
    if objective == "latency":
        title = "Accuracy, latency and size of every trial"
    return to_svg(figure, "trade-off", title, _told(plot))


def _draw_front(axes: Axes, plot: _TradeOff) -> None:
    passing = [plot.place(t) for t in plot.shown if t.passed]
    front = _front(passing, plot.data.higher_is_better)
    if len(front) > 1:
        axes.plot(
            [cost for cost, _ in front],
            [score for _, score in front],
            color=FAINT,
            linewidth=1,
            linestyle=(0, (4, 3)),
            zorder=1,
            label="best trade-offs",
        )


def _draw_trials(axes: Axes, plot: _TradeOff) -> None:
    baseline = plot.data.baseline
    backends = sorted({t.recipe.backend for t in plot.shown if t is not baseline})
    for index, backend in enumerate(backends):
        colour = SERIES[index % len(SERIES)]
        for passed in (True, False):
            group = plot.group(backend, passed)
            if not group:
                continue
            places = [plot.place(t) for t in group]
            verdict = "passes" if passed else "does not pass"
            axes.scatter(
                [cost for cost, _ in places],
                [score for _, score in places],
                s=[plot.area(t) for t in group],
                marker=MARKERS[index % len(MARKERS)],
                linewidths=1.6,
                edgecolors=colour,
                facecolors=colour if passed else "none",
                alpha=0.75,
                label=f"{backend or 'trial'}, {verdict}",
            )
    cost, score = plot.place(baseline)
    area = plot.area(baseline)
    axes.scatter(
        cost, score, s=area, marker="X", color=INK, label="float model", zorder=3
    )


def _draw_best(axes: Axes, plot: _TradeOff) -> None:
    best = plot.data.best
    if best is None or all(t.number != best.number for t in plot.shown):
        return
    place = plot.place(best)
    axes.scatter(
        *place,
        s=plot.area(best) * 1.9,
        marker="o",
        facecolors="none",
        edgecolors=ACCENT,
        linewidths=2,
        zorder=4,
        label="best",
    )
    axes.annotate(
        f"best: #{best.number}",
        place,
        xytext=(0, -24),
        textcoords="offset points",
        ha="center",
        color=ACCENT,
        fontweight="bold",
    )


def _label_costs(axes: Axes, plot: _TradeOff) -> None:
    unit = plot.shown[0].objectives[plot.objective].unit
    measure = f" ({unit})" if unit else ""
    if plot.is_relative:
        measure = ", share of the float model"
    axes.set_xlabel(f"{plot.objective}{measure}; less is better")
    costs = [plot.place(t)[0] for t in plot.shown]
    if min(costs) > 0 and max(costs) / min(costs) > WIDE_RANGE:
        logarithmic(axes, (1.0, 2.0, 5.0))
        axes.margins(x=0.12)
        return
    axes.set_xlim(left=0)
    if unit == "bytes" and not plot.is_relative:
        axes.xaxis.set_major_formatter(lambda value, _: size(value))


def _told(plot: _TradeOff) -> str:
    data = plot.data
    searched = len(plot.shown) - 1
    told = f"{data.metric} against {plot.objective} of {searched} trials and the float model."
    if data.best is None:
        return told
    cost = measured(data.best.objectives.get(plot.objective))
    return f"{told} The best, trial {data.best.number}, takes {cost}."


def _front(points: Sequence[Point], higher_is_better: bool) -> list[Point]:
    """Points that no other one beats in both axes, from the cheapest on."""
    sign = 1 if higher_is_better else -1
    front: list[Point] = []
    for cost, value in sorted(set(points), key=lambda p: (p[0], -sign * p[1])):
        if not front or sign * value > sign * front[-1][1]:
            front.append((cost, value))
    return front
