"""The report's chart of the search: the score of every trial in the order of asking."""

from __future__ import annotations

import math

from octavo.core.report.model import ReportData
from octavo.core.values.trial import Trial

from .axes import Axis
from .plots import Level, Look, Mark, Plot
from .trade_off import level_notes, levels, score_axis, told

PASSES = Look("circle", "good", False, "reaches the goal")
MISSES = Look("down", "bad", True, "does not")


def search(data: ReportData) -> Plot | None:
    """Return the scores of all trials in order, with the goal and the float model's level; None for
    fewer than two trials."""
    metric = data.metric
    trials = [t for t in data.completed if math.isfinite(t.metrics[metric])]
    own = data.baseline.metrics.get(metric, math.nan)
    if len(trials) < 2 or not math.isfinite(own):
        return None
    y = score_axis(data, [data.baseline, *trials])
    last = max(trial.number for trial in trials)
    x = Axis("trial", 0.0, last + 1.0, label=lambda value: f"{value:.0f}")
    marks = [_mark(data, trial, x, y) for trial in trials]
    reached = sum(trial.passed for trial in trials)
    return Plot(
        name="search",
        title="The search, trial by trial",
        description=f"{metric} of {len(trials)} trials in order; {reached} reach the goal.",
        x=x,
        y=y,
        marks=marks,
        levels=[Level(100 - y.at(own), "ink", "float model"), *levels(data, y)],
        notes=level_notes(data, y, trials),
    )


def _mark(data: ReportData, trial: Trial, x: Axis, y: Axis) -> Mark:
    score = trial.metrics[data.metric]
    return Mark(
        x=x.at(trial.number),
        y=100 - y.at(score),
        look=PASSES if trial.passed else MISSES,
        target=f"trial-{trial.number}",
        told=told(data, trial),
        width=11,
        is_best=data.best is not None and data.best.number == trial.number,
    )
