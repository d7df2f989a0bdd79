"""Recipes that a rule gives, whatever is believed of losses: cheapest, of 8 bits, of one way."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import numpy as np

from octavo.core.contract.strategy import Problem
from octavo.core.numerics.knapsack import exact
from octavo.core.values.scheme import OpScheme
from octavo.core.values.space import Unit
from octavo.strategies.beliefs.cost_belief import CostBelief, Family, families
from octavo.strategies.beliefs.limits import Limits
from octavo.strategies.beliefs.picks import Picks

SPENT = 0.01
"""Share of the least cost that is spent on the backend's first choices.

A scale for each channel, eight bits for a tiny layer.
"""


def cheapest_within(costs: Sequence[np.ndarray], limits: Limits) -> Picks:
    """Return each unit's cheapest choice.

    Save where the backend's first choice costs next to nothing more. Under budgets, the
    cheapest recipe that keeps them.

    Args:
        costs: Of every choice of each unit.
        limits: The budgets.

    Raises:
        ConfigError: If none keeps them.
    """
    picks = [int(np.argmin(cost)) for cost in costs]
    room = SPENT * sum(float(cost.min()) for cost in costs)
    extras = []
    for unit, cost in enumerate(costs):
        if len(cost) > 1:
            extra = float(cost[0] - cost.min())
            extras.append((extra, unit))
    for extra, unit in sorted(extras):
        room -= extra
        if room < 0:
            break
        picks[unit] = 0
    if limits.fits(tuple(picks)):
        return tuple(picks)
    return tuple(exact(costs, limits.rows()))


def eight_bits(units: Sequence[Unit], mode: str) -> Picks:
    """Return the recipe that takes a mode at 8 bits or more wherever it is offered.

    Else any at 8 bits, else float.
    """
    return tuple(_at_eight_bits(unit.choices, mode) for unit in units)


def _at_eight_bits(choices: Sequence[OpScheme], mode: str) -> int:
    wide = []
    for index, scheme in enumerate(choices):
        if scheme.is_float or scheme.weight_bits < 8:
            continue
        if scheme.mode == mode:
            return index
        wide.append(index)
    return wide[0] if wide else len(choices) - 1


def uniform(units: Sequence[Unit], cheapest: Picks) -> Iterator[Picks]:
    """Yield recipes that take one mode and width wherever it is offered.

    The backend's first of it, and the cheapest choice where there is none; the last one takes
    the cheapest everywhere.
    """
    ways_of = [[(s.mode, s.weight_bits) for s in unit.choices] for unit in units]
    # Float, which each unit offers last, is no way of its own.
    every = dict.fromkeys(way for ways in ways_of for way in ways[:-1])
    for way in every:
        picks = list(cheapest)
        for row, ways in enumerate(ways_of):
            if way in ways:
                picks[row] = ways.index(way)
        yield tuple(picks)
    yield cheapest


def most_hopeful(
    problem: Problem,
    cheapest: Picks,
    costs: CostBelief,
    limits: Limits,
    tried: Collection[tuple[Family, ...]],
    bound: float,
) -> Picks | None:
    """Return the uniform recipe that may cost the least, below a bound; None where none may.

    Args:
        problem: Gives the units.
        cheapest: What is taken where a way is not offered.
        costs: What is believed of the objective.
        limits: What recipes may use.
        tried: The families of recipes that were evaluated.
        bound: What it must be able to undercut, as a share of the float model's cost.
    """
    options = {}
    # Of recipes of the same families the first one stays.
    for picks in reversed(list(uniform(problem.space.tunable, cheapest))):
        options[families(problem, picks)] = picks
    hopes = []
    for of, picks in options.items():
        mean, deviation = costs.predict(picks)
        hoped = mean - deviation
        is_hopeful = of not in tried and hoped < bound
        if is_hopeful and limits.fits(picks):
            hopes.append((hoped, picks))
    if not hopes:
        return None
    _, picks = min(hopes)
    return picks
