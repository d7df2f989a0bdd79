"""The held-out data has the last word: who passes in the search and fails there is not handed back
as a success."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import octavo
from octavo.core.errors import EvaluationError
from octavo.core.storage.history import read_history
from tests import tiny


def recipe_of(model: Any) -> octavo.Recipe:
    recipe: octavo.Recipe = model.recipe
    return recipe


def tune(
    path: Path, holdout_fn: Callable[[Any], float], **settings: Any
) -> octavo.Result:
    settings = {
        "strategy": "basic",
        "minimise": "size",
        "host": tiny.host(),
        **settings,
    }
    return octavo.autotune(
        tiny.chain(),
        lambda model: 0.9,
        tiny.calibration(),
        storage=path,
        holdout_fn=holdout_fn,
        **settings,
    )


def fails_where(bad: Callable[[octavo.Recipe], bool]) -> Callable[[Any], float]:
    """Return a score of held-out data on which some recipes lose half of what the float
    model has."""
    return lambda model: 0.4 if bad(recipe_of(model)) else 0.8


def test_a_winner_that_fails_on_held_out_data_makes_way_for_the_next_best(
    tmp_path: Path,
) -> None:
    result = tune(tmp_path / "h.db", fails_where(lambda recipe: len(recipe) == 4))
    assert "held-out data" in " ".join(result.remarks)
    assert result.goal_met
    assert len(result.best.recipe) < 4
    assert result.holdout is not None
    assert result.holdout.passed
    refused = [t for t in result.trials if t.refused]
    assert refused
    assert all(len(t.recipe) == 4 and not t.passed and t.margin < 0 for t in refused)
    assert all("held-out" in t.refused for t in refused)


def test_the_search_goes_on_with_what_is_left_of_the_budget(tmp_path: Path) -> None:
    """With stop = goal the first pass ended the search; once that is refused, the next trials are
    spent as ever."""
    result = tune(
        tmp_path / "h.db",
        fails_where(lambda recipe: len(recipe) >= 3),
        stop="goal",
        max_trials=30,
    )
    assert "refused" in " ".join(result.remarks)
    assert result.goal_met
    assert 0 < len(result.best.recipe) < 3
    assert f"trial {result.best.number} reached the goal" in result.reason
    assert len([t for t in result.trials if t.refused]) >= 1
    assert len(result.trials) <= 30
    assert len({t.recipe.digest for t in result.trials}) == len(result.trials)


def test_where_nothing_stands_the_goal_is_missed_and_the_reason_says_on_what(
    tmp_path: Path,
) -> None:
    result = tune(
        tmp_path / "h.db", fails_where(lambda recipe: len(recipe) > 0), max_trials=5
    )
    assert "refused" in " ".join(result.remarks)
    assert not result.goal_met
    assert "held-out data" in result.reason
    assert "0.4 against 0.8" in result.reason
    assert result.best.number > 0
    assert result.holdout is not None
    assert not result.holdout.passed
    assert len(result.trials) == 5


def test_a_refusal_is_kept_in_the_history_and_a_resumed_run_goes_the_same_way(
    tmp_path: Path,
) -> None:
    bad = fails_where(lambda recipe: len(recipe) == 4)
    first = tune(tmp_path / "h.db", bad)
    assert "refused" in " ".join(first.remarks)
    stored = {t.number: t for t in read_history(tmp_path / "h.db")[1]}
    assert [t for t in stored.values() if t.refused] == [
        t for t in first.trials if t.refused
    ]
    again = tune(tmp_path / "h.db", bad)
    assert again.best.recipe == first.best.recipe
    assert again.trials == first.trials


@pytest.mark.parametrize("answer", [float("nan"), None, "raises"])
def test_a_holdout_that_cannot_score_the_float_model_is_told_before_the_search(
    tmp_path: Path, answer: Any
) -> None:
    searched: list[int] = []

    def broken(model: Any) -> Any:
        if answer == "raises":
            raise RuntimeError("no such file")
        return answer

    class Watch(octavo.Progress):
        def trying(self, number: int, recipe: octavo.Recipe) -> None:
            searched.append(number)

    with pytest.raises(EvaluationError):
        tune(tmp_path / "h.db", broken, callbacks=(Watch(),))
    assert not searched


def test_the_float_model_is_scored_on_held_out_data_once(tmp_path: Path) -> None:
    scored: list[int] = []

    def holdout(model: Any) -> float:
        scored.append(len(recipe_of(model)))
        return 0.8 if len(recipe_of(model)) < 4 else 0.4

    result = tune(tmp_path / "h.db", holdout)
    assert "refused" in " ".join(result.remarks)
    assert scored.count(0) == 1


def test_a_saved_result_says_what_was_refused(tmp_path: Path) -> None:
    pytest.importorskip("jinja2")
    result = tune(tmp_path / "h.db", fails_where(lambda recipe: len(recipe) == 4))
    assert "refused" in " ".join(result.remarks)
    refused = next(t for t in result.trials if t.refused)
    page = result.report(tmp_path / "report.html").read_text()
    assert "<td>refused</td>" in page
    assert refused.refused[:30] in page
