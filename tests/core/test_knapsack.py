import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.core.errors import ConfigError
from octavo.core.knapsack import HullTable, LossTable, exact

numbers = st.floats(0.0, 10.0, allow_nan=False)
units = st.lists(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=4), min_size=1, max_size=5)


def brute_force(costs, losses, limit):
    best = np.inf
    for picks in itertools.product(*(range(len(c)) for c in costs)):
        if sum(w[i] for w, i in zip(losses, picks, strict=True)) <= limit:
            best = min(best, sum(c[i] for c, i in zip(costs, picks, strict=True)))
    return best


@given(units, st.floats(0.5, 30.0))
@settings(max_examples=60, deadline=None)
def test_the_integer_program_finds_what_brute_force_finds(rows, limit):
    costs = [np.array([c for c, _ in row]) for row in rows]
    losses = [np.array([w for _, w in row]) for row in rows]
    best = brute_force(costs, losses, limit - 1e-6)
    if np.isfinite(best):
        picks = exact(costs, [(losses, limit)])
        assert sum(c[i] for c, i in zip(costs, picks, strict=True)) <= best + 1e-6
        assert sum(w[i] for w, i in zip(losses, picks, strict=True)) <= limit + 1e-4


@given(units, st.floats(0.5, 30.0), st.floats(0.1, 1.0))
@settings(max_examples=100, deadline=None)
def test_the_table_is_as_good_as_brute_force_up_to_its_resolution(rows, limit, share):
    costs = [np.array([c for c, _ in row]) for row in rows]
    losses = [np.array([w for _, w in row]) for row in rows]
    rounding = len(rows) * limit / 4096
    picks = LossTable(costs, losses, limit).pick(share * limit)
    best = brute_force(costs, losses, share * limit - rounding)
    if picks is None:
        assert best == np.inf
    else:
        assert sum(c[i] for c, i in zip(costs, picks, strict=True)) <= best + 1e-9
        assert sum(w[i] for w, i in zip(losses, picks, strict=True)) <= share * limit + rounding


@given(units, st.floats(0.5, 30.0))
@settings(max_examples=100, deadline=None)
def test_the_hull_keeps_the_limit_and_loses_at_most_one_step(rows, limit):
    costs = [np.array([c for c, _ in row]) for row in rows]
    losses = [np.array([w for _, w in row]) for row in rows]
    picks = HullTable(costs, losses).pick(limit)
    best = brute_force(costs, losses, limit * (1 - 1e-9))
    if picks is None:
        assert best == np.inf
        return
    assert sum(w[i] for w, i in zip(losses, picks, strict=True)) <= limit * (1 + 1e-9)
    assert sum(c[i] for c, i in zip(costs, picks, strict=True)) <= best + max(np.ptp(c) for c in costs) + 1e-9


def test_the_hull_is_near_the_optimum_where_there_are_many_units():
    random = np.random.default_rng(0)
    costs = [np.sort(random.random(4)) for _ in range(400)]
    losses = [np.sort(random.exponential(1.0, 4))[::-1] for _ in range(400)]
    limit = 0.4 * sum(w[0] for w in losses)
    near, best = HullTable(costs, losses).pick(limit), exact(costs, [(losses, limit)])
    cost = [sum(c[i] for c, i in zip(costs, p, strict=True)) for p in (near, best)]
    assert cost[0] <= 1.005 * cost[1]


def test_several_limits_hold_at_once():
    costs = [np.array([0.0, 1.0, 2.0])] * 3
    first, second = [np.array([4.0, 1.0, 0.0])] * 3, [np.array([0.0, 2.0, 1.0])] * 3
    picks = exact(costs, [(first, 5.0), (second, 3.0)])
    assert sum(first[0][i] for i in picks) <= 5.0
    assert sum(second[0][i] for i in picks) <= 3.0


def test_an_impossible_budget_says_what_is_possible():
    with pytest.raises(ConfigError, match="at least 6"):
        exact([np.array([1.0])] * 3, [([np.array([2.0])] * 3, 5.0)])
