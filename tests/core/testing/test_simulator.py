import itertools

import pytest

from octavo.core.testing.simulator import simulate


@pytest.mark.parametrize("coupling", [0.0, 0.7])
@pytest.mark.parametrize("seed", range(3))
def test_the_stated_optimum_is_what_brute_force_finds(coupling, seed):
    simulation = simulate(5, coupling=coupling, seed=seed)
    space = simulation.space
    best = min(
        simulation.cost(r)
        for picks in itertools.product(range(4), repeat=5)
        for r in [
            space.recipe(
                {u.name: u.choices[i] for u, i in zip(space.units, picks, strict=True)}
            )
        ]
        if simulation.loss(r) <= 1.0
    )
    assert simulation.optimum == pytest.approx(best, rel=1e-4)
    assert simulation.loss(simulation.optimal_recipe) <= 1.0


def test_a_trial_says_what_the_true_loss_is():
    simulation = simulate(8, seed=1)
    recipe = simulation.optimal_recipe
    trial = simulation.trial(1, recipe)
    assert trial.passed
    assert 1 - trial.margin == pytest.approx(simulation.loss(recipe))
    assert simulation.trial(2, simulation.space.recipe({})).margin == pytest.approx(1.0)


def test_noise_and_failures_depend_on_the_recipe_alone():
    simulation = simulate(8, noise=0.5, failures=0.5, seed=1)
    recipes = [
        simulation.space.recipe({u.name: u.choices[0]}) for u in simulation.space.units
    ]
    first = [simulation.trial(1, r) for r in recipes]
    assert [t.margin for t in first] == [simulation.trial(9, r).margin for r in recipes]
    assert {t.state for t in first} == {"complete", "failed"}


def test_couplings_only_add():
    simulation = simulate(8, coupling=0.5, seed=1)
    recipe = simulation.space.recipe(simulation.space.first())
    alone = sum(
        simulation.loss_of(u.name, u.choices[0]) for u in simulation.space.units
    )
    assert simulation.loss(recipe) > alone


def test_sensitivities_count_what_they_are_asked():
    problem = (simulation := simulate(8, seed=1)).problem()
    pairs = [(u.name, s) for u in simulation.space.units for s in u.choices[:3]]
    assert len(problem.sensitivity("output_distance", pairs)) == 24
    problem.sensitivity("output_distance", pairs[:4])
    assert len(problem.sensitivity.asked["output_distance"]) == 24
