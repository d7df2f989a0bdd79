"""Where a strategy knows what loses least, the run's objectives decide among that alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import octavo
from octavo.core.contract.plugins import PluginHost
from octavo.core.testing.simulator import simulate
from octavo.core.tuning.joint import JointStrategy
from octavo.core.tuning.prepared import Run
from octavo.core.values.trial import Trial
from tests import tiny


def two_trials(folder: Path, tolerance: float) -> Run:
    """A run that has evaluated two recipes."""
    run = octavo.prepare(
        tiny.chain(),
        tiny.nearness,
        tiny.calibration(),
        strategy="exhaustive",
        storage=folder / "h.db",
        minimise="size",
        tolerance=tolerance,
        host=tiny.host(),
    )
    for _ in range(2):
        recipe = run.ask()
        assert isinstance(recipe, octavo.Recipe)
        run.tell(run.evaluate(recipe))
    return run


def leave(run: Run, number: int) -> None:
    def left(trials: Sequence[Trial]) -> Sequence[Trial]:
        return [t for t in trials if t.number == number]

    run._bench.narrowed = left


def test_of_what_passes_the_best_is_among_what_the_strategy_leaves(
    tmp_path: Path,
) -> None:
    with two_trials(tmp_path, 0.9) as run:
        for number in (1, 2):
            leave(run, number)
            best = run._bench.best()
            assert best is not None
            assert best.number == number


def test_where_nothing_passes_the_closest_is_among_what_the_strategy_leaves(
    tmp_path: Path,
) -> None:
    with two_trials(tmp_path, 1e-12) as run:
        first, second = run._bench.trials
        farther = min((first, second), key=lambda trial: trial.margin)
        leave(run, farther.number)
        result = run.finish()
    assert not result.goal_met
    assert result.best.number == farther.number


def test_budget_leaves_what_it_believes_to_lose_least() -> None:
    simulation = simulate(12, seed=0, pressure=600.0)
    host = PluginHost(third_party=False)
    config = host.read("strategies", {"kind": "budget"})
    problem = simulation.problem(bits=9.0)
    searched = host.part("strategies", "budget").build(config, problem)
    (own,) = simulation.search(searched, 5).trials
    # A second one that was measured within the budget: its score is better, by noise.
    wider = replace(own, number=2, recipe=simulation.space.recipe({}))
    small = simulation.space.recipe(simulation.space.first())
    lucky = replace(own, number=3, recipe=small, margin=own.margin + 1, passed=True)
    searched.tell(lucky)
    assert [t.number for t in searched.narrowed([lucky, own])] == [1]
    joined = JointStrategy({"simulated": searched})
    assert [t.number for t in joined.narrowed([lucky, own])] == [1]
    # What is no trial of its own is not left out: the float model, another backend's.
    other = replace(own, number=4, recipe=replace(small, backend="other"))
    assert [t.number for t in joined.narrowed([wider, own, other])] == [2, 1, 4]
    assert set(joined.front()) == {"simulated"}
