"""Whether a strategy keeps the rules of ask and tell."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import pytest

from octavo.core.contract.parts import Part, PartConfig
from octavo.core.contract.strategy import Foresight, Problem, Strategy, Wait
from octavo.core.values.recipe import Recipe
from octavo.core.values.scheme import FLOAT, OpScheme, PartChoice, QuantSpec
from octavo.core.values.space import TuningSpace, Unit
from octavo.core.values.trial import Measurement, Trial

MOST_PENDING = 3
"""Recipes that wait for an answer at once, as with a few workers."""


@dataclass(frozen=True)
class StrategyCase:
    """A strategy under test.

    Attributes:
        card: Its card.
        config: Its settings; None for the defaults.
        units: Ops of the small space that it searches.
        budgets: For strategies that keep a budget.
        limit: Trials after which the test stops asking.
    """

    card: Part[Any]
    config: PartConfig | None = None
    units: int = 5
    budgets: dict[str, float] = field(default_factory=dict)
    limit: int = 60

    def strategy(self, problem: Problem) -> Strategy:
        """Build it."""
        return self.card.build(self.config, problem)  # type: ignore[no-any-return]

    def problem(self, seed: int = 0) -> Problem:
        """Return a small problem: two op types, static and dynamic int8, one transform."""
        units = tuple(_unit(i) for i in range(self.units))
        space = TuningSpace("toy", units, ((), (PartChoice(kind="smoothing"),)))
        losses = _losses(space)

        def sensitivity(
            kind: str, pairs: Sequence[tuple[str, OpScheme]]
        ) -> Sequence[float]:
            return [
                0.0 if scheme.is_float else losses[name, scheme.mode]
                for name, scheme in pairs
            ]

        return Problem(
            space, ("latency", "size"), seed, sensitivity, False, self.budgets
        )


def _unit(i: int) -> Unit:
    weight = QuantSpec(dtype="int8", granularity="channel")
    source = QuantSpec(dtype="uint8", symmetric=False)
    static = OpScheme(mode="static", weight=weight, input=source)
    dynamic = OpScheme(mode="dynamic", weight=weight, input=source)
    name = f"block.{i // 2}.op{i}"
    return Unit(
        name,
        ("linear", "conv")[i % 2],
        (name,),
        (static, dynamic, FLOAT),
        block=f"block.{i // 2}",
        parameters=100 * (i + 1),
        channels=10,
    )


def _losses(space: TuningSpace) -> dict[tuple[str, str], float]:
    random = np.random.default_rng(7)
    losses = {}
    for unit in space.units:
        for mode in ("static", "dynamic"):
            losses[unit.name, mode] = float(random.exponential(0.2))
    return losses


def judge(space: TuningSpace, number: int, recipe: Recipe) -> Trial:
    """Score a recipe of the toy space.

    Each op costs its loss, and quantizing makes it faster and smaller.
    """
    losses = _losses(space)
    speed = {"float": 1.0, "dynamic": 0.5, "static": 0.3}
    loss = 0.0
    latency = 0.0
    for unit in space.units:
        scheme = recipe[unit.name]
        latency += speed[scheme.mode] * unit.parameters
        if not scheme.is_float:
            loss += losses[unit.name, scheme.mode]
    if recipe.transforms:
        loss *= 0.8
    size = space.weight_bytes(recipe)
    margin = 1.0 - loss
    objectives = {
        "latency": Measurement(latency, latency, latency, "ms"),
        "size": Measurement(size, size, size, "bytes"),
    }
    return Trial(
        number,
        recipe,
        metrics={"score": 1 - loss},
        passed=margin >= 0,
        margin=margin,
        objectives=objectives,
    )


def search(
    strategy: Strategy,
    space: TuningSpace,
    limit: int,
    answer: Callable[[int, Recipe], Trial],
) -> list[Recipe]:
    """Ask and tell until the end or the limit; returns the recipes in order."""
    asked: list[Recipe] = []
    while len(asked) < limit:
        recipe = strategy.ask()
        if recipe is None:
            return asked
        assert not isinstance(recipe, Wait), (
            "WAIT was returned although no trial is pending"
        )
        asked.append(recipe)
        strategy.tell(answer(len(asked), recipe))
    return asked


def _searched(case: StrategyCase, problem: Problem) -> list[Recipe]:
    """Return what a fresh strategy asks for on a problem."""
    space = problem.space
    return search(case.strategy(problem), space, case.limit, partial(judge, space))


class StrategyConformance:
    """Subclass it and give the fixture ``case``."""

    @pytest.fixture
    def case(self) -> StrategyCase:
        """Return the case under test."""
        raise NotImplementedError(
            "a subclass of StrategyConformance gives the fixture `case`"
        )

    def test_asks_points_of_the_space_and_ends(self, case: StrategyCase) -> None:
        """Every recipe belongs to the space, and no error comes before the end or the limit."""
        problem = case.problem()
        asked = _searched(case, problem)
        assert asked, "the strategy asked for nothing"
        assert all(problem.space.contains(recipe) for recipe in asked)

    def test_the_same_seed_gives_the_same_search(self, case: StrategyCase) -> None:
        """Determinism."""
        first = _searched(case, case.problem(seed=3))
        second = _searched(case, case.problem(seed=3))
        assert [recipe.digest for recipe in first] == [
            recipe.digest for recipe in second
        ]

    def test_a_search_is_rebuilt_from_any_prefix_of_its_history(
        self, case: StrategyCase
    ) -> None:
        """After a crash the loop asks and tells the history again: the continuation is the same."""
        problem = case.problem()
        space = problem.space
        answer = partial(judge, space)
        whole = _searched(case, problem)
        cuts = {1, len(whole) // 2, len(whole) - 1} - {0}
        for cut in sorted(cuts):
            fresh = case.strategy(case.problem())
            replayed = search(fresh, space, cut, answer)
            assert replayed == whole[:cut]
            rest = search(fresh, space, case.limit - cut, answer)
            assert rest == whole[cut:]

    def test_failed_trials_do_not_stop_it(self, case: StrategyCase) -> None:
        """All trials fail: the search ends, or goes on to the limit, without an exception."""
        problem = case.problem()

        def fail(number: int, recipe: Recipe) -> Trial:
            return Trial(number, recipe, "failed", error="out of memory")

        assert search(case.strategy(problem), problem.space, case.limit, fail)

    def test_may_be_asked_before_it_is_told(self, case: StrategyCase) -> None:
        """Pending recipes are not returned again; WAIT comes where an answer is needed first."""
        problem = case.problem()
        strategy = case.strategy(problem)
        pending: list[Recipe] = []
        told = 0
        for _ in range(case.limit):
            recipe = strategy.ask()
            if recipe is None and not pending:
                break
            if isinstance(recipe, Recipe):
                assert recipe not in pending, "a pending recipe was asked for again"
                pending.append(recipe)
            if not isinstance(recipe, Recipe) or len(pending) > MOST_PENDING:
                told += 1
                strategy.tell(judge(problem.space, told, pending.pop(0)))

    def test_foresees_what_it_asks_for(self, case: StrategyCase) -> None:
        """No more recipes come than it said, and no sensitivity after it said that none would."""
        given, probed = case.problem(), [0]

        def counted(
            kind: str, pairs: Sequence[tuple[str, OpScheme]]
        ) -> Sequence[float]:
            assert given.sensitivity is not None
            probed[0] += 1
            return given.sensitivity(kind, pairs)

        strategy = case.strategy(replace(given, sensitivity=counted))
        foreseen: list[tuple[Foresight, int]] = []

        def answer(number: int, recipe: Recipe) -> Trial:
            foreseen.append((strategy.foresee(), probed[0]))
            return judge(given.space, number, recipe)

        asked = search(strategy, given.space, case.limit, answer)
        for number, (ahead, probes) in enumerate(foreseen, 1):
            came = len(asked) - number
            assert ahead.trials is None or came <= ahead.trials, (number, ahead)
            may_probe = ahead.probes or ahead.probes_each
            assert may_probe or probed[0] == probes, (number, ahead)

    def test_explains_itself(self, case: StrategyCase) -> None:
        """One line, at any time."""
        problem = case.problem()
        strategy = case.strategy(problem)
        assert "\n" not in strategy.explain()
        search(strategy, problem.space, 5, partial(judge, problem.space))
        assert "\n" not in strategy.explain()
