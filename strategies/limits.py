"""Limits of an integer program, a run's budgets among them: what each choice uses, and how much all may use together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from octavo.core.contract.strategy import Problem
from octavo.core.scoring.choice import NEGLIGIBLE
from octavo.core.values.trial import Measurement, Trial

from .belief import OVERHEAD, CostBelief, Picks

Row = tuple[list[np.ndarray], float]
MARGIN = 0.999  # of a limit that was overrun, what is allowed the next time
NOISE = 0.02  # share by which believed times may differ and still be sought as equal: a busy machine's spread is no licence


class Limits:
    """The run's budgets, corrected by what trials measured.

    A file holds more than the weights that may be quantized; the first trial tells how much. Where an artifact still overran
    a limit, the next recipe is given less.

    Args:
        problem: Gives the space and the budgets.
    """

    def __init__(self, problem: Problem) -> None:
        self._space = problem.space
        self._allowed = dict(problem.budgets)
        self._latency = CostBelief(problem.space, "latency")
        bytes_ = [np.array([u.weight_bytes(s) for s in u.choices]) for u in problem.space.tunable]
        self._bytes = bytes_
        self._whole = max(sum(4.0 * u.parameters for u in problem.space.units), 1.0)
        self._beside = sum(4.0 * u.parameters for u in problem.space.units if not u.tunable)
        self._held: list[tuple[CostBelief, float]] = []

    def __bool__(self) -> bool:
        return bool(self._allowed or self._held)

    def hold(self, costs: CostBelief, picks: Picks, best: Measurement) -> None:
        """Let an objective become no worse than that of the best recipe: what follows is searched among its ties.

        Args:
            costs: What is believed of the objective.
            picks: The best recipe's choices.
            best: What was measured of it. Its spread is what others may be believed to lie above it, up to :data:`NOISE`.
        """
        spread = (best.high - best.low) / 2 / abs(best.value) if best.value else 0.0
        limit = sum(float(c[i]) for c, i in zip(costs.costs(), picks, strict=True))
        self._held.append((costs, limit * (1 + min(NOISE, max(NEGLIGIBLE, spread)))))

    def observe(self, picks: Picks, trial: Trial) -> None:
        """Learn from a trial."""
        self._latency.observe(picks, trial)
        size = trial.objectives.get("size")
        if size is not None and size.ratio:
            self._whole = size.value / size.ratio
            self._beside = size.value - sum(
                float(b[i]) for b, i in zip(self._bytes, picks, strict=True)
            )
        for name, share in trial.over.items():
            # The correction above may be all that was missing: only what still seems to fit is given less room.
            if np.isfinite(share) and self._used(name, picks) <= self._allowed[name]:
                self._allowed[name] = self._used(name, picks) * MARGIN

    def rows(self) -> list[Row]:
        """Return (what each choice of each unit uses, what all may use) for each budget, in the budget's own unit."""
        found = []
        for name, limit in self._allowed.items():
            uses, fixed = self._uses(name)
            # What is used in any case is counted with the first unit, so that sums are what a user knows as the figure.
            found.append(([uses[0] + fixed, *uses[1:]], limit))
        return found + [(costs.costs(), limit) for costs, limit in self._held]

    def reachable(self, costs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return costs that are infinite where a choice by itself, all others at their least, is more than ties with what is held."""
        found = [c.copy() for c in costs]
        for belief, limit in self._held:
            uses = belief.costs()
            room = limit * (1 + 1e-9) - sum(float(u.min()) for u in uses)
            for cost, use in zip(found, uses, strict=True):
                cost[use - use.min() > room] = np.inf
        return found

    def fits(self, picks: Picks) -> bool:
        """True if a recipe is believed to keep every limit."""
        return all(
            sum(float(u[i]) for u, i in zip(uses, picks, strict=True)) <= limit * (1 + 1e-9)
            for uses, limit in self.rows()
        )

    def _used(self, name: str, picks: Picks) -> float:
        uses, fixed = self._uses(name)
        return fixed + sum(float(u[i]) for u, i in zip(uses, picks, strict=True))

    def _uses(self, name: str) -> tuple[list[np.ndarray], float]:
        """Return what each choice uses of a budget, in its own unit, and what is used whatever is chosen."""
        units = self._space.tunable
        if name == "bits":
            total = max(sum(u.parameters for u in units), 1)
            return [
                np.array([s.weight_bits * u.parameters / total for s in u.choices]) for u in units
            ], 0.0
        if name == "all_bits":
            every = [u for u in self._space.units if u.parameters]
            total = max(sum(u.parameters for u in every), 1)
            kept = (
                sum(u.choices[-1].weight_bits * u.parameters for u in every if not u.tunable)
                / total
            )
            return [
                np.array([s.weight_bits * u.parameters / total for s in u.choices]) for u in units
            ], kept
        if name == "size":
            return [b / self._whole for b in self._bytes], self._beside / self._whole
        return self._latency.costs(), OVERHEAD
