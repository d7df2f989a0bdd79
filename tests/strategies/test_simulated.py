"""Every strategy on problems whose optimum is known."""

import math
import statistics
from dataclasses import replace

import pytest

from octavo.core.contract.plugins import PluginHost
from octavo.core.contract.strategy import WAIT
from octavo.core.errors import ConfigError
from octavo.core.scoring.choice import choose
from octavo.core.testing.simulator import simulate
from octavo.core.values.budgets import average_bits, overruns
from octavo.core.values.recipe import Recipe
from octavo.core.values.trial import Measurement

HOST = PluginHost(third_party=False)
NAMES = sorted(HOST.parts("strategies"))


def strategy(name, problem, **settings):
    config = HOST.read("strategies", {"kind": name, **settings})
    return HOST.part("strategies", name).build(config, problem)


def problem_of(simulation, name, **more):
    return simulation.problem(**({"bits": 6.0} if name == "budget" else {}), **more)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "trouble",
    [{}, {"noise": 0.1, "failures": 0.2, "transforms": 2}],
    ids=["plain", "noisy"],
)
def test_asks_for_points_of_the_space_and_never_twice(name, trouble):
    simulation = simulate(12, coupling=0.5, seed=1, **trouble)
    found = simulation.search(strategy(name, problem_of(simulation, name)), 40)
    recipes = [t.recipe for t in found.trials]
    assert recipes
    assert len(set(recipes)) == len(recipes)
    assert all(simulation.space.contains(r) for r in recipes)


@pytest.mark.parametrize("name", NAMES)
def test_goes_on_the_same_from_any_prefix_of_its_history(name):
    simulation = simulate(8, coupling=0.5, noise=0.05, failures=0.1, seed=2)
    whole = simulation.search(strategy(name, problem_of(simulation, name)), 14).trials
    for cut in range(len(whole)):
        again = strategy(name, problem_of(simulation, name))
        for trial in whole[:cut]:
            assert again.ask() == trial.recipe
            again.tell(trial)
        assert again.ask() == whole[cut].recipe


@pytest.mark.parametrize("name", NAMES)
def test_three_workers_get_different_recipes_and_the_search_ends(name):
    simulation = simulate(8, seed=3)
    searched = strategy(name, problem_of(simulation, name))
    pending: list[Recipe] = []
    seen: set[Recipe] = set()
    for number in range(1, 60):
        while len(pending) < 3 and isinstance(recipe := searched.ask(), Recipe):
            assert recipe not in seen
            seen.add(recipe)
            pending.append(recipe)
        if not pending:
            break
        searched.tell(simulation.trial(number, pending.pop(number % len(pending))))
    assert seen
    if not pending:
        assert searched.ask() is None
        assert searched.explain()


@pytest.mark.parametrize(
    "name",
    [
        n
        for n in NAMES
        if n
        not in (
            "exhaustive",
            "coordinate",
            "budget",
            "conservative",
            "random",
            "bayesian",
        )
    ],
)
def test_reaches_a_goal_that_some_fallbacks_reach(name):
    # int3 everywhere misses the goal by far; one op or more must be taken back.
    simulation = simulate(8, seed=4, pressure=0.9)
    assert simulation.loss(simulation.space.recipe(simulation.space.first())) > 1.5
    found = simulation.search(strategy(name, simulation.problem()), 60)
    assert math.isfinite(found.best_cost), found


@pytest.mark.parametrize(
    "name", ["auto", "basic", "prefix", "accuracy_control", "mse", "mse_v2", "hawq_v2"]
)
def test_an_easy_model_needs_one_evaluation(name):
    simulation = simulate(16, seed=5, pressure=0.01)
    found = simulation.search(strategy(name, simulation.problem(stop_at_goal=True)), 10)
    assert found.best_at == 1
    assert len(found.trials) == 1
    assert found.best_cost == pytest.approx(simulation.optimum)


@pytest.mark.parametrize(
    "name",
    [
        "auto",
        "basic",
        "prefix",
        "accuracy_control",
        "mse",
        "mse_v2",
        "hawq_v2",
        "coordinate",
    ],
)
def test_a_transform_that_saves_the_model_is_found(name):
    simulation = simulate(16, seed=6, transforms=2)
    first = simulation.space.first()
    # Passes only where losses are halved.
    pressure = 0.75 / simulation.loss(simulation.space.recipe(first)) * 6.0
    eased = simulate(16, seed=6, transforms=2, pressure=pressure * 2)
    assert (
        eased.loss(eased.space.recipe(first))
        > 1.0
        > eased.loss(eased.space.recipe(first, eased.space.transforms[2]))
    )
    found = eased.search(strategy(name, eased.problem(stop_at_goal=True)), 6)
    assert found.best_at
    assert (
        found.trials[found.best_at - 1].recipe.transforms == eased.space.transforms[2]
    )


@pytest.mark.parametrize(
    ("coupling", "bar"), [(0.0, 0.02), (0.5, 0.05)], ids=["additive", "interacting"]
)
@pytest.mark.parametrize("units", [16, 64, 256])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_auto_comes_near_the_optimum_in_few_evaluations(units, coupling, bar, seed):
    simulation = simulate(units, coupling=coupling, seed=seed)
    limit = math.ceil(math.log2(units)) + 5
    found = simulation.search(strategy("auto", simulation.problem()), limit)
    assert found.best_cost <= (1 + bar) * simulation.optimum


def test_auto_is_not_misled_by_noise_failures_and_bad_proxies():
    for seed in range(4):
        simulation = simulate(
            64, coupling=0.5, noise=0.05, failures=0.2, proxy_noise=0.4, seed=seed
        )
        found = simulation.search(strategy("auto", simulation.problem()), 30)
        assert found.best_cost <= 1.1 * simulation.optimum


def test_auto_needs_no_sensitivity_service():
    simulation = simulate(16, seed=1)
    found = simulation.search(
        strategy("auto", simulation.problem(sensitivity=False)), 60
    )
    assert math.isfinite(found.best_cost)


def test_budget_keeps_average_bits():
    for bits in (3.0, 3.5, 6.0):
        simulation = simulate(32, seed=7)
        found = simulation.search(
            strategy("budget", simulation.problem(code_bits=bits)), 10
        )
        units = simulation.space.units
        for trial in found.trials:
            used = sum(
                trial.recipe[u.name].weight_bits * u.parameters for u in units
            ) / sum(u.parameters for u in units)
            assert used <= bits + 1e-9
        # Mixed precision beats every uniform scheme of that size or less.
        for scheme in simulation.space.units[0].choices[:-1]:
            if scheme.weight_bits <= bits:
                uniform = simulation.space.recipe(
                    dict.fromkeys((u.name for u in units), scheme)
                )
                assert (
                    min(simulation.loss(t.recipe) for t in found.trials)
                    <= simulation.loss(uniform) + 1e-12
                )


def test_exhaustive_prints_the_size_of_the_space_and_covers_it():
    simulation = simulate(4, seed=0, transforms=1)
    searched = strategy("exhaustive", simulation.problem())
    assert "512" in searched.explain()
    found = simulation.search(searched, 1000)
    assert found.ended
    assert len(found.trials) == simulation.space.size == 512
    assert found.best_cost == pytest.approx(simulation.optimum)


def test_wait_is_returned_while_an_answer_is_needed():
    simulation = simulate(8, seed=0)
    searched = strategy("prefix", simulation.problem())
    assert isinstance(searched.ask(), Recipe)
    assert searched.ask() is WAIT


def measured(simulation, number, recipe, budgets, beside):
    """A trial whose file holds ``beside`` bytes that are no weights."""
    trial = simulation.trial(number, recipe)
    size, whole = (
        simulation.cost(recipe) + beside,
        simulation.cost(simulation.space.recipe({})) + beside,
    )
    objectives = {"size": Measurement(size, size, size, "bytes", size / whole)}
    over = overruns(budgets, simulation.space, recipe.schemes, objectives)
    return replace(
        trial, objectives=objectives, over=over, passed=trial.margin >= 0 and not over
    )


@pytest.mark.parametrize("name", ["auto", "budget"])
@pytest.mark.parametrize("seed", range(3))
def test_a_budget_is_kept_by_the_file_and_not_by_the_weights_alone(name, seed):
    simulation = simulate(24, coupling=0.5, seed=seed, pressure=1.0)
    beside = 0.05 * simulation.cost(simulation.space.recipe({}))
    budgets = {"size": 0.22}
    searched = strategy(name, simulation.problem(**budgets))
    trials = []
    while isinstance(recipe := searched.ask(), Recipe) and len(trials) < 20:
        trials.append(measured(simulation, len(trials) + 1, recipe, budgets, beside))
        searched.tell(trials[-1])
    passed = [t for t in trials if t.passed]
    assert passed, searched.explain()
    assert all(t.objectives["size"].ratio <= 0.22 for t in passed)
    # The first file tells what else is in it; from then on nothing too large is tried.
    assert not any(t.over for t in trials[1:])


def test_a_budget_that_no_recipe_keeps_is_said():
    simulation = simulate(8, seed=0)
    for name in ("auto", "budget"):
        with pytest.raises(ConfigError, match="no choice keeps the limits: at least"):
            strategy(name, simulation.problem(size=0.01)).ask()


def test_with_two_limits_auto_comes_near_what_the_integer_program_finds():
    # The fastest recipe of at most so many bytes: what is fast here is large.
    simulation = simulate(32, seed=3, pressure=0.5)
    budgets = {"code_bits": 4.5}
    found = simulation.search(strategy("auto", simulation.problem(**budgets)), 12)
    assert math.isfinite(found.best_cost)
    best = next(t for t in found.trials if t.number == found.best_at)
    assert average_bits(simulation.space, best.recipe.schemes, of="codes") <= 4.5
    assert found.best_cost <= 1.02 * simulation.optimum


@pytest.mark.parametrize(
    "name", ["mse", "mse_v2", "hawq_v2", "accuracy_control", "prefix"]
)
def test_a_budget_that_is_overrun_is_not_mended_with_more_float(name):
    simulation = simulate(8, seed=5, pressure=0.01)
    searched = strategy(name, simulation.problem(size=0.01))
    found = simulation.search(searched, 10)
    assert len(found.trials) == 1
    assert found.trials[0].margin >= 0
    assert "overruns the budget" in searched.explain()


def two_objectives(simulation, objectives, latency, spread):
    """Run auto where every trial also has a latency, the mean of what units of so many bits take;
    return its trials and itself."""
    searched = strategy("auto", replace(simulation.problem(), objectives=objectives))
    trials = []
    while isinstance(recipe := searched.ask(), Recipe):
        trial = simulation.trial(len(trials) + 1, recipe)
        time = statistics.mean(
            latency(recipe[u.ops[0]].weight_bits) for u in simulation.space.units
        )
        measured = {
            **trial.objectives,
            "latency": Measurement(
                time, time * (1 - spread), time * (1 + spread), "ms", time
            ),
        }
        trials.append(replace(trial, objectives=measured))
        searched.tell(trials[-1])
    return trials, searched


@pytest.mark.parametrize("seed", range(3))
def test_of_equally_fast_recipes_auto_seeks_the_smaller(seed):
    simulation = simulate(16, seed=seed, pressure=2.0)
    trials, searched = two_objectives(
        simulation, ("latency", "size"), lambda bits: 0.95, 0.01
    )
    best = choose(trials, ("latency", "size"))
    assert len(trials) <= 1 + 3 + 3
    assert best.objectives["size"].value <= 1.1 * simulation.optimum
    assert (
        best.objectives["size"].value
        < 0.75 * next(t for t in trials if t.passed).objectives["size"].value
    )
    assert "of equal latency" in searched.explain()
    assert searched.problem.sensitivity.asked["output_distance"]


def test_what_is_smaller_and_slower_is_not_chosen_and_soon_left():
    simulation = simulate(16, seed=1, pressure=0.1)
    trials, _ = two_objectives(
        simulation, ("latency", "size"), lambda bits: 0.5 if bits >= 8 else 2.0, 0.01
    )
    best = choose(trials, ("latency", "size"))
    assert best.objectives["latency"].value == pytest.approx(0.5)
    assert len(trials) <= 1 + 3 + 3


def test_of_equally_large_recipes_auto_seeks_the_faster():
    # The knapsack's optimum of size comes first; every scheme is in one mode, so that nothing is
    # believed to be faster than it.
    simulation = simulate(16, seed=1)
    trials, _ = two_objectives(
        simulation, ("size", "latency"), lambda bits: bits / 8, 0.01
    )
    assert (
        choose(trials, ("size", "latency")).objectives["size"].value
        <= 1.02 * simulation.optimum
    )


def test_one_objective_is_not_polished():
    simulation = simulate(16, seed=0, pressure=0.01)
    trials, searched = two_objectives(simulation, ("size",), lambda bits: 1.0, 0.0)
    assert len(trials) == 1
    assert not searched.problem.sensitivity.asked


def test_quantizing_again_starts_with_the_least_loss_without_whole_recipe_distances():
    # A plain sensitivity service knows single units only: their losses are added up, for taking
    # back and for quantizing again.
    simulation = simulate(8, seed=4)
    problem = simulation.problem()
    units, base = simulation.space.units, simulation.space.first()
    losses = list(problem.sensitivity("output_distance", list(base.items())))
    searched = strategy("mse_v2", problem)
    recipes = [simulation.space.recipe(base)] * len(units)
    assert searched._distances(recipes, units, base, (), taken_back=False) == losses
    assert searched._distances(recipes, units, base, ()) == [-loss for loss in losses]


def test_a_budget_by_gradients_alone_needs_a_backend_that_offers_them():
    simulation = simulate(8, seed=0)
    with pytest.raises(
        ConfigError, match="need gradients, which simulated does not offer"
    ):
        strategy(
            "budget", simulation.problem(code_bits=4.0), sensitivities=["gradient"]
        )
    searched = strategy(
        "budget",
        simulation.problem(code_bits=4.0),
        sensitivities=["gradient", "output_distance"],
    )
    assert simulation.search(searched, 10).trials
    assert "gradient: no gradients are offered" in searched.explain()
