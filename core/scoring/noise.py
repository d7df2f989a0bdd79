"""A score that varies between two evaluations of one model: by how much, and what can be said in
spite of it.

Everything is counted in margins: signed distances to the goal, in tolerated losses where there is a
tolerance. So it holds for every criterion. One evaluation's margin varies with a standard deviation
s. The mean of n evaluations of a candidate, judged against the mean of r evaluations of the float
model, is then off by about s * sqrt(1/n + 1/r); the candidate passes if its margin is above that
many deviations, the quantile of Student's t with the degrees of freedom that s was estimated with.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

Metrics = Mapping[str, float]

NEGLIGIBLE = 1e-3
"""Standard deviation, in tolerated losses, up to which a score counts as exact: sums in another
order differ by as little."""

FEWEST = 8
"""Evaluations of a float model whose score varies: the deviation is then known to a quarter."""

MOST = 32
"""Evaluations of a candidate at most."""

WIDTH = 0.5
"""The half-width that repeats aim at, in tolerated losses: so much better than the goal a candidate
must be."""


@dataclass(frozen=True, slots=True)
class Noise:
    """How much one evaluation varies.

    Attributes:
        deviation: Standard deviation of one evaluation's margin; 0 for a score that is exact.
        runs: Evaluations of the float model, whose mean is its score.
    """

    deviation: float = 0.0
    runs: int = 1

    @classmethod
    def of(cls, margins: Sequence[float]) -> Noise:
        """Return what margins of the float model against its own mean tell."""
        runs = len(margins)
        deviation = float(np.std(margins, ddof=1)) if runs > 1 else 0.0
        return cls(deviation if deviation > NEGLIGIBLE else 0.0, runs)

    def __bool__(self) -> bool:
        return self.deviation > 0

    def deviations(self, runs: int) -> float:
        """Return the standard deviation of a mean of so many evaluations, against the float model's
        mean."""
        return self.deviation * math.sqrt(1 / runs + 1 / self.runs)

    def needed(self, runs: int, error: float) -> float:
        """Return the margin that a mean of so many evaluations must have, to be wrong with a
        probability of ``error``."""
        if not self:
            return 0.0
        from scipy.stats import t

        degrees_of_freedom = max(self.runs - 1, 1)
        quantile = float(t.ppf(1 - error, degrees_of_freedom))
        return quantile * self.deviations(runs)

    @property
    def repeats(self) -> int:
        """Evaluations that bring the half-width down to :data:`WIDTH`, with as many of the float
        model; at most :data:`MOST`."""
        if not self:
            return 1
        # Three deviations: the quantile at the errors of a search over some dozens of candidates.
        wanted = 2 * (3 * self.deviation / WIDTH) ** 2
        return int(min(MOST, max(2, math.ceil(wanted))))


def mean_of(runs: Sequence[Metrics]) -> Metrics:
    """Return the mean of each metric that all evaluations have; one evaluation as it is."""
    if len(runs) == 1:
        return runs[0]
    names = [name for name in runs[0] if all(name in run for run in runs)]
    return {name: float(np.mean([run[name] for run in runs])) for name in names}
