import itertools
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.core.errors import ConfigError
from octavo.core.numerics.knapsack import exact
from octavo.core.numerics.loss_tables import FEW, HullTable, LossTable, front

numbers = st.floats(0.0, 10.0, allow_nan=False)
units = st.lists(
    st.lists(st.tuples(numbers, numbers), min_size=1, max_size=4),
    min_size=1,
    max_size=5,
)


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
        assert sum(c[i] for c, i in zip(costs, picks, strict=True)) <= best + 1e-12
        assert sum(w[i] for w, i in zip(losses, picks, strict=True)) <= limit * (
            1 + 1e-8
        )


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
        assert (
            sum(w[i] for w, i in zip(losses, picks, strict=True))
            <= share * limit + rounding
        )


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
    assert (
        sum(c[i] for c, i in zip(costs, picks, strict=True))
        <= best + max(np.ptp(c) for c in costs) + 1e-9
    )


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


def test_a_choice_that_must_not_be_taken_does_not_blur_the_others():
    # Losses of 1e-7, 2e-7, ... beside a cost of 1000.
    random = np.random.default_rng(0)
    costs = [
        np.array([np.inf, 1e3, *np.sort(random.random(3))[::-1] * 1e-6])
        for _ in range(12)
    ]
    sizes = [np.array([0.0, 1.0, 2.0, 3.0, 4.0])] * 12
    picks = exact(costs, [(sizes, 38.0)])
    cheap = [np.array(c[2:]) for c in costs]
    assert min(picks) >= 2
    best = exact([c * 1e6 for c in cheap], [([s[2:] for s in sizes], 38.0)])
    assert [i - 2 for i in picks] == best
    with pytest.raises(ConfigError, match="no choice keeps the limits"):
        exact(costs, [(sizes, 3.0)])


def test_the_time_limit_is_not_taken_for_an_impossible_budget():
    random = np.random.default_rng(1)
    costs = [random.random(6) for _ in range(400)]
    uses = [[random.random(6) for _ in range(400)] for _ in range(6)]
    picks = exact(costs, [(u, 0.35 * 400) for u in uses], seconds=0.0)
    for use in uses:
        assert sum(u[i] for u, i in zip(use, picks, strict=True)) <= 0.35 * 400 * (
            1 + 1e-9
        )


@given(units, st.floats(0.5, 30.0), st.floats(0.5, 30.0))
@settings(max_examples=60, deadline=None)
def test_two_limits_find_what_brute_force_finds(rows, one, other):
    costs = [np.array([c for c, _ in row]) for row in rows]
    first = [np.array([w for _, w in row]) for row in rows]
    second = [10.0 - use for use in first]
    best = np.inf
    for picks in itertools.product(*(range(len(c)) for c in costs)):
        used = [total(uses, picks) for uses in (first, second)]
        if used[0] <= one and used[1] <= other:
            best = min(best, total(costs, picks))
    if np.isfinite(best):
        found = exact(costs, [(first, one), (second, other)])
        assert total(costs, found) <= best + 1e-12
        assert total(first, found) <= one * (1 + 1e-8)
        assert total(second, found) <= other * (1 + 1e-8)


def total(rows, picks):
    return sum(float(row[i]) for row, i in zip(rows, picks, strict=True))


def test_of_equal_costs_what_uses_least_is_taken():
    costs = [np.array([1.0, 1.0, 0.5]), np.array([2.0, 2.0, 2.0])]
    uses = [np.array([3.0, 1.0, 9.0]), np.array([2.0, 4.0, 1.0])]
    assert exact(costs, [(uses, 6.0)]) == [1, 2]


@given(units)
@settings(max_examples=80, deadline=None)
def test_the_front_is_what_brute_force_leaves(rows):
    losses = [np.array([c for c, _ in row]) for row in rows]
    uses = [np.array([w for _, w in row]) for row in rows]
    found = front(losses, uses)
    assert found.is_exact
    assert (np.diff(found.uses) > 0).all()
    assert (np.diff(found.losses) < 0).all()
    for point in range(len(found)):
        picks = found.picks(point)
        assert total(uses, picks) == pytest.approx(found.uses[point], abs=1e-9)
        assert total(losses, picks) == pytest.approx(found.losses[point], abs=1e-9)
    for picks in itertools.product(*(range(len(c)) for c in losses)):
        within = found.within(total(uses, picks) + 1e-9)
        assert found.losses[within] <= total(losses, picks) + 1e-9
        reaching = found.reaching(total(losses, picks) + 1e-9)
        assert found.uses[reaching] <= total(uses, picks) + 1e-9


@pytest.mark.parametrize("count", [60, FEW + 100])
def test_a_long_front_is_near_the_exact_optimum_everywhere(count):
    random = np.random.default_rng(2)
    losses = [np.sort(random.exponential(1.0, 4))[::-1] for _ in range(count)]
    losses[3][1] = np.inf
    sizes = np.exp(random.normal(0.0, 0.8, count))
    uses = [size * np.array([2.0, 3.0, 4.0, 8.0]) for size in sizes]
    found = front(losses, uses)
    for bits in (2.2, 2.5, 3.0, 4.25, 6.0):
        limit = bits * sizes.sum()
        best = total(losses, exact(losses, [(uses, limit)]))
        point = found.within(limit)
        assert found.uses[point] <= limit * (1 + 1e-9)
        assert best * (1 - 1e-9) <= found.losses[point] <= 1.01 * best
        assert total(losses, found.picks(point)) == pytest.approx(found.losses[point])
    assert found.within(1.99 * sizes.sum()) is None
    assert found.reaching(-1.0) is None


SOLVED_TWICE = """
import pathlib
import sys
import numpy as np
from octavo.core.numerics.knapsack import exact
draw = np.random.default_rng(3)
for count in (42, 120):
    costs = [np.sort(draw.exponential(1.0, 5))[::-1] for _ in range(count)]
    sizes = np.exp(draw.normal(0.0, 0.8, count))
    uses = [size * np.array([2.0, 3.0, 4.0, 8.0, 32.0]) for size in sizes]
    picks = exact(costs, [(uses, 3.3 * sizes.sum())])
    with pathlib.Path(sys.argv[1]).open("a") as kept:
        kept.write(repr(picks))
"""


def test_every_process_finds_the_same_and_nothing_is_printed(tmp_path):
    found = []
    for seed in ("1", "2"):
        kept = tmp_path / seed
        command = [sys.executable, "-c", SOLVED_TWICE, str(kept)]
        # The child's own descriptors are read, so that what native code prints counts too.
        done = subprocess.run(
            command, capture_output=True, env={**os.environ, "PYTHONHASHSEED": seed}
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout == done.stderr == b""
        found.append(kept.read_text())
    assert found[0] == found[1]
    assert found[0].count("[") == 2
