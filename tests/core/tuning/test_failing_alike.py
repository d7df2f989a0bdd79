"""A score that fails on every candidate ends the run after five, with its error; a recipe that
cannot run does not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import octavo
from tests import tiny


def recipe_of(model: Any) -> octavo.Recipe:
    recipe: octavo.Recipe = model.recipe
    return recipe


def tune(path: Path, score: Callable[[Any], float], **settings: Any) -> octavo.Result:
    settings = {
        "strategy": "exhaustive",
        "minimise": "size",
        "max_trials": 20,
        **settings,
    }
    return octavo.autotune(
        tiny.chain(),
        score,
        tiny.calibration(),
        storage=path,
        host=tiny.host(),
        **settings,
    )


def test_the_same_error_on_every_candidate_ends_the_run(tmp_path: Path) -> None:
    def broken(model: Any) -> float:
        if len(recipe_of(model)):
            raise AttributeError(
                f"'Quantized' object at {hex(id(model))} has no attribute 'scale'"
            )
        return 0.9

    result = tune(tmp_path / "h.db", broken)
    assert len(result.trials) == 5
    assert not result.goal_met
    assert "AttributeError: 'Quantized' object" in result.reason
    assert "alike" in result.reason


def test_other_errors_let_it_go_on(tmp_path: Path) -> None:
    def broken(model: Any) -> float:
        if len(recipe_of(model)):
            raise RuntimeError(
                " and ".join(sorted(recipe_of(model))) + recipe_of(model).digest
            )
        return 0.9

    assert len(tune(tmp_path / "h.db", broken, max_trials=8).trials) == 8


def test_one_candidate_that_works_lets_it_go_on(tmp_path: Path) -> None:
    worked: list[int] = []

    def once(model: Any) -> float:
        if len(recipe_of(model)) and worked:
            raise OSError("the disk is full")
        worked.extend([1] * bool(len(recipe_of(model))))
        return 0.9

    result = tune(
        tmp_path / "h.db", once, max_trials=8, confirm=False, accuracy={"guard": False}
    )
    assert len(result.trials) == 8
    assert result.goal_met
