"""When a search is followed by recovery, and what time it leaves to it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from octavo.core.system.clock import Clock
from octavo.core.tuning.recovery.after_search import AfterSearch
from octavo.core.tuning.recovery.ladder import LadderPlan
from octavo.core.values.recipe import Recipe
from octavo.core.values.scheme import PartChoice
from octavo.core.values.trial import Trial

PLAN = LadderPlan((PartChoice(kind="qat"),), 2)
MISSED = Trial(1, Recipe(backend="torch"), margin=-1.0)
PASSED = Trial(2, Recipe(backend="torch"), passed=True)
RECOVERED = Trial(3, MISSED.recipe.recovered(*PLAN.steps), passed=True)


class Left(Clock):
    """A clock on which so many seconds are left."""

    def __init__(self, limit: float | None, left: float) -> None:
        super().__init__(limit=limit)
        self._left = left

    @property
    def left(self) -> float:
        return self._left


def after(*trials: Trial, clock: Clock | None = None, plan: LadderPlan = PLAN) -> Any:
    bench: Any = SimpleNamespace(trials=trials, clock=clock or Clock())
    return AfterSearch(bench, plan)


def test_it_follows_where_no_trial_of_the_search_passes() -> None:
    assert after(MISSED).may_come
    # One that was cut off goes on, though a recovery passed before.
    assert after(MISSED, RECOVERED).may_come
    assert not after(MISSED, PASSED).may_come
    assert not after(MISSED, plan=LadderPlan()).may_come
    assert not after(MISSED, clock=Left(9.0, 0.0)).may_come


@pytest.mark.parametrize(
    ("limit", "left", "trials", "ends"),
    [
        (90.0, 31.0, (MISSED,), False),
        (90.0, 29.0, (MISSED,), True),
        (90.0, 29.0, (PASSED,), False),
        (None, 1e9, (MISSED,), False),
    ],
)
def test_a_search_leaves_a_third_of_the_time(
    limit: float | None, left: float, trials: tuple[Trial, ...], ends: bool
) -> None:
    found = after(*trials, clock=Left(limit, left)).why_search_ends()
    assert bool(found) is ends
    if ends:
        assert found.startswith("two thirds of the time limit of 90 s were used up")
