"""What the Bayesian search takes from sensitivities."""

from functools import partial

import pytest

from octavo.core.contract.plugins import PluginHost
from octavo.core.testing.conformance import StrategyCase
from octavo.core.testing.conformance.strategy import judge, search

HOST = PluginHost(third_party=False)


@pytest.mark.parametrize("sampler", ["tpe", "nsgaii"])
def test_it_starts_where_sensitivities_point(sampler: str) -> None:
    case = StrategyCase(
        HOST.part("strategies", "bayesian"),
        HOST.read("strategies", {"kind": "bayesian", "over": "op", "sampler": sampler}),
    )
    problem = case.problem()
    asked = search(
        case.strategy(problem), problem.space, 4, partial(judge, problem.space)
    )
    assert problem.sensitivity is not None
    pairs = [(u.name, u.choices[0]) for u in problem.space.tunable]
    losses = dict(
        zip(
            (n for n, _ in pairs),
            problem.sensitivity("weight_error", pairs),
            strict=True,
        )
    )
    worst_first = sorted(losses, key=lambda name: -losses[name])
    left = [
        [name for name in worst_first if name not in recipe.schemes] for recipe in asked
    ]
    assert left == [[], worst_first[:2], worst_first[:3], worst_first[:4]]


def test_the_starting_points_can_be_left_out() -> None:
    settings = HOST.read(
        "strategies", {"kind": "bayesian", "over": "op", "warm": 0, "startup": 2}
    )
    case = StrategyCase(HOST.part("strategies", "bayesian"), settings)
    problem = case.problem()
    strategy = case.strategy(problem)
    assert len(search(strategy, problem.space, 6, partial(judge, problem.space))) == 6
