"""A solver that ran out of time has not proved that nothing fits."""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.core.errors import ConfigError
from octavo.core.numerics.knapsack import exact

numbers = st.floats(0.0, 10.0, allow_nan=False)
units = st.lists(
    st.lists(st.tuples(numbers, numbers), min_size=1, max_size=4),
    min_size=1,
    max_size=5,
)


def sums(rows: Sequence[np.ndarray], picks: Sequence[int]) -> float:
    return sum(float(row[i]) for row, i in zip(rows, picks, strict=True))


def hard(
    count: int = 300, seed: int = 0
) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
    """Costs and two uses that pull against each other: seconds of work for the solver, and it has a
    microsecond."""
    draw = np.random.default_rng(seed)
    return (
        [draw.random(6) for _ in range(count)],
        [draw.random(6) for _ in range(count)],
        [draw.random(6) for _ in range(count)],
    )


def test_without_time_a_choice_that_keeps_the_limits_is_found_all_the_same() -> None:
    costs, first, second = hard()
    limits = [(first, 100.0), (second, 100.0)]
    picks = exact(costs, limits, seconds=1e-9)
    assert sums(first, picks) <= 100.0 + 1e-6
    assert sums(second, picks) <= 100.0 + 1e-6
    assert sums(costs, picks) <= 1.1 * sums(costs, exact(costs, limits, gap=0.01))


@given(units, st.floats(0.5, 30.0), st.integers(1, 2))
@settings(max_examples=60, deadline=None)
def test_without_time_something_is_found_wherever_a_single_limit_lets_brute_force(
    rows: list[list[tuple[float, float]]], limit: float, count: int
) -> None:
    costs = [np.array([c for c, _ in row]) for row in rows]
    uses = [np.array([w for _, w in row]) for row in rows]
    every = itertools.product(*(range(len(c)) for c in costs))
    if any(sums(uses, picks) <= limit for picks in every):
        # The same limit twice is no other problem.
        found = exact(costs, [(uses, limit)] * count, seconds=0.0)
        assert sums(uses, found) <= limit * (1 + 1e-8)
    else:
        with pytest.raises(ConfigError, match="no choice keeps the limits"):
            exact(costs, [(uses, limit * (1 - 1e-6))] * count, seconds=0.0)


def test_what_is_proved_and_what_is_not_are_told_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(ConfigError, match="at least 2 against 1"):
        exact([np.array([0.0, 1.0])] * 2, [([np.array([2.0, 1.0])] * 2, 1.0)])
    costs, first, _ = hard(300)
    second = [
        1.0 - u for u in first
    ]  # what one limit takes the other needs: the sum is 300 in any case
    with pytest.raises(ConfigError, match="nor that there is none"):
        exact(costs, [(first, 149.0), (second, 149.0)], seconds=1e-9)


def test_costs_of_very_different_size_are_told_apart() -> None:
    uses = [np.array([1.0, 0.0])] * 2
    costs = [np.array([1e-6, 1e6]), np.array([1e-6, 2e6])]
    assert exact(costs, [(uses, 2.0)]) == [0, 0]
    assert exact(costs, [(uses, 1.0)]) == [1, 0]


def test_a_choice_that_uses_without_bound_is_never_taken() -> None:
    uses = [np.array([np.inf, 1.0]), np.array([1.0, np.inf])]
    assert exact([np.array([0.0, 1.0])] * 2, [(uses, 5.0)]) == [1, 0]
