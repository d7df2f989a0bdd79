"""A caller who owns the loop gets what autotune gets, and may stop, add and resume as it likes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import octavo
from octavo.core.contract.strategy import WAIT
from octavo.core.errors import ConfigError, StoreError
from octavo.core.storage.history import read_history
from tests import tiny

SETTINGS: dict[str, Any] = {
    "strategy": "basic",
    "minimise": "size",
    "tolerance": 0.02,
    "seed": 3,
}


def prepared(storage: Path, score: Any = tiny.accuracy, **settings: Any) -> octavo.Run:
    return octavo.prepare(
        tiny.chain(),
        score,
        tiny.calibration(),
        storage=storage,
        host=tiny.host(),
        **{**SETTINGS, **settings},
    )


def owned(run: octavo.Run, most: int | None = None) -> list[octavo.Recipe]:
    """Own the loop: ask, evaluate, tell; at most so many times."""
    asked: list[octavo.Recipe] = []
    while most is None or len(asked) < most:
        recipe = run.ask()
        if not isinstance(recipe, octavo.Recipe):
            break
        asked.append(recipe)
        run.tell(run.evaluate(recipe))
    return asked


@pytest.mark.parametrize("strategy", ["basic", "auto", "bayesian", "random"])
def test_the_same_recipes_and_result_as_autotune(tmp_path: Path, strategy: str) -> None:
    settings = {**SETTINGS, "strategy": strategy, "max_trials": 8}
    result = octavo.autotune(
        tiny.chain(),
        tiny.accuracy,
        tiny.calibration(),
        storage=tmp_path / "a.db",
        host=tiny.host(),
        **settings,
    )
    with prepared(tmp_path / "b.db", strategy=strategy, max_trials=8) as run:
        asked = owned(run)
        assert run.ask() is None
        mine = run.finish()
    assert [r.digest for r in asked] == [t.recipe.digest for t in result.trials]
    assert mine.best.recipe == result.best.recipe
    assert mine.best.metrics == result.best.metrics
    assert mine.confirmed == result.confirmed
    assert (mine.goal_met, mine.reason) == (result.goal_met, result.reason)
    assert [t.number for t in mine.trials] == [t.number for t in result.trials]


def test_a_refused_winner_lets_the_search_go_on_as_in_autotune(tmp_path: Path) -> None:
    def only_small_losses(model: Any) -> float:
        return tiny.accuracy(model)

    def other_data(model: Any) -> float:
        x, y = tiny.digits()
        return float((model(x[:400]).argmax(1) == y[:400]).mean())

    settings = {**SETTINGS, "tolerance": 0.001, "max_trials": 12}
    result = octavo.autotune(
        tiny.chain(),
        only_small_losses,
        tiny.calibration(),
        storage=tmp_path / "a.db",
        host=tiny.host(),
        holdout_fn=other_data,
        **settings,
    )
    with prepared(
        tmp_path / "b.db", tolerance=0.001, max_trials=12, holdout_fn=other_data
    ) as run:
        owned(run)
        mine = run.finish()
    assert [t.recipe for t in mine.trials] == [t.recipe for t in result.trials]
    assert [t.refused for t in mine.trials] == [t.refused for t in result.trials]
    assert mine.best.recipe == result.best.recipe


def test_a_search_that_is_finished_early_has_the_best_so_far(tmp_path: Path) -> None:
    with prepared(tmp_path / "h.db", strategy="random") as run:
        assert len(owned(run, 2)) == 2
        result = run.finish()
        assert run.finish() is result
        assert run.ask() is None
    assert len(result.trials) == 2
    assert "ended by its caller" in result.reason
    assert result.goal_met
    # What is handed back was examined as at the end of a whole search.
    assert result.confirmed == result.best.metrics


def test_one_that_never_began_hands_back_the_float_model(tmp_path: Path) -> None:
    with prepared(tmp_path / "h.db") as run:
        result = run.finish()
    assert result.best.number == 0
    assert not result.goal_met
    assert "ended by its caller" in result.reason


def test_a_search_goes_on_where_it_was_left(tmp_path: Path) -> None:
    with prepared(tmp_path / "whole.db", strategy="random", max_trials=6) as run:
        whole = owned(run)
    with prepared(tmp_path / "h.db", strategy="random", max_trials=6) as run:
        first = owned(run, 2)
    # Left without a finish: both trials were on disk before they were told.
    assert len(read_history(tmp_path / "h.db")[1]) == 1 + 2
    with prepared(tmp_path / "h.db", strategy="random", max_trials=6) as run:
        rest = owned(run, 1)
        run.search()
        result = run.finish()
    assert [*first, *rest] == whole[:3]
    assert [t.recipe for t in result.trials] == whole


def test_what_was_asked_for_and_not_told_is_pending(tmp_path: Path) -> None:
    with prepared(tmp_path / "h.db", strategy="random", max_trials=2) as run:
        recipes = [run.ask(), run.ask()]
        assert all(isinstance(r, octavo.Recipe) for r in recipes)
        assert run.ask() is WAIT
        trials = [run.evaluate(r) for r in recipes if isinstance(r, octavo.Recipe)]
        for trial in reversed(trials):
            run.tell(trial)
        assert run.ask() is None
        assert "2 trials were used up" in run.finish().reason


def test_recipes_of_the_callers_own_compete(tmp_path: Path) -> None:
    with prepared(tmp_path / "h.db", strategy="random", max_trials=3) as run:
        own = octavo.Recipe({}, (), "tiny")
        trial = run.evaluate(own)
        run.tell(trial)
        assert run.evaluate(own) is trial
        asked = owned(run)
        result = run.finish()
    assert own not in asked
    assert [t.recipe for t in result.trials] == [own, *asked]
    assert len(result.trials) == 3


def test_what_is_not_this_runs_is_refused(tmp_path: Path) -> None:
    with prepared(tmp_path / "h.db") as run:
        with pytest.raises(ConfigError, match="this run has: tiny"):
            run.evaluate(octavo.Recipe({}, (), "torch"))
        with pytest.raises(ConfigError, match="tell what evaluate"):
            run.tell(octavo.Trial(7, octavo.Recipe({}, (), "tiny")))


def test_the_history_is_locked_until_the_run_is_closed(tmp_path: Path) -> None:
    run = prepared(tmp_path / "h.db")
    with pytest.raises(StoreError, match="in use"):
        prepared(tmp_path / "h.db")
    run.close()
    with prepared(tmp_path / "h.db") as again:
        again.search()
        assert again.finish().goal_met
