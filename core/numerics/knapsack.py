"""Multiple-choice knapsack: one choice for each unit, the least cost within a limit of loss.

Of loss, or of anything that adds up.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_matrix

from octavo.core.errors import ConfigError

INFEASIBLE = 2
"""Status of scipy's milp: proved, where 1 is out of time or iterations and 4 numerical trouble."""

ROUNDS = 400
"""Steps of a search by prices."""

WIDE = 100
"""Full steps at first, which reach any price that matters; then ever smaller ones."""

RISE, FALL = 0.4, 0.07
"""What a full step adds to the price of what is used too much, and takes from the others."""

_NO_DIVISION_BY_ZERO = 1e-300

Costs = Sequence[np.ndarray]
"""For each unit, a number of each of its choices."""


def exact(
    costs: Costs,
    limits: Sequence[tuple[Costs, float]],
    *,
    gap: float = 0.0,
    seconds: float = 60.0,
) -> list[int]:
    """Return the cheapest choices under several limits, by integer programming.

    HiGHS does it, through scipy.

    Args:
        costs: For each unit, the cost of each choice; an infinite one is never taken.
        limits: Pairs of (what each choice uses, how much all may use together).
        gap: Relative gap at which the solver may stop.
        seconds: Time limit. The best choices found until then are returned; where the solver has
            none, those of a search by prices.

    Raises:
        ConfigError: If no choice keeps the limits; or if the solver ended without a choice and
            without a proof that there is none, and none was found by prices either. The message
            says which.
    """
    problem = _Problem.of(costs, limits)
    picks = _solve(problem, gap, seconds)
    if picks is None:
        picks = _by_prices(problem)
    if picks is None:
        raise ConfigError(
            "the integer program found no choice that keeps the limits within "
            f"{seconds:g} s, nor that there is none: raise the budget, or let rules offer fewer "
            "schemes"
        )
    finer = _among_small_costs(problem, picks, gap, seconds)
    if finer is not None:
        picks = finer
    choices = picks - problem.starts[:-1]
    return [int(i) for i in choices]


@dataclass(frozen=True)
class _Limit:
    """What each choice uses, flat, and how much all may use together."""

    uses: np.ndarray
    most: float


@dataclass(frozen=True)
class _Problem:
    """All choices of all units in one row.

    Attributes:
        cost: Of each choice, shape (choices,).
        allowed: Which of them may be taken.
        counts: Choices of each unit.
        limits: What is kept.
    """

    cost: np.ndarray
    allowed: np.ndarray
    counts: tuple[int, ...]
    limits: tuple[_Limit, ...]

    @classmethod
    def of(cls, costs: Costs, limits: Sequence[tuple[Costs, float]]) -> _Problem:
        """Return the problem; what costs or uses infinitely much is not allowed."""
        cost = _flat(costs)
        rows = tuple(_Limit(_flat(uses), float(most)) for uses, most in limits)
        allowed = np.isfinite(cost)
        for row in rows:
            allowed &= np.isfinite(row.uses)
        return cls(cost, allowed, tuple(len(c) for c in costs), rows)

    @cached_property
    def starts(self) -> np.ndarray:
        """Where each unit's choices start, and where the last ones end."""
        return np.concatenate([[0], np.cumsum(self.counts)])


def _flat(table: Costs) -> np.ndarray:
    return np.concatenate([np.asarray(row, dtype=np.float64) for row in table])


def _among_small_costs(
    problem: _Problem, picks: np.ndarray, gap: float, seconds: float
) -> np.ndarray | None:
    """Solve again without the choices that cost more than all of ``picks`` together.

    The solver's tolerances are absolute. Where the optimum is tiny beside some costs, these are in
    no optimum: without them the numbers are of one size, and small differences count. None where
    that is not so, or ends without an answer.
    """
    total = float(problem.cost[picks].sum())
    largest = float(problem.cost[problem.allowed].max())
    if not 0 < total < 1e-3 * largest:
        return None
    small = problem.allowed & (problem.cost <= total)
    finer = _Problem(problem.cost, small, problem.counts, problem.limits)
    with contextlib.suppress(ConfigError):
        return _solve(finer, gap, seconds)
    return None


def _solve(problem: _Problem, gap: float, seconds: float) -> np.ndarray | None:
    """Return the positions of the chosen among all choices.

    None where the solver ended without any and without a proof.

    Raises:
        ConfigError: If it is proved that there are none.
    """
    total = len(problem.cost)
    finite = np.where(problem.allowed, problem.cost, 0.0)
    found = milp(
        finite / _largest(finite),
        integrality=np.ones(total),
        bounds=Bounds(np.zeros(total), problem.allowed.astype(float)),
        constraints=_constraints(problem),
        options={"mip_rel_gap": gap, "time_limit": seconds},
    )
    if found.x is None and found.status == INFEASIBLE:
        raise ConfigError(
            f"no choice keeps the limits: {_least_uses(problem)}; raise the budget, "
            "or offer smaller schemes"
        )
    if found.x is None:  # out of time, or in numerical trouble
        return None
    picks = []
    for first, last in pairwise(problem.starts):
        # The solver's ones are 1 up to its tolerance.
        taken = np.argmax(found.x[first:last])
        picks.append(first + int(taken))
    return np.array(picks, dtype=np.int64)


def _constraints(problem: _Problem) -> list[LinearConstraint]:
    """Return: one choice of each unit, and each limit, scaled so that its numbers are about one."""
    total = len(problem.cost)
    shape = (len(problem.counts), total)
    entries = (np.ones(total), np.arange(total), problem.starts)
    one_each = csr_matrix(entries, shape=shape)
    found = [LinearConstraint(one_each, 1, 1)]
    for limit in problem.limits:
        row = np.where(problem.allowed, limit.uses, 0.0)
        scale = _largest(row)
        uses = csr_matrix(row[None] / scale)
        found.append(LinearConstraint(uses, -np.inf, limit.most / scale))
    return found


def _largest(row: np.ndarray) -> float:
    largest = float(np.abs(row).max(initial=0.0))
    return max(largest, _NO_DIVISION_BY_ZERO)


def _least_uses(problem: _Problem) -> str:
    """Return how little could be used of what is limited, against the limits."""
    found = []
    for limit in problem.limits:
        parts = np.split(limit.uses, problem.starts[1:-1])
        floor = sum(float(part.min()) for part in parts)
        found.append(f"at least {floor:.6g} against {limit.most:.6g}")
    return "; ".join(found)


def _by_prices(problem: _Problem) -> np.ndarray | None:
    """Return the positions of choices that keep the limits; None where none were found.

    Each unit takes what costs least at the present prices of what it uses. The price of what is
    used too much rises, the others fall, and the cheapest choices that kept all limits are
    returned: not the optimum, and no proof. Under a single limit something is found wherever there
    is anything, as a price without bound leaves what uses least.
    """
    costs = _padded(problem, problem.cost, absent=np.inf)
    is_finite = np.isfinite(costs)
    if not is_finite.any(axis=1).all():
        return None
    uses = [_padded(problem, limit.uses, absent=0.0) for limit in problem.limits]
    scales = [_largest(used) for used in uses]
    unit_cost = _largest(costs[is_finite])
    units = np.arange(len(costs))
    prices = np.full(len(uses), 1e-6)
    best = None
    least = np.inf
    for round_ in range(ROUNDS):
        priced = costs / unit_cost
        for price, used, scale in zip(prices, uses, scales, strict=True):
            priced = priced + price * used / scale
        picks = priced.argmin(axis=1)
        sums = [float(used[units, picks].sum()) for used in uses]
        over = _exceeded(sums, problem.limits)
        total = float(costs[units, picks].sum())
        if not over.any() and total < least:
            best = problem.starts[:-1] + picks
            least = total
        step = 1.0 if round_ < WIDE else 20 / (20 + round_ - WIDE)
        raised = prices * (1 + RISE * step)
        lowered = prices * (1 - FALL * step)
        prices = np.where(over, raised, lowered)
    return best


def _padded(problem: _Problem, flat: np.ndarray, absent: float) -> np.ndarray:
    """Return numbers of choices as (units, choices); ``absent`` where there are none."""
    widest = max(problem.counts)
    is_there = np.arange(widest) < np.array(problem.counts)[:, None]
    padded = np.full(is_there.shape, absent)
    padded[is_there] = np.where(problem.allowed, flat, absent)
    return padded


def _exceeded(sums: Sequence[float], limits: Sequence[_Limit]) -> np.ndarray:
    over = []
    for total, limit in zip(sums, limits, strict=True):
        # Sums of many floats may pass a limit that they meet.
        slack = 1e-9 * abs(limit.most)
        over.append(total > limit.most + slack)
    return np.array(over, dtype=bool)
