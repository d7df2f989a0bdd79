"""Under a budget the least loss within it is found, whatever the goal, the objectives and noise."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.core.contract.plugins import PluginHost
from octavo.core.contract.strategy import Problem, Sensitivity, Strategy
from octavo.core.testing.simulator import Simulation, simulate
from octavo.core.values.budgets import average_bits
from octavo.core.values.recipe import Recipe
from octavo.core.values.scheme import OpScheme, PartChoice
from octavo.core.values.trial import Trial

HOST = PluginHost(third_party=False)
FAR = 600.0
"""A pressure under which no small recipe passes."""


def strategy(name: str, problem: Problem, **settings: object) -> Strategy:
    config = HOST.read("strategies", {"kind": name, **settings})
    return HOST.part("strategies", name).build(config, problem)


def bits(simulation: Simulation, recipe: Recipe) -> float:
    return average_bits(simulation.space, recipe.schemes)


def believed(simulation: Simulation, recipe: Recipe) -> float:
    """What a recipe loses by the simulation's sensitivities."""
    service = simulation.problem().sensitivity
    assert service is not None
    pairs = [(u.name, recipe[u.ops[0]]) for u in simulation.space.units]
    return float(sum(service("output_distance", pairs)))


def least_within(simulation: Simulation, limit: float) -> float:
    """The least of all recipes, one by one."""
    units = simulation.space.units
    service = simulation.problem().sensitivity
    assert service is not None
    parameters = sum(u.parameters for u in units)
    rows = []
    for unit in units:
        losses = service("output_distance", [(unit.name, s) for s in unit.choices])
        used = [8 * unit.weight_bytes(s) / parameters for s in unit.choices]
        rows.append(list(zip(used, losses, strict=True)))
    least = math.inf
    for choices in itertools.product(*rows):
        if sum(used for used, _ in choices) <= limit * (1 + 1e-12):
            least = min(least, sum(loss for _, loss in choices))
    return least


def result(searched: Strategy, trials: Sequence[Trial]) -> Trial:
    """What a run hands back."""
    kept = [trial for trial in trials if not trial.over]
    passing = [trial for trial in kept if trial.passed]
    return max(searched.narrowed(passing or kept), key=lambda t: (t.margin, -t.number))


@given(st.integers(0, 20), st.floats(4.1, 31.0), st.sampled_from(["auto", "budget"]))
@settings(max_examples=25, deadline=None)
def test_no_other_recipe_within_the_budget_loses_less(
    seed: int, limit: float, name: str
) -> None:
    simulation = simulate(5, seed=seed, pressure=6e4)
    searched = strategy(name, simulation.problem(bits=limit))
    trials = simulation.search(searched, 20).trials
    assert all(bits(simulation, t.recipe) <= limit * (1 + 1e-9) for t in trials)
    best = result(searched, trials)
    if best.passed:  # then the objective decides
        return
    found = believed(simulation, best.recipe)
    assert found == pytest.approx(least_within(simulation, limit), rel=1e-9)


@pytest.mark.parametrize("limit", [4.1, 4.25, 4.5, 5.0, 6.0])
@pytest.mark.parametrize("name", ["auto", "budget"])
def test_a_goal_out_of_reach_gives_no_budget_away(name: str, limit: float) -> None:
    simulation = simulate(42, seed=1, pressure=FAR)
    searched = strategy(name, simulation.problem(bits=limit))
    found = simulation.search(searched, 20)
    assert found.ended
    assert len(found.trials) <= 2
    best = result(searched, found.trials)
    assert 0.998 * limit <= bits(simulation, best.recipe) <= limit * (1 + 1e-9)
    assert best.number == found.trials[-1].number
    assert "believed to lose least" in searched.explain()


def test_a_budget_of_the_likeliest_recipe_is_used_by_a_single_trial() -> None:
    simulation = simulate(42, seed=1, pressure=FAR)
    problem = replace(simulation.problem(bits=4.5), max_trials=1)
    (trial,) = simulation.search(strategy("auto", problem), 1).trials
    assert bits(simulation, trial.recipe) >= 0.998 * 4.5


def test_where_the_goal_can_be_reached_a_budget_is_no_reason_to_fill_it() -> None:
    simulation = simulate(42, seed=1, pressure=6.0)
    searched = strategy("auto", simulation.problem(bits=30.0))
    found = simulation.search(searched, 20)
    assert found.best_cost <= 1.01 * simulation.optimum


@pytest.mark.parametrize("pressure", [2.0, 60.0, FAR, 100 * FAR])
@pytest.mark.parametrize("proxy_noise", [0.1, 1.5])
def test_the_size_that_just_meets_the_goal_takes_few_evaluations(
    pressure: float, proxy_noise: float
) -> None:
    units = 42
    simulation = simulate(units, seed=1, pressure=pressure, proxy_noise=proxy_noise)
    searched = strategy("auto", simulation.problem())
    found = simulation.search(searched, 40)
    assert found.ended
    assert len(found.trials) <= math.ceil(math.log2(units)) + 5
    bar = 1.01 if proxy_noise < 1 else 1.2
    assert found.best_cost <= bar * simulation.optimum


@pytest.mark.parametrize("easier", [0.4, 0.8, 4.0])
@pytest.mark.parametrize("units", [16, 42])
def test_a_further_goal_takes_two_evaluations(units: int, easier: float) -> None:
    hard = simulate(units, seed=2, pressure=6.0, coupling=0.3)
    first = hard.search(strategy("auto", hard.problem()), 40).trials
    # The same model, and another goal: each loss is another share of what is tolerated.
    simulation = simulate(units, seed=2, pressure=6.0 * easier, coupling=0.3)
    earlier = tuple(simulation.trial(0, trial.recipe) for trial in first)
    problem = replace(simulation.problem(), earlier=earlier)
    found = simulation.search(strategy("auto", problem), 40)
    assert found.ended
    assert len(found.trials) <= 2
    assert found.best_cost <= 1.04 * simulation.optimum
    # Trials of a time are not known to keep a latency now: the cheapest recipe comes first again.
    timed = replace(problem, budgets={"latency": 1.0})
    cheapest = strategy("auto", timed).ask()
    assert cheapest == first[0].recipe


def test_scores_that_collapse_say_only_that_much_was_lost() -> None:
    """The first trial scores 0, as if it had lost 100 and not 2,500 times what is tolerated."""
    simulation = simulate(42, seed=0, pressure=FAR)
    assert simulation.loss(simulation.space.recipe(simulation.space.first())) > 2000
    found = simulation.search(strategy("auto", simulation.problem()), 40)
    assert next(t.number for t in found.trials if t.passed) <= 5
    assert found.best_cost <= 1.01 * simulation.optimum


class WholeRecipes:
    """A simulation's sensitivities, and whole recipes: what a real service answers.

    Args:
        simulation: The truth.
        together: What a whole recipe loses beside the sum of its parts.
        wrong: Kind -> what its losses are raised to: below 0 its order is turned round.
    """

    kinds: tuple[str, ...] = ("output_distance", "weight_error", "hessian")
    preferred = "output_distance"

    def __init__(
        self,
        simulation: Simulation,
        together: float = 1.0,
        wrong: dict[str, float] | None = None,
    ) -> None:
        self.simulation = simulation
        self.together = together
        self.wrong = wrong or {}
        self.asked: dict[str, set[tuple[str, OpScheme]]] = {}
        self.measured: list[Recipe] = []
        self.around_which: list[Recipe] = []

    def __call__(
        self, kind: str, pairs: Sequence[tuple[str, OpScheme]]
    ) -> Sequence[float]:
        kind = self.preferred if kind == "auto" else kind
        self.asked.setdefault(kind, set()).update(pairs)
        found = [self.simulation.loss_of(name, scheme) for name, scheme in pairs]
        power = self.wrong.get(kind, 1.0)
        return [loss**power if loss else 0.0 for loss in found]

    def under(self, transforms: tuple[PartChoice, ...]) -> Sensitivity:
        return self

    def price(
        self, kind: str, pairs: Sequence[tuple[str, OpScheme]], transforms: object = ()
    ) -> int:
        costly = [scheme for _, scheme in pairs if not scheme.is_float]
        return 8 if kind == "gradient" else len(costly)

    def around(self, recipe: Recipe) -> Sensitivity:
        self.around_which.append(recipe)
        return lambda kind, pairs: [self.simulation.loss_of(n, s) for n, s in pairs]

    def interaction(self, recipe: Recipe) -> float:
        return self.together

    def distances(self, recipes: Sequence[Recipe]) -> Sequence[float]:
        self.measured += recipes
        return [self.simulation.loss(recipe) for recipe in recipes]


def under_budget(
    service: WholeRecipes, limit: float = 4.5, **more: object
) -> tuple[Strategy, tuple[Trial, ...]]:
    simulation = service.simulation
    problem = replace(simulation.problem(bits=limit), sensitivity=service)
    searched = strategy("budget", problem, **more)
    return searched, simulation.search(searched, 10).trials


@pytest.mark.parametrize("good", ["weight_error", "output_distance"])
def test_of_several_kinds_the_nearest_outputs_decide_and_no_score(good: str) -> None:
    # The score is noise alone, and one kind has its order turned round.
    simulation = simulate(24, seed=3, pressure=FAR, noise=50.0)
    kinds = ("output_distance", "weight_error")
    wrong = {kind: -1.0 for kind in kinds if kind != good}
    service = WholeRecipes(simulation, wrong=wrong)
    _, trials = under_budget(service, sensitivities=list(kinds))
    assert len(trials) == 1
    assert len(service.measured) == 2
    _, alone = under_budget(WholeRecipes(simulation), sensitivities=["weight_error"])
    assert trials[0].recipe == alone[0].recipe


def test_the_preferred_kind_alone_makes_one_recipe_and_one_evaluation() -> None:
    service = WholeRecipes(simulate(24, seed=3, pressure=FAR))
    _, trials = under_budget(service)
    assert len(trials) == 1
    assert not service.measured


@pytest.mark.parametrize("together", [0.7, 1.5])
def test_where_parts_do_not_add_up_scores_are_taken_again_around_the_recipe(
    together: float,
) -> None:
    simulation = simulate(24, seed=3, pressure=FAR)
    # By itself each unit looks the other way round; around the recipe the truth shows.
    wrong = {"output_distance": -1.0}
    service = WholeRecipes(simulation, together, wrong)
    _, trials = under_budget(service)
    assert len(service.around_which) == len(trials) == 1
    _, truth = under_budget(WholeRecipes(simulation))
    assert trials[0].recipe == truth[0].recipe
    adds_up = WholeRecipes(simulation, 1.15, wrong)
    _, trials = under_budget(adds_up)
    assert not adds_up.around_which
    assert trials[0].recipe != truth[0].recipe


def test_around_a_recipe_what_is_farther_is_not_taken() -> None:
    simulation = simulate(24, seed=3, pressure=FAR)
    service = WholeRecipes(simulation, 2.0)
    turned = WholeRecipes(simulation, wrong={"output_distance": -1.0})
    service.around = lambda recipe: turned  # type: ignore[method-assign]
    _, trials = under_budget(service)
    _, truth = under_budget(WholeRecipes(simulation))
    assert trials[0].recipe == truth[0].recipe


def test_around_a_recipe_is_not_asked_for_where_it_is_not_worth_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "octavo")
    service = WholeRecipes(simulate(24, seed=3, pressure=FAR), 1.5)
    problem = replace(
        service.simulation.problem(bits=4.5), sensitivity=service, worth=lambda: 100.0
    )
    service.simulation.search(strategy("budget", problem), 5)
    assert not service.around_which
    assert "is not worth 120 runs of a batch" in caplog.text


@pytest.mark.parametrize("name", ["auto", "budget"])
def test_scores_that_cost_more_than_they_save_are_asked_for_of_one_scheme_each(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "octavo")
    simulation = simulate(24, seed=3, pressure=FAR)
    asked: dict[float, list[Recipe]] = {}
    told = {}
    for worth in (1000.0, 30.0):
        service = WholeRecipes(simulation)
        problem = replace(
            simulation.problem(bits=5.0),
            sensitivity=service,
            worth=lambda worth=worth: worth,
        )
        caplog.clear()
        trials = simulation.search(strategy(name, problem), 20).trials
        asked[worth] = [t.recipe for t in trials]
        told[worth] = caplog.text
        pairs = service.asked["output_distance"]
        assert len(pairs) == (24 * 3 if worth == 1000.0 else 24)
    # Weight errors are in proportion to the losses here, so that nothing is lost by that.
    assert asked[30.0] == asked[1000.0]
    assert "as long as 72 runs of a batch" in told[1000.0]
    assert "as long as 24 runs of a batch instead of 72; the evaluations" in told[30.0]


def test_where_there_are_gradients_they_are_the_cheaper_way() -> None:
    simulation = simulate(24, seed=3, pressure=FAR)
    service = WholeRecipes(simulation)
    service.kinds = (*service.kinds, "gradient")
    problem = replace(
        simulation.problem(bits=5.0), sensitivity=service, worth=lambda: 1.0
    )
    settings = {"sensitivities": ["output_distance"]}
    simulation.search(strategy("budget", problem, **settings), 5)
    assert set(service.asked) == {"gradient"}
    assert len(service.asked["gradient"]) == 24 * 3


def test_the_front_is_told_by_size_and_holds_the_budget_s_recipe() -> None:
    simulation = simulate(24, seed=3, pressure=FAR)
    searched, (trial,) = under_budget(WholeRecipes(simulation))
    front = searched.front()
    assert 20 <= len(front) <= 64
    sizes = [point.bytes for point in front]
    losses = [point.loss for point in front]
    assert sizes == sorted(sizes)
    assert losses == sorted(losses, reverse=True)
    for point in front:
        assert simulation.space.contains(point.recipe)
        assert simulation.cost(point.recipe) == pytest.approx(point.bytes)
        assert simulation.loss(point.recipe) == pytest.approx(point.loss)
        assert bits(simulation, point.recipe) == pytest.approx(point.bits)
    smaller = [p.loss for p in front if p.bytes <= simulation.cost(trial.recipe)]
    assert min(smaller) >= simulation.loss(trial.recipe) - 1e-9
    assert front[0].recipe == simulation.space.recipe(simulation.space.first())


SEARCHED = """
import sys
from octavo.core.contract.plugins import PluginHost
from octavo.core.testing.simulator import simulate
host = PluginHost(third_party=False)
found = []
for name in ("auto", "budget"):
    simulation = simulate(42, seed=1, pressure=600.0)
    config = host.read("strategies", {"kind": name})
    searched = host.part("strategies", name).build(config, simulation.problem(bits=5.0))
    found += [t.recipe.digest for t in simulation.search(searched, 20).trials]
with open(sys.argv[1], "w", encoding="utf-8") as kept:
    kept.write(repr(found))
"""


def test_every_process_finds_the_same_recipes_and_says_nothing(tmp_path: Path) -> None:
    found = []
    for seed in ("0", "7"):
        kept = tmp_path / seed
        done = subprocess.run(
            [sys.executable, "-c", SEARCHED, str(kept)],
            capture_output=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout == done.stderr == b""
        found.append(kept.read_text(encoding="utf-8"))
    assert found[0] == found[1]
    assert found[0].count(",") == 2  # two of auto, one of budget


def test_further_budgets_take_no_time() -> None:
    """42 layers of 4 schemes: from known scores, a second for all six budgets is plenty."""
    simulation = simulate(42, seed=1, pressure=FAR)
    begun = os.times()
    for limit in (4.1, 4.25, 4.5, 5.0, 6.0, 8.0):
        searched = strategy("budget", simulation.problem(bits=limit))
        simulation.search(searched, 3)
    spent = np.subtract(os.times()[:2], begun[:2]).sum()
    assert spent < 10
