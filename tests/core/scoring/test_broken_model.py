"""A model that is broken on purpose guards the direction of a score that has no name, or the wrong
one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import octavo
from octavo.core.errors import ConfigError
from octavo.core.opening.opening import open_model
from octavo.core.opening.spaces import build_space
from octavo.core.quantizing.realize import Realizer
from octavo.core.scoring.broken_model import broken_model
from tests import tiny


def nll(model: Any) -> float:
    x, y = tiny.digits()
    z = model(x[1200:])
    z = z - z.max(1, keepdims=True)
    return float((np.log(np.exp(z).sum(1)) - z[np.arange(len(z)), y[1200:]]).mean())


def tune(path: Path, score: Callable[[Any], Any], **settings: Any) -> octavo.Result:
    settings = {
        "strategy": "basic",
        "minimise": "size",
        "host": tiny.host(),
        **settings,
    }
    return octavo.autotune(
        tiny.chain(), score, tiny.calibration(), storage=path, **settings
    )


@pytest.mark.parametrize("settings", [
    {},
    {"metric": "accuracy"},
    {"metric": "val_loss", "higher_is_better": True},
    {"tolerance": 0.05, "mode": "absolute"},
    {"strategy": "auto"},
])  # fmt: skip
def test_a_loss_that_was_taken_for_a_score_is_refused(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    trials: list[int] = []

    class Watch(octavo.Progress):
        def trying(self, number: int, recipe: octavo.Recipe) -> None:
            trials.append(number)

    # The second run goes on from the same history, and is no way round.
    for _ in range(2):
        with pytest.raises(
            ConfigError, match=r"calls a broken model better.*higher_is_better=False"
        ):
            tune(tmp_path / "h.db", nll, callbacks=(Watch(),), **settings)
    assert not trials


def test_a_score_that_was_taken_for_a_loss_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the other way"):
        tune(tmp_path / "h.db", tiny.accuracy, metric="result", higher_is_better=False)


def test_the_right_direction_goes_through_and_costs_one_evaluation(
    tmp_path: Path,
) -> None:
    calls: list[float] = []

    def counted(model: Any) -> float:
        calls.append(nll(model))
        return calls[-1]

    loss = {"metric": "val_loss", "higher_is_better": False, "tolerance": 0.05}
    result = tune(tmp_path / "h.db", counted, accuracy=loss)
    guarded = len(calls)
    assert result.goal_met
    # The broken model comes after the float model's two, and is far worse.
    assert calls[2] > 5 * calls[0]
    calls.clear()
    same = tune(tmp_path / "i.db", counted, accuracy={**loss, "guard": False})
    assert len(calls) == guarded - 1
    assert same.best.recipe == result.best.recipe


def test_it_is_left_out_where_evaluations_are_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from octavo.core.tuning import direction

    monkeypatch.setattr(direction, "CHEAP", -1.0)
    assert tune(tmp_path / "h.db", nll, max_trials=2).trials


def test_a_score_that_fails_on_the_broken_model_says_nothing(tmp_path: Path) -> None:
    calls: list[int] = []

    def picky(model: Any) -> float:
        calls.append(1)
        found = tiny.accuracy(model)
        if found < 0.5:
            raise ValueError("too bad to be scored")
        return found

    assert tune(tmp_path / "h.db", picky).goal_met


def test_the_broken_model_has_the_same_weights_in_another_order() -> None:
    host = tiny.host()
    opened = open_model(tiny.chain(), host, example=tiny.calibration()[0])
    realizer = Realizer(opened, build_space(opened), host)
    realizer.calibrate(tiny.calibration())
    made = broken_model(realizer, 0)
    assert made is not None
    op, candidate = made
    assert op == max(opened.view.ops, key=lambda o: o.parameters).name
    assert tiny.accuracy(candidate.native) < tiny.accuracy(tiny.chain()) - 0.2
    again = broken_model(realizer, 0)
    assert again is not None
    x, _ = tiny.digits()
    np.testing.assert_array_equal(again[1].native(x), candidate.native(x))
