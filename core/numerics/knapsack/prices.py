"""Prices of what is limited: a bound of every solution, and often a good one."""

from __future__ import annotations

import numpy as np

from .problem import GRID, Problem, priced

ROUNDS = 400
"""Steps of a search by several prices."""

WIDE = 100
"""Full steps at first, which reach any price that matters; then ever smaller ones."""

RISE, FALL = 0.4, 0.07
"""What a full step adds to the price of what is used too much, and takes from the others."""

HALVINGS = 80
"""Of the interval of one price: to the last digit."""

_NO_DIVISION_BY_ZERO = 1e-300


def _first_price(problem: Problem) -> float:
    """Return a price that is small beside all costs."""
    finite = problem.cost[np.isfinite(problem.cost)]
    largest = float(np.abs(finite).max(initial=0.0))
    return 1e-6 * max(largest, _NO_DIVISION_BY_ZERO) / GRID


def one_price(problem: Problem) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the price of a single limit at which the bound is best, and choices that keep it.

    Each unit takes what costs least with the price of what it uses.
    """

    def at(price: float) -> tuple[np.ndarray, bool]:
        picks = priced(problem, np.array([price])).argmin(axis=1)
        return picks, bool((problem.used(picks) <= problem.most).all())

    picks, fits = at(0.0)
    low = 0.0
    high = _first_price(problem)
    if fits:
        return np.zeros(1), picks
    while not fits and np.isfinite(high):
        picks, fits = at(high)
        if not fits:
            low, high = high, 8 * high
    if not fits:
        return np.array([low]), None
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        tried, fits = at(middle)
        if fits:
            high, picks = middle, tried
        else:
            low = middle
    return np.array([high]), picks


def by_prices(problem: Problem) -> tuple[np.ndarray, np.ndarray | None]:
    """Return prices of several limits with a good bound, and choices that keep all; None where none
    were found.

    The price of what is used too much rises, the others fall.
    """
    count = len(problem.most)
    prices = np.full(count, _first_price(problem))
    kept_prices = np.zeros(count)
    bound = -np.inf
    best = None
    least = np.inf
    for round_ in range(ROUNDS if count else 1):
        with_prices = priced(problem, prices)
        picks = with_prices.argmin(axis=1)
        reached = float(with_prices.min(axis=1).sum() - prices @ problem.most)
        if reached > bound:
            bound, kept_prices = reached, prices
        over = problem.used(picks) > problem.most
        total = problem.cost_of(picks)
        if not over.any() and total < least:
            best, least = picks, total
        step = 1.0 if round_ < WIDE else 20 / (20 + round_ - WIDE)
        raised = prices * (1 + RISE * step)
        lowered = prices * (1 - FALL * step)
        prices = np.where(over, raised, lowered)
    return kept_prices, best
