"""The trials that a chart of score against one cost joins."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from octavo.core.values.trial import Trial

from .model import ReportData


def is_best(data: ReportData, trial: Trial) -> bool:
    """Return whether a trial is the one that was handed back."""
    return data.best is not None and trial.number == data.best.number


def front(
    data: ReportData, trials: Iterable[Trial], cost: Callable[[Trial], float]
) -> list[Trial]:
    """Return the passing trials that no other one beats in score and cost, from the cheapest on.

    The best is always one of them: where it lies behind another in these two, a third figure or a
    tie decided.

    Args:
        data: The run.
        trials: Those that a chart shows; the float model is left out.
        cost: What a trial costs; less is better.
    """
    sign = 1 if data.higher_is_better else -1

    def score(trial: Trial) -> float:
        return sign * trial.metrics[data.metric]

    passing = [trial for trial in trials if trial.number and trial.passed]
    kept: list[Trial] = []
    highest = -math.inf
    for trial in sorted(passing, key=lambda t: (cost(t), -score(t))):
        if score(trial) > highest or is_best(data, trial):
            kept.append(trial)
        highest = max(highest, score(trial))
    return kept
