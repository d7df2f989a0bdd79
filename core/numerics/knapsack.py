"""Multiple-choice knapsack: one choice for each unit, the least cost within a limit of loss (or of anything that adds up)."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_matrix

from octavo.core.errors import ConfigError

FEW = 200  # units up to which a step of one of them matters
INFEASIBLE = 2  # status of scipy's milp: proved, where 1 is out of time or iterations and 4 numerical trouble
ROUNDS, WIDE = (
    400,
    100,
)  # of a search by prices: full steps at first, which reach any price that matters; then ever smaller
RISE, FALL = 0.4, 0.07
FINEST, COARSEST = 8192, 2048  # bins: many units round losses both ways and need fewer


class LossTable:
    """The least cost for every limit up to ``limit`` at once: a dynamic program over losses rounded to bins.

    Args:
        costs: For each unit, the cost of each choice.
        losses: The same for the losses, >= 0.
        limit: The largest limit that will be asked for.

    Time and memory are O(choices * bins); 1024 units of 4 choices take about 0.04 s and 2 MiB.
    """

    def __init__(
        self, costs: Sequence[np.ndarray], losses: Sequence[np.ndarray], limit: float
    ) -> None:
        self._limit = limit
        self.bins = int(np.clip(2**21 // max(1, len(costs)), COARSEST, FINEST))
        step = limit / self.bins if limit > 0 else 1.0
        self._widths = [
            np.rint(np.minimum(w, 2 * limit) / step).astype(np.int64).tolist() for w in losses
        ]
        best = np.zeros(self.bins + 1)
        self._taken: list[np.ndarray] = []
        for cost, widths in zip(costs, self._widths, strict=True):
            least = np.full(self.bins + 1, np.inf)
            taken = np.zeros(self.bins + 1, dtype=np.uint8 if len(cost) < 256 else np.int32)
            for index, (c, w) in enumerate(zip(cost.tolist(), widths, strict=True)):
                if w <= self.bins:
                    offered = best[: self.bins + 1 - w] + c
                    better = offered < least[w:]
                    np.copyto(least[w:], offered, where=better)
                    taken[w:][better] = index
            best = least
            self._taken.append(taken)
        self._best = best

    def pick(self, limit: float) -> list[int] | None:
        """Return the index of each unit's choice for a limit up to that of the table; None where nothing fits."""
        at = (
            self.bins
            if limit >= self._limit
            else int(max(0.0, limit) / self._limit * self.bins)
            if self._limit > 0
            else 0
        )
        if not np.isfinite(self._best[at]):
            return None
        picks = []
        for taken, widths in zip(reversed(self._taken), reversed(self._widths), strict=True):
            choice = int(taken[at])
            picks.append(choice)
            at -= widths[choice]
        return picks[::-1]


class HullTable:
    """The same by the continuous relaxation: every unit climbs the convex hull of its choices, the best exchange first.

    What it loses against the optimum is less than one step of one unit, which is nothing where there are many.

    Args:
        costs: As for :class:`LossTable`.
        losses: As there.
    """

    def __init__(self, costs: Sequence[np.ndarray], losses: Sequence[np.ndarray]) -> None:
        units, width = np.arange(len(costs)), max(map(len, costs), default=0)
        cost, loss = np.full((len(units), width), np.inf), np.full((len(units), width), np.inf)
        for row, (c, w) in enumerate(zip(costs, losses, strict=True)):
            cost[row, : len(c)], loss[row, : len(w)] = c, w
        # Of equal costs the one that loses least is where a unit starts.
        cheapest = cost == cost.min(axis=1, keepdims=True)
        at = np.where(cheapest, loss, np.inf).argmin(axis=1)
        self._start = at.copy()
        rates, moved, targets, gains = [], [], [], []
        for _ in range(width - 1):
            gain = loss[units, at][:, None] - loss
            with np.errstate(invalid="ignore", divide="ignore"):
                rate = np.where(
                    gain > 0, gain / np.maximum(cost - cost[units, at][:, None], 1e-300), -np.inf
                )
            following = rate.argmax(axis=1)
            going = rate[units, following] > 0
            rates.append(rate[units, following][going])
            gains.append(gain[units, following][going])
            moved.append(units[going])
            targets.append(following[going])
            at = np.where(going, following, at)
        order = np.argsort(-np.concatenate([*rates, []]), kind="stable")
        self._moved = np.concatenate([*moved, []]).astype(np.int64)[order]
        self._targets = np.concatenate([*targets, []]).astype(np.int64)[order]
        self._losses = float(loss[units, self._start].sum()) - np.concatenate(
            [[0.0], np.cumsum(np.concatenate([*gains, []])[order])]
        )

    def pick(self, limit: float) -> list[int] | None:
        """Return the index of each unit's choice; None where nothing fits."""
        fits = np.flatnonzero(self._losses <= limit * (1 + 1e-12))
        if not len(fits):
            return None
        picks = self._start.copy()
        for unit, target in zip(
            self._moved[: fits[0]].tolist(), self._targets[: fits[0]].tolist(), strict=True
        ):
            picks[unit] = target
        return [int(i) for i in picks]


def table(
    costs: Sequence[np.ndarray], losses: Sequence[np.ndarray], limit: float
) -> LossTable | HullTable:
    """Return the table to take: exact for few units, the hull for many."""
    return LossTable(costs, losses, limit) if len(costs) <= FEW else HullTable(costs, losses)


def exact(
    costs: Sequence[np.ndarray],
    limits: Sequence[tuple[Sequence[np.ndarray], float]],
    *,
    gap: float = 0.0,
    seconds: float = 60.0,
) -> list[int]:
    """Return the cheapest choices under several limits, by integer programming (HiGHS through scipy).

    Args:
        costs: For each unit, the cost of each choice; an infinite one is never taken.
        limits: Pairs of (what each choice uses, how much all may use together).
        gap: Relative gap at which the solver may stop.
        seconds: Time limit. The best choices found until then are returned; where the solver has none, those of a search by prices.

    Raises:
        ConfigError: If no choice keeps the limits; or if the solver ended without a choice and without a proof that there is none,
            and none was found by prices either. The message says which.
    """
    cost = np.concatenate([np.asarray(c, dtype=np.float64) for c in costs])
    counts = [len(c) for c in costs]
    rows = [
        (np.concatenate([np.asarray(u, dtype=np.float64) for u in uses]), float(limit))
        for uses, limit in limits
    ]
    allowed = np.isfinite(cost)
    for row, _ in rows:
        allowed &= np.isfinite(row)
    picks = _solve(cost, allowed, counts, rows, gap, seconds)
    if picks is None:
        picks = _by_prices(cost, allowed, counts, rows)
        if picks is None:
            raise ConfigError(
                f"the integer program found no choice that keeps the limits within {seconds:g} s, nor that there is none: "
                "raise the budget, or let rules offer fewer schemes"
            )
    total = float(cost[picks].sum())
    # The solver's tolerances are absolute. Where the optimum is tiny beside some costs, these are in no optimum: without them
    # the numbers are of one size, and small differences count. What was found stands where this ends without an answer.
    if 0 < total < 1e-3 * float(cost[allowed].max()):
        with contextlib.suppress(ConfigError):
            finer = _solve(cost, allowed & (cost <= total), counts, rows, gap, seconds)
            picks = picks if finer is None else finer
    starts = np.concatenate([[0], np.cumsum(counts)])
    return [int(i) for i in picks - starts[:-1]]


Row = tuple[np.ndarray, float]


def _solve(
    cost: np.ndarray,
    allowed: np.ndarray,
    counts: Sequence[int],
    rows: Sequence[Row],
    gap: float,
    seconds: float,
) -> np.ndarray | None:
    """Return the positions of the chosen among all choices; None where the solver ended without one and without a proof.

    Raises:
        ConfigError: If it is proved that there is none.
    """
    total, starts = len(cost), np.concatenate([[0], np.cumsum(counts)])
    one_each = csr_matrix((np.ones(total), np.arange(total), starts), shape=(len(counts), total))
    constraints = [LinearConstraint(one_each, 1, 1)]
    for uses, limit in rows:
        row = np.where(allowed, uses, 0.0)
        scale = max(float(np.abs(row).max()), 1e-300)
        constraints.append(LinearConstraint(csr_matrix(row[None] / scale), -np.inf, limit / scale))
    finite = np.where(allowed, cost, 0.0)
    scale = max(float(np.abs(finite).max()), 1e-300)
    options = {"mip_rel_gap": gap, "time_limit": seconds}
    bounds = Bounds(np.zeros(total), allowed.astype(float))
    found = milp(
        finite / scale,
        integrality=np.ones(total),
        bounds=bounds,
        constraints=constraints,
        options=options,
    )
    if found.x is None and found.status == INFEASIBLE:
        floors = [
            sum(float(part.min()) for part in np.split(uses, starts[1:-1])) for uses, _ in rows
        ]
        least = "; ".join(
            f"at least {floor:.6g} against {limit:.6g}"
            for floor, (_, limit) in zip(floors, rows, strict=True)
        )
        raise ConfigError(
            f"no choice keeps the limits: {least}; raise the budget, or offer smaller schemes"
        )
    if found.x is None:  # out of time, or in numerical trouble
        return None
    return np.array([a + int(np.argmax(found.x[a:b])) for a, b in pairwise(starts)], dtype=np.int64)


def _by_prices(
    cost: np.ndarray, allowed: np.ndarray, counts: Sequence[int], rows: Sequence[Row]
) -> np.ndarray | None:
    """Return the positions of choices that keep the limits; None where none were found.

    Each unit takes what costs least at the present prices of what it uses. The price of what is used too much rises, the
    others fall, and the cheapest choices that kept all limits are returned: not the optimum, and no proof. Under a single
    limit something is found wherever there is anything, as a price without bound leaves what uses least.
    """
    shape = (len(counts), max(counts))
    held = np.arange(shape[1]) < np.array(counts)[:, None]

    def table(flat: np.ndarray, absent: float) -> np.ndarray:
        padded = np.full(shape, absent)
        padded[held] = flat
        return padded

    costs = table(np.where(allowed, cost, np.inf), np.inf)
    uses = [table(np.where(allowed, row, 0.0), 0.0) for row, _ in rows]
    scales = [max(float(np.abs(u).max()), 1e-300) for u in uses]
    unit_cost = max(float(np.abs(costs[np.isfinite(costs)]).max(initial=0.0)), 1e-300)
    units, starts = np.arange(shape[0]), np.concatenate([[0], np.cumsum(counts)])[:-1]
    if not np.isfinite(costs).any(axis=1).all():
        return None
    prices, best, least = np.full(len(rows), 1e-6), None, np.inf
    for round_ in range(ROUNDS):
        priced = costs / unit_cost
        for price, used, scale in zip(prices, uses, scales, strict=True):
            priced = priced + price * used / scale
        picks = priced.argmin(axis=1)
        sums = [float(used[units, picks].sum()) for used in uses]
        over = np.array(
            [
                total > limit + 1e-9 * abs(limit)
                for total, (_, limit) in zip(sums, rows, strict=True)
            ],
            dtype=bool,
        )
        total = float(costs[units, picks].sum())
        if not over.any() and total < least:
            best, least = starts + picks, total
        step = 1.0 if round_ < WIDE else 20 / (20 + round_ - WIDE)
        prices = np.where(over, prices * (1 + RISE * step), prices * (1 - FALL * step))
    return best
