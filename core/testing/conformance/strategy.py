"""Whether a strategy keeps the rules of ask and tell."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pytest

from octavo.core.contract.parts import Part, PartConfig
from octavo.core.contract.strategy import Problem, Strategy, Wait
from octavo.core.values.recipe import Recipe
from octavo.core.values.scheme import FLOAT, OpScheme, PartChoice, QuantSpec
from octavo.core.values.space import TuningSpace, Unit
from octavo.core.values.trial import Measurement, Trial


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
        weight = QuantSpec(dtype="int8", granularity="channel")
        static = OpScheme(
            mode="static", weight=weight, input=QuantSpec(dtype="uint8", symmetric=False)
        )
        dynamic = OpScheme(
            mode="dynamic", weight=weight, input=QuantSpec(dtype="uint8", symmetric=False)
        )
        units = tuple(
            Unit(
                f"block.{i // 2}.op{i}",
                ("linear", "conv")[i % 2],
                (f"block.{i // 2}.op{i}",),
                (static, dynamic, FLOAT),
                f"block.{i // 2}",
                100 * (i + 1),
                10,
            )
            for i in range(self.units)
        )
        space = TuningSpace("toy", units, ((), (PartChoice(kind="smoothing"),)))
        losses = _losses(space)

        def sensitivity(kind: str, pairs: Sequence[tuple[str, OpScheme]]) -> Sequence[float]:
            return [0.0 if scheme.is_float else losses[name, scheme.mode] for name, scheme in pairs]

        return Problem(space, ("latency", "size"), seed, sensitivity, False, self.budgets)


def _losses(space: TuningSpace) -> dict[tuple[str, str], float]:
    random = np.random.default_rng(7)
    return {
        (u.name, mode): float(random.exponential(0.2))
        for u in space.units
        for mode in ("static", "dynamic")
    }


def judge(space: TuningSpace, number: int, recipe: Recipe) -> Trial:
    """Score a recipe of the toy space: each op costs its loss, and quantizing makes it faster and smaller."""
    losses = _losses(space)
    loss = sum(
        losses[u.name, recipe[u.name].mode] for u in space.units if not recipe[u.name].is_float
    )
    loss *= 0.8 if recipe.transforms else 1.0
    speed = {"float": 1.0, "dynamic": 0.5, "static": 0.3}
    latency = sum(speed[recipe[u.name].mode] * u.parameters for u in space.units)
    size = space.weight_bytes(recipe)
    margin = 1.0 - loss
    exact = {
        "latency": Measurement(latency, latency, latency, "ms"),
        "size": Measurement(size, size, size, "bytes"),
    }
    return Trial(
        number,
        recipe,
        metrics={"score": 1 - loss},
        passed=margin >= 0,
        margin=margin,
        objectives=exact,
    )


def search(
    strategy: Strategy, space: TuningSpace, limit: int, answer: Callable[[int, Recipe], Trial]
) -> list[Recipe]:
    """Ask and tell until the end or the limit; returns the recipes in order."""
    asked: list[Recipe] = []
    while len(asked) < limit:
        recipe = strategy.ask()
        if recipe is None:
            return asked
        assert not isinstance(recipe, Wait), "WAIT was returned although no trial is pending"
        asked.append(recipe)
        strategy.tell(answer(len(asked), recipe))
    return asked


class StrategyConformance:
    """Subclass it and give the fixture ``case``."""

    @pytest.fixture
    def case(self) -> StrategyCase:
        """Return the case under test."""
        raise NotImplementedError("a subclass of StrategyConformance gives the fixture `case`")

    def test_asks_points_of_the_space_and_ends(self, case: StrategyCase) -> None:
        """Every recipe belongs to the space, and the search ends or goes on to the limit without an error."""
        problem = case.problem()
        asked = search(
            case.strategy(problem), problem.space, case.limit, partial(judge, problem.space)
        )
        assert asked, "the strategy asked for nothing"
        assert all(problem.space.contains(r) for r in asked)

    def test_the_same_seed_gives_the_same_search(self, case: StrategyCase) -> None:
        """Determinism."""
        runs = []
        for _ in range(2):
            problem = case.problem(seed=3)
            runs.append(
                [
                    r.digest
                    for r in search(
                        case.strategy(problem),
                        problem.space,
                        case.limit,
                        partial(judge, problem.space),
                    )
                ]
            )
        assert runs[0] == runs[1]

    def test_a_search_is_rebuilt_from_any_prefix_of_its_history(self, case: StrategyCase) -> None:
        """After a crash the loop asks and tells the history again: the continuation is the same."""
        problem = case.problem()
        whole = search(
            case.strategy(problem), problem.space, case.limit, partial(judge, problem.space)
        )
        for cut in sorted({1, len(whole) // 2, len(whole) - 1} - {0}):
            fresh = case.strategy(case.problem())
            replayed = search(fresh, problem.space, cut, partial(judge, problem.space))
            assert replayed == whole[:cut]
            rest = search(fresh, problem.space, case.limit - cut, partial(judge, problem.space))
            assert rest == whole[cut:]

    def test_failed_trials_do_not_stop_it(self, case: StrategyCase) -> None:
        """All trials fail: the search ends, or goes on to the limit, without an exception."""
        problem = case.problem()
        asked = search(
            case.strategy(problem),
            problem.space,
            case.limit,
            lambda n, r: Trial(n, r, "failed", error="out of memory"),
        )
        assert asked

    def test_may_be_asked_before_it_is_told(self, case: StrategyCase) -> None:
        """Pending recipes are not returned again; WAIT is returned where an answer is needed first."""
        problem = case.problem()
        strategy = case.strategy(problem)
        pending: list[Recipe] = []
        told = 0
        for _ in range(case.limit):
            recipe = strategy.ask()
            if recipe is None and not pending:
                break
            if recipe is None or isinstance(recipe, Wait) or len(pending) >= 3:
                if isinstance(recipe, Recipe):
                    pending.append(recipe)
                told += 1
                strategy.tell(judge(problem.space, told, pending.pop(0)))
                continue
            assert recipe not in pending, "a pending recipe was asked for again"
            pending.append(recipe)

    def test_explains_itself(self, case: StrategyCase) -> None:
        """One line, at any time."""
        problem = case.problem()
        strategy = case.strategy(problem)
        assert "\n" not in strategy.explain()
        search(strategy, problem.space, 5, partial(judge, problem.space))
        assert "\n" not in strategy.explain()
