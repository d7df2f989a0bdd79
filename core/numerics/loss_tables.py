"""The least cost within any limit of loss: one choice for each unit, for many limits at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

FEW = 200
"""Units up to which a step of one of them matters."""

FINEST, COARSEST = 8192, 2048
"""Bins of losses: many units round losses both ways and need fewer."""

Table = Sequence[np.ndarray]
"""For each unit, a number of each of its choices."""

_NO_DIVISION_BY_ZERO = 1e-300


class LossTable:
    """The least cost for every limit up to ``limit`` at once.

    A dynamic program over losses rounded to bins. Time and memory are O(choices * bins); 1024 units
    of 4 choices take about 0.04 s and 2 MiB.

    Args:
        costs: For each unit, the cost of each choice.
        losses: The same for the losses, >= 0.
        limit: The largest limit that will be asked for.
    """

    def __init__(self, costs: Table, losses: Table, limit: float) -> None:
        self._limit = limit
        # A byte for each bin and unit: 2 MiB, as far as the bounds allow.
        affordable = 2**21 // max(1, len(costs))
        self.bins = int(np.clip(affordable, COARSEST, FINEST))
        self._widths = [self._bins_taken(loss) for loss in losses]
        self._taken: list[np.ndarray] = []
        self._best = np.zeros(self.bins + 1)
        for cost, widths in zip(costs, self._widths, strict=True):
            self._add_unit(cost.tolist(), widths)

    def _bins_taken(self, loss: np.ndarray) -> list[int]:
        """Return how many bins of the limit each choice takes."""
        step = self._limit / self.bins if self._limit > 0 else 1.0
        # What passes the limit by itself is cut, so that it fits an integer.
        bounded = np.minimum(loss, 2 * self._limit)
        taken: list[int] = np.rint(bounded / step).astype(np.int64).tolist()
        return taken

    def _add_unit(self, cost: list[float], widths: list[int]) -> None:
        """Bring the least cost of each limit up to date, and note which choice it takes."""
        limits = self.bins + 1
        least = np.full(limits, np.inf)
        index_type = np.uint8 if len(cost) < 256 else np.int32
        taken = np.zeros(limits, dtype=index_type)
        for index, (price, width) in enumerate(zip(cost, widths, strict=True)):
            if width > self.bins:
                continue
            offered = self._best[: limits - width] + price
            reached = least[width:]
            better = offered < reached
            np.copyto(reached, offered, where=better)
            taken[width:][better] = index
        self._taken.append(taken)
        self._best = least

    def pick(self, limit: float) -> list[int] | None:
        """Return the index of each unit's choice for a limit up to that of the table.

        None where nothing fits.
        """
        at = self._bin_of(limit)
        if not np.isfinite(self._best[at]):
            return None
        # Only the last unit's choice is known for the whole limit; it says what is left before it.
        picks = []
        for unit in reversed(range(len(self._taken))):
            choice = int(self._taken[unit][at])
            picks.append(choice)
            at -= self._widths[unit][choice]
        return picks[::-1]

    def _bin_of(self, limit: float) -> int:
        if limit >= self._limit:
            return self.bins
        if self._limit <= 0:
            return 0
        share = max(0.0, limit) / self._limit
        return int(share * self.bins)


class HullTable:
    """The same by the continuous relaxation.

    Every unit climbs the convex hull of its choices, the best exchange first. What it loses against
    the optimum is less than one step of one unit, which is nothing where there are many.

    Args:
        costs: As for :class:`LossTable`.
        losses: As there.
    """

    def __init__(self, costs: Table, losses: Table) -> None:
        cost = _padded(costs)
        loss = _padded(losses)
        # Of equal costs the one that loses least is where a unit starts.
        cheapest = cost == cost.min(axis=1, keepdims=True)
        self._start = np.where(cheapest, loss, np.inf).argmin(axis=1)
        climbs = _climbs(cost, loss, self._start)
        order = np.argsort(-climbs.rates, kind="stable")
        self._moved = climbs.units[order]
        self._targets = climbs.targets[order]
        units = np.arange(len(costs))
        at_start = float(loss[units, self._start].sum())
        saved = np.cumsum(climbs.gains[order])
        self._losses = at_start - np.concatenate([[0.0], saved])

    def pick(self, limit: float) -> list[int] | None:
        """Return the index of each unit's choice; None where nothing fits."""
        # Sums in another order may differ in their last digits.
        fits = np.flatnonzero(self._losses <= limit * (1 + 1e-12))
        if not len(fits):
            return None
        moves = fits[0]
        moved = self._moved[:moves].tolist()
        targets = self._targets[:moves].tolist()
        picks = self._start.copy()
        # A unit that climbs twice stands where its later, less rewarding step leads.
        for unit, target in zip(moved, targets, strict=True):
            picks[unit] = target
        return [int(i) for i in picks]


def _padded(table: Table) -> np.ndarray:
    """Return numbers of choices as (units, choices); infinite where there are none."""
    most = max(map(len, table), default=0)
    found = np.full((len(table), most), np.inf)
    for row, numbers in enumerate(table):
        found[row, : len(numbers)] = numbers
    return found


@dataclass(frozen=True, slots=True, eq=False)
class _Climbs:
    """Steps of all units up their hulls.

    Attributes:
        rates: Loss saved for each unit of cost.
        units: Which one climbs.
        targets: The choice that it goes to.
        gains: Loss saved.
    """

    rates: np.ndarray
    units: np.ndarray
    targets: np.ndarray
    gains: np.ndarray


def _climbs(cost: np.ndarray, loss: np.ndarray, start: np.ndarray) -> _Climbs:
    units = np.arange(len(cost))
    at = start
    rates: list[np.ndarray] = []
    moved: list[np.ndarray] = []
    targets: list[np.ndarray] = []
    gains: list[np.ndarray] = []
    for _ in range(cost.shape[1] - 1):
        own_loss = loss[units, at][:, None]
        own_cost = cost[units, at][:, None]
        gain = own_loss - loss
        price = np.maximum(cost - own_cost, _NO_DIVISION_BY_ZERO)
        with np.errstate(invalid="ignore", divide="ignore"):
            rate = np.where(gain > 0, gain / price, -np.inf)
        following = rate.argmax(axis=1)
        best_rate = rate[units, following]
        going = best_rate > 0
        rates.append(best_rate[going])
        gains.append(gain[units, following][going])
        moved.append(units[going])
        targets.append(following[going])
        at = np.where(going, following, at)
    return _Climbs(_joined(rates), _whole(moved), _whole(targets), _joined(gains))


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    # NumPy refuses to join no arrays at all.
    found: np.ndarray = np.concatenate([*parts, []])
    return found


def _whole(parts: Sequence[np.ndarray]) -> np.ndarray:
    return _joined(parts).astype(np.int64)


def table(costs: Table, losses: Table, limit: float) -> LossTable | HullTable:
    """Return the table to take: exact for few units, the hull for many."""
    if len(costs) <= FEW:
        return LossTable(costs, losses, limit)
    return HullTable(costs, losses)
