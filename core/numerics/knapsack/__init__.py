"""Multiple-choice knapsack: one choice for each unit, the least cost within limits.

A dynamic program over the states that a Lagrangian bound leaves: the idea of Pisinger, "A minimal
algorithm for the multiple-choice knapsack problem" (1995), sections 2 to 4, with prices in place of
the continuous relaxation. It depends on nothing but its arguments, and it prints nothing.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from octavo.core.errors import ConfigError

from .prices import by_prices, one_price
from .problem import Costs, Problem
from .states import solve

WIDTHS = (256, 4096, 65536)
"""States that are kept: few find a good solution, by which many are left out of the next round."""

WIDEST_OF_SEVERAL = 16384
"""The same under several limits, where hardly a state rules out another."""


def exact(
    costs: Costs,
    limits: Sequence[tuple[Costs, float]],
    *,
    gap: float = 0.0,
    seconds: float = 60.0,
) -> list[int]:
    """Return the cheapest choices under several limits; of equally cheap ones what uses least.

    Under one limit they are the optimum, save where more than :data:`WIDTHS` states are left.

    Args:
        costs: For each unit, the cost of each choice; an infinite one is never taken.
        limits: Pairs of (what each choice uses, how much all may use together).
        gap: Share of the cost that may be given away.
        seconds: Time limit. The best choices found until then are returned.

    Returns:
        The index of each unit's choice. The same arguments give the same choices in any process.

    Raises:
        ConfigError: If no choice keeps the limits; or if the search ended without a choice and
            without a proof that there is none. The message says which.
    """
    deadline = time.monotonic() + seconds
    problem = Problem.of(costs, limits)
    if not problem.possible:
        raise ConfigError(impossible(costs, limits))
    prices, best = one_price(problem) if len(limits) == 1 else by_prices(problem)
    is_proved = False
    widest = WIDTHS[-1] if len(limits) == 1 else WIDEST_OF_SEVERAL
    for width in (min(width, widest) for width in WIDTHS):
        if time.monotonic() >= deadline:
            break
        best, is_proved = solve(problem, prices, best, gap, width, deadline)
        if is_proved:
            break
    if best is not None:
        return [int(index) for index in best]
    if is_proved:
        raise ConfigError(impossible(costs, limits))
    raise ConfigError(
        "the integer program found no choice that keeps the limits within "
        f"{seconds:g} s, nor that there is none: raise the budget, or let rules offer fewer "
        "schemes"
    )


def impossible(costs: Costs, limits: Sequence[tuple[Costs, float]]) -> str:
    """Say how little could be used of what is limited, against the limits."""
    found = []
    for uses, most in limits:
        floor = 0.0
        for use, cost in zip(uses, costs, strict=True):
            there = np.asarray(use)[np.isfinite(cost)]
            floor += float(there.min(initial=np.inf))
        found.append(f"at least {floor:.6g} against {most:.6g}")
    return (
        f"no choice keeps the limits: {'; '.join(found)}; raise the budget, "
        "or offer smaller schemes"
    )


__all__ = ["exact"]
