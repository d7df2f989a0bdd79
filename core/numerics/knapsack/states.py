"""The dynamic program over the states that a bound leaves."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .problem import Problem, priced


@dataclass(frozen=True, eq=False)
class _States:
    """Choices of the units so far, each state one column.

    Attributes:
        cost: What they cost.
        extra: By how much that, with prices, is more than the least.
        used: Shape (limits, states).
        parent: The state of one unit less that each came from.
        choice: What the last unit took.
    """

    cost: np.ndarray
    extra: np.ndarray
    used: np.ndarray
    parent: np.ndarray
    choice: np.ndarray

    def __len__(self) -> int:
        return len(self.cost)

    def taken(self, rows: np.ndarray) -> _States:
        """Return some of them."""
        return _States(
            self.cost[rows],
            self.extra[rows],
            self.used[:, rows],
            self.parent[rows],
            self.choice[rows],
        )


def solve(
    problem: Problem,
    prices: np.ndarray,
    best: np.ndarray | None,
    gap: float,
    width: int,
    deadline: float,
) -> tuple[np.ndarray | None, bool]:
    """Return the best choices found with so many states, and whether nothing is better.

    Args:
        problem: What is solved.
        prices: Of what is limited, >= 0, shape (limits,).
        best: The best choices that are known; None where there are none.
        gap: Share of the cost that may be given away.
        width: States that are kept.
        deadline: Of ``time.monotonic``, after which ``best`` is returned.
    """
    left = _Left.of(problem, prices, best, gap)
    if left is None:
        return best, True
    states = _start(len(problem.most))
    steps: list[_States] = []
    is_whole = True
    for place, unit in enumerate(left.order):
        if time.monotonic() >= deadline:
            return best, False
        choices = np.flatnonzero(left.alive[unit])
        states = _with_unit(states, problem, left.extras, int(unit), choices)
        states = _undominated(left.hopeful(states, place))
        if len(states) > width:
            is_whole = False
            nearest = np.argsort(states.extra, kind="stable")[:width]
            states = states.taken(np.sort(nearest))
        if not len(states):
            return best, is_whole
        steps.append(states)
    found = _traced(steps, left.order)
    if best is None or _is_better(problem, found, best):
        best = found
    return best, is_whole


@dataclass(frozen=True, eq=False)
class _Left:
    """What a bound leaves of a problem: most choices of most units are in no better solution.

    Every solution costs the bound, plus by how much its choices are dearer than the least with
    prices, plus the price of what it leaves unused.

    Attributes:
        prices: Of what is limited.
        most: What all may use.
        extras: By how much each choice is dearer than the least, shape (units, choices).
        room: What these may add up to, with the price of what is not used.
        alive: The choices that are left.
        order: In which units are decided: what may be dearest first, so that few states come
            through.
        fewest: What the units from each place of the order on use at least, shape (limits, units
            + 1).
        widest: The same at most.
    """

    prices: np.ndarray
    most: np.ndarray
    extras: np.ndarray
    room: float
    alive: np.ndarray
    order: np.ndarray
    fewest: np.ndarray
    widest: np.ndarray

    @classmethod
    def of(
        cls,
        problem: Problem,
        prices: np.ndarray,
        best: np.ndarray | None,
        gap: float,
    ) -> _Left | None:
        """Return what is left; None where some unit has no choice in any better solution."""
        dear = priced(problem, prices)
        least = dear.min(axis=1)
        extras = dear - least[:, None]
        bound = float(least.sum() - prices @ problem.most)
        room = np.inf
        if best is not None:
            known = problem.cost_of(best)
            # What rounding may hide is not left out.
            rounding = 1e-12 * (abs(known) + float(prices @ np.abs(problem.most)))
            room = known - gap * abs(known) - bound + rounding
        alive = np.isfinite(extras) & (extras <= room)
        if not alive.any(axis=1).all():
            return None
        dearest = np.where(alive, extras, -1.0).max(axis=1)
        order = np.argsort(-dearest, kind="stable")
        integers = np.iinfo(np.int64)
        fewest = np.where(alive, problem.uses, integers.max).min(axis=2)
        widest = np.where(alive, problem.uses, integers.min).max(axis=2)
        return cls(
            prices,
            problem.most[:, None],
            extras,
            room,
            alive,
            order,
            _from_each_place(fewest, order),
            _from_each_place(widest, order),
        )

    def hopeful(self, states: _States, place: int) -> _States:
        """Return the states that can still become a solution, and a better one."""
        fewest = self.fewest[:, place + 1, None]
        widest = self.widest[:, place + 1, None]
        fits = (states.used + fewest <= self.most).all(axis=0)
        unused = np.maximum(self.most - states.used - widest, 0)
        is_near = states.extra + self.prices @ unused <= self.room
        return states.taken(np.flatnonzero(fits & is_near))


def _start(limits: int) -> _States:
    """Return the one state before any unit."""
    nothing = np.zeros(1)
    nobody = np.zeros(1, dtype=np.int32)
    return _States(nothing, nothing, np.zeros((limits, 1), np.int64), nobody, nobody)


def _from_each_place(each: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Return what the units from each place of an order on add up to, shape (limits, units + 1)."""
    backwards = np.cumsum(each[:, order][:, ::-1], axis=1)[:, ::-1]
    return np.concatenate([backwards, np.zeros((len(each), 1), np.int64)], axis=1)


def _with_unit(
    states: _States,
    problem: Problem,
    extras: np.ndarray,
    unit: int,
    choices: np.ndarray,
) -> _States:
    """Return every state with every choice of one more unit."""
    count = len(states)
    cost = problem.cost[unit, choices][:, None] + states.cost
    extra = extras[unit, choices][:, None] + states.extra
    own = problem.uses[:, unit, choices][:, :, None]
    used = (own + states.used[:, None, :]).reshape(len(problem.most), -1)
    parent = np.tile(np.arange(count, dtype=np.int32), len(choices))
    choice = np.repeat(choices.astype(np.int32), count)
    return _States(cost.ravel(), extra.ravel(), used, parent, choice)


def _undominated(states: _States) -> _States:
    """Return the states that no other beats in cost and use, those of least use first.

    Under several limits only what uses the same of all is compared.
    """
    order = np.lexsort((states.cost, *states.used[::-1]))
    cost = states.cost[order]
    if len(states.used) == 1:
        before = np.concatenate([[np.inf], np.minimum.accumulate(cost)[:-1]])
        return states.taken(order[cost < before])
    used = states.used[:, order]
    differs = (used[:, 1:] != used[:, :-1]).any(axis=0)
    return states.taken(order[np.concatenate([[True], differs])])


def _traced(steps: Sequence[_States], order: np.ndarray) -> np.ndarray:
    """Return the choices of the cheapest last state; of equally cheap ones what uses least."""
    last = steps[-1]
    at = int(np.lexsort((*last.used[::-1], last.cost))[0])
    picks = np.zeros(len(order), dtype=np.int64)
    for states, unit in zip(reversed(steps), reversed(order), strict=True):
        picks[unit] = states.choice[at]
        at = int(states.parent[at])
    return picks


def _is_better(problem: Problem, found: np.ndarray, best: np.ndarray) -> bool:
    now, then = problem.cost_of(found), problem.cost_of(best)
    if now != then:
        return now < then
    return tuple(problem.used(found)) < tuple(problem.used(best))
