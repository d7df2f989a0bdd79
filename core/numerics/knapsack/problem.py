"""Units, choices and limits as arrays, with uses as whole numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

GRID = 2.0**44
"""Steps of a limit in which uses are counted: whole numbers add up alike in any order."""

TOLERATED = 1e-9
"""Share of a limit by which a sum of floats may pass it."""

Costs = Sequence[np.ndarray]
"""For each unit, a number of each of its choices."""


@dataclass(frozen=True, eq=False)
class Problem:
    """All units and choices as arrays; units of fewer choices are filled up with forbidden ones.

    Attributes:
        cost: Shape (units, choices); infinite where a choice is forbidden.
        uses: In steps of :data:`GRID`, int64, shape (limits, units, choices).
        most: What all may use, int64, shape (limits,).
        possible: Whether each limit by itself can be kept.
    """

    cost: np.ndarray
    uses: np.ndarray
    most: np.ndarray
    possible: bool

    @classmethod
    def of(cls, costs: Costs, limits: Sequence[tuple[Costs, float]]) -> Problem:
        """Return the problem; what costs or uses infinitely much is forbidden.

        So is what passes a limit where all others use their least.
        """
        cost = padded(costs, np.inf)
        rows = [padded(uses, np.inf) for uses, _ in limits]
        allowed = np.isfinite(cost)
        for row in rows:
            allowed &= np.isfinite(row)
        possible = bool(allowed.any(axis=1).all())
        for row, (_, most) in zip(rows, limits, strict=True):
            least = np.where(allowed, row, np.inf).min(axis=1)
            room = most + TOLERATED * abs(most) - least.sum()
            possible = possible and bool(room >= 0)
            with np.errstate(invalid="ignore"):
                allowed &= row - least[:, None] <= room
        scales = [abs(most) or 1.0 for _, most in limits]
        uses = np.zeros((len(rows), *cost.shape), dtype=np.int64)
        for place, (row, scale) in enumerate(zip(rows, scales, strict=True)):
            steps = np.where(allowed, row, 0.0) / scale * GRID
            uses[place] = np.rint(np.clip(steps, -(2.0**61), 2.0**61))
        tops = [
            np.floor(GRID * (most / scale + TOLERATED))
            for (_, most), scale in zip(limits, scales, strict=True)
        ]
        return cls(
            np.where(allowed, cost, np.inf),
            uses,
            np.array(tops, dtype=np.int64),
            possible,
        )

    def cost_of(self, picks: np.ndarray) -> float:
        """Return what choices cost."""
        return float(self.cost[np.arange(len(picks)), picks].sum())

    def used(self, picks: np.ndarray) -> np.ndarray:
        """Return what choices use, shape (limits,)."""
        units = np.arange(len(picks))
        return np.asarray(self.uses[:, units, picks].sum(axis=1))


def padded(table: Costs, absent: float) -> np.ndarray:
    """Return numbers of choices, shape (units, most choices); ``absent`` where there are none."""
    widest = max(map(len, table), default=1)
    found = np.full((len(table), widest), absent)
    for line, row in zip(found, table, strict=True):
        line[: len(row)] = row
    return found


def priced(problem: Problem, prices: np.ndarray) -> np.ndarray:
    """Return what choices cost with the prices of what they use, shape (units, choices)."""
    return np.asarray(problem.cost + np.tensordot(prices, problem.uses, axes=1))
