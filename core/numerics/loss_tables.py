"""One choice for each unit, for many limits at once.

The least cost within any limit of loss, and the whole front of what is used and lost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

FEW = 200
"""Units up to which a step of one of them matters."""

FINEST, COARSEST = 8192, 2048
"""Bins of losses: many units round losses both ways and need fewer."""

Table = Sequence[np.ndarray]
"""For each unit, a number of each of its choices."""

POINTS = 4096
"""Of a front, at most: beyond, a point stands for its neighbours."""

GRID = 2.0**44
"""Steps in which uses are counted: whole numbers add up alike in any order."""

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
        first = float(cost[units, self._start].sum())
        prices = climbs.gains[order] / climbs.rates[order]
        self._costs = first + np.concatenate([[0.0], np.cumsum(prices)])

    def pick(self, limit: float) -> list[int] | None:
        """Return the index of each unit's choice; None where nothing fits."""
        # Sums in another order may differ in their last digits.
        fits = np.flatnonzero(self._losses <= limit * (1 + 1e-12))
        if not len(fits):
            return None
        return self._after(int(fits[0]))

    def front(self) -> Front:
        """Return all of its points."""
        kept = _unbeaten(self._costs, self._losses)

        def picks(point: int) -> tuple[int, ...]:
            return tuple(self._after(int(kept[point])))

        return Front(self._costs[kept], self._losses[kept], False, picks)

    def _after(self, moves: int) -> list[int]:
        """Return each unit's choice after so many steps."""
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


@dataclass(frozen=True, eq=False)
class Front:
    """What no other choice beats both in use and in loss, from the least use to the least loss.

    Attributes:
        uses: Rising strictly, shape (points,).
        losses: Falling strictly, shape (points,).
        is_exact: Every point of the front is there.
        picks: Gives the index of each unit's choice at one point.
    """

    uses: np.ndarray
    losses: np.ndarray
    is_exact: bool
    picks: Callable[[int], tuple[int, ...]]

    def __len__(self) -> int:
        return len(self.uses)

    def within(self, use: float) -> int | None:
        """Return the point of the least loss that uses no more; None where none does."""
        found = int(np.searchsorted(self.uses, use * (1 + 1e-9), side="right"))
        return found - 1 if found else None

    def reaching(self, loss: float) -> int | None:
        """Return the point of the least use that loses no more; None where none does."""
        reached = np.flatnonzero(self.losses <= loss)
        return int(reached[0]) if len(reached) else None


def front(losses: Table, uses: Table, points: int = POINTS) -> Front:
    """Return the front of what recipes use and lose.

    Of up to :data:`FEW` units, what another state beats in both is left out unit after unit:
    Nemhauser and Ullmann, "Discrete dynamic programming and capital allocation" (1969). That is
    exact as long as the front is short, as where layers are of few sizes; a longer one keeps the
    least loss of each of so many equal steps of use. Of more units it is the lower hull, whose
    steps are single units. Every point is a recipe that really uses and loses so much.

    Args:
        losses: For each unit, the believed loss of each choice, >= 0; infinite where it is never
            taken.
        uses: The same for what they use, >= 0: bytes, bits, time.
        points: Of the front, at most.

    Raises:
        ValueError: If a unit has no choice of finite use and loss.
    """
    for loss, use in zip(losses, uses, strict=True):
        if not np.any(np.isfinite(loss) & np.isfinite(use)):
            raise ValueError("a unit has no choice of finite use and loss")
    if len(losses) > FEW:
        usable = [
            np.where(np.isfinite(w), u, np.inf)
            for u, w in zip(uses, losses, strict=True)
        ]
        return HullTable(usable, losses).front()
    return _whole_front(losses, uses, points)


def _whole_front(losses: Table, uses: Table, points: int) -> Front:
    whole = sum(float(np.max(use, where=np.isfinite(use), initial=0.0)) for use in uses)
    step = max(whole, _NO_DIVISION_BY_ZERO) / GRID
    used = np.zeros(1, dtype=np.int64)
    lost = np.zeros(1)
    parents: list[np.ndarray] = []
    choices: list[np.ndarray] = []
    is_exact = True
    for loss, use in zip(losses, uses, strict=True):
        there = np.flatnonzero(np.isfinite(loss) & np.isfinite(use))
        own = np.rint(np.asarray(use, np.float64)[there] / step).astype(np.int64)
        next_used = (own[:, None] + used).ravel()
        next_lost = (np.asarray(loss, np.float64)[there][:, None] + lost).ravel()
        kept = _unbeaten(next_used, next_lost)
        if len(kept) > points:
            is_exact = False
            kept = kept[_spread(next_used[kept], points)]
        parents.append((kept % len(used)).astype(np.int32))
        choices.append(there[kept // len(used)].astype(np.int32))
        used, lost = next_used[kept], next_lost[kept]
    picks = partial(_traced, parents, choices)
    return Front(used * step, lost, is_exact, picks)


def _traced(
    parents: Sequence[np.ndarray], choices: Sequence[np.ndarray], point: int
) -> tuple[int, ...]:
    """Return each unit's choice at a point, from the last unit back to the first."""
    picks = []
    for parent, choice in zip(parents[::-1], choices[::-1], strict=True):
        picks.append(int(choice[point]))
        point = int(parent[point])
    return tuple(picks[::-1])


def _unbeaten(used: np.ndarray, lost: np.ndarray) -> np.ndarray:
    """Return the states that no other beats, from the least use on."""
    order = np.lexsort((lost, used))
    falling = lost[order]
    before = np.concatenate([[np.inf], np.minimum.accumulate(falling)[:-1]])
    return np.asarray(order[falling < before])


def _spread(used: np.ndarray, points: int) -> np.ndarray:
    """Return of each of some equal steps of rising uses the last, and the first of all."""
    span = max(int(used[-1] - used[0]), 1)
    steps = ((used - used[0]) * ((points - 1) / span)).astype(np.int64)
    is_last = np.concatenate([steps[1:] != steps[:-1], [True]])
    is_last[0] = True
    return np.flatnonzero(is_last)
