"""Limits of an integer program: what each choice uses, and how much all may use together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from octavo.core.contract.strategy import Problem
from octavo.core.scoring.choice import NEGLIGIBLE
from octavo.core.values.budgets import BITS, weight_bits
from octavo.core.values.trial import Measurement, Trial

from .cost_belief import OVERHEAD, CostBelief
from .picks import Picks, total, weight_bytes

Uses = list[np.ndarray]
"""What each choice of each unit uses."""

Row = tuple[Uses, float]
"""What each choice of each unit uses, and what all may use."""

MARGIN = 0.999  # of a limit that was overrun, what is allowed the next time

NOISE = 0.02
"""Share by which believed times may differ and still be sought as equal.

A busy machine's spread is no licence.
"""

DESCRIPTION = 1024
"""Bytes by which a file says what became of an op, beside its weights' own: the line of the recipe,
names and places of tensors. PyTorch's, the longest, is about 700 longer than a float op's; long
names add to it. The first trial tells it to the byte."""

MOST_DESCRIBED = 0.01
"""Share of the float model's size that descriptions are believed to take at most before a trial: of
a tiny model they are a large part, and a guess of theirs must not forbid what would fit."""

ROUNDED = 1 + 1e-9  # sums of floats round: what is a limit to the last digit keeps it


class Limits:
    """The run's budgets, corrected by what trials measured.

    A file holds more than the weights that may be quantized; the first trial tells how much. Where
    an artifact still overran a limit, the next recipe is given less.

    Args:
        problem: Gives the space and the budgets.
    """

    def __init__(self, problem: Problem) -> None:
        self._space = problem.space
        self._units = problem.space.tunable
        self._allowed = dict(problem.budgets)
        self._latency = CostBelief(problem.space, "latency")
        self._bytes = weight_bytes(problem.space)
        units = problem.space.units
        fixed = [u for u in units if not u.tunable]
        self._whole = max(sum(unit.float_bytes for unit in units), 1.0)
        self._beside = sum(unit.float_bytes for unit in fixed)
        if problem.float_size:
            # What is no weight of an op (biases, norms) is in the float model's file as well.
            tuned = sum(unit.float_bytes for unit in self._units)
            told = DESCRIPTION * sum(len(unit.ops) for unit in self._units)
            most = MOST_DESCRIBED * problem.float_size
            self._beside = max(problem.float_size - tuned, 0.0) + min(told, most)
            self._whole = problem.float_size
        self._held: list[tuple[CostBelief, float]] = []

    def __bool__(self) -> bool:
        return bool(self._allowed or self._held)

    def hold(self, costs: CostBelief, picks: Picks, best: Measurement) -> None:
        """Let an objective become no worse than that of the best recipe.

        What follows is searched among its ties.

        Args:
            costs: What is believed of the objective.
            picks: The best recipe's choices.
            best: What was measured of it. Its spread is what others may be believed to lie above
                it, up to :data:`NOISE`.
        """
        spread = 0.0
        if best.value:
            half = (best.high - best.low) / 2
            spread = half / abs(best.value)
        tolerated = min(NOISE, max(NEGLIGIBLE, spread))
        now = total(costs.costs(), picks)
        limit = now * (1 + tolerated)
        self._held.append((costs, limit))

    def observe(self, picks: Picks, trial: Trial) -> None:
        """Learn from a trial."""
        self._latency.observe(picks, trial)
        size = trial.objectives.get("size")
        if size is not None and size.ratio:
            self._whole = size.value / size.ratio
            self._beside = size.value - total(self._bytes, picks)
        for name, share in trial.over.items():
            used = self._used(name, picks)
            # The correction above may be all that was missing: only what still seems to fit is
            # given less room.
            seems_to_fit = used <= self._allowed[name]
            if np.isfinite(share) and seems_to_fit:
                self._allowed[name] = used * MARGIN

    def rows(self) -> list[Row]:
        """Return what choices use and what they may use, for each budget, in its own unit."""
        found: list[Row] = []
        for name, limit in self._allowed.items():
            uses, fixed = self._uses(name)
            # What is used in any case is counted with the first unit, so that sums are what a user
            # knows as the figure.
            with_fixed = [uses[0] + fixed, *uses[1:]]
            found.append((with_fixed, limit))
        for costs, limit in self._held:
            found.append((costs.costs(), limit))
        return found

    def reachable(self, costs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return costs that are infinite where a choice by itself is more than ties with the held.

        All other units are taken at their least.
        """
        found = [cost.copy() for cost in costs]
        for belief, limit in self._held:
            uses = belief.costs()
            least = sum(float(use.min()) for use in uses)
            room = limit * ROUNDED - least
            for cost, use in zip(found, uses, strict=True):
                extra = use - use.min()
                cost[extra > room] = np.inf
        return found

    def fits(self, picks: Picks) -> bool:
        """Return whether a recipe is believed to keep every limit."""
        return all(total(uses, picks) <= limit * ROUNDED for uses, limit in self.rows())

    def _used(self, name: str, picks: Picks) -> float:
        uses, fixed = self._uses(name)
        return fixed + total(uses, picks)

    def _uses(self, name: str) -> tuple[Uses, float]:
        """Return what each choice uses of a budget, in its unit, and what is used in any case."""
        if name in BITS:
            return self._bits(name)
        if name == "size":
            shares = [own / self._whole for own in self._bytes]
            return shares, self._beside / self._whole
        return self._latency.costs(), OVERHEAD

    def _bits(self, name: str) -> tuple[Uses, float]:
        """Return each choice's share of the bits of an average weight, and that of the weights that
        stay float in any case."""
        kept, of = BITS[name]
        counted = self._space.units if kept else self._units
        whole = max(sum(unit.parameters for unit in counted), 1)
        fixed = 0.0
        for unit in counted:
            if not unit.tunable:
                fixed += weight_bits(unit, unit.choices[-1], of)
        shares = []
        for unit in self._units:
            bits = [weight_bits(unit, scheme, of) for scheme in unit.choices]
            shares.append(np.array(bits) / whole)
        return shares, fixed / whole
