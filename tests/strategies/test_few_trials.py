"""With one or two trials, ``auto`` spends them on what most likely passes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.neural_network import MLPClassifier

import octavo
from tests import tiny


@pytest.fixture(scope="module")
def net() -> MLPClassifier:
    x, y = tiny.digits()
    return MLPClassifier((48, 32), max_iter=80, random_state=0).fit(x[:900], y[:900])


def accuracy(model: Any) -> float:
    x, y = tiny.digits()
    return float(
        (
            np.asarray(model(x[900:])).reshape(len(x) - 900, -1).argmax(1) == y[900:]
        ).mean()
    )


def tune(
    net: MLPClassifier, storage: Path, score: Any = accuracy, **settings: Any
) -> octavo.Result:
    x, _ = tiny.digits()
    return octavo.autotune(
        net,
        score,
        [x[:128]],
        strategy="auto",
        minimise="size",
        storage=storage,
        **settings,
    )


def modes(trial: octavo.Trial) -> set[tuple[str, int]]:
    return {(s.mode, s.weight_bits) for s in trial.recipe.schemes.values()}


@pytest.mark.parametrize("tolerance", [0.002, 0.01])
def test_one_trial_is_eight_bits_static_and_passes(
    net: MLPClassifier, tmp_path: Path, tolerance: float
) -> None:
    result = tune(net, tmp_path / "h.db", max_trials=1, tolerance=tolerance)
    (trial,) = result.trials
    assert modes(trial) == {("static", 8)}
    assert result.goal_met


def test_the_second_trial_is_cheaper_once_the_first_has_passed(
    net: MLPClassifier, tmp_path: Path
) -> None:
    first, second = tune(net, tmp_path / "h.db", max_trials=2, tolerance=0.01).trials
    assert first.passed
    assert second.objectives["size"].value < first.objectives["size"].value


def test_the_second_trial_is_safer_where_the_first_has_not_passed(
    net: MLPClassifier, tmp_path: Path
) -> None:
    seen: list[float] = []

    def score(model: Any) -> float:
        seen.append(accuracy(model))
        # The float model twice, then the first trial.
        return seen[-1] - (0.5 if len(seen) == 3 else 0.0)

    accuracy_ = {"tolerance": 0.01, "guard": False}
    first, second = tune(
        net, tmp_path / "h.db", score, max_trials=2, accuracy=accuracy_
    ).trials
    assert not first.passed
    assert modes(first) == {("static", 8)}
    assert all(bits == 8 for _, bits in modes(second))
    assert second.passed


def test_budgets_come_before(net: MLPClassifier, tmp_path: Path) -> None:
    (trial,) = tune(
        net, tmp_path / "h.db", max_trials=1, tolerance=0.5, budgets={"code_bits": 4.0}
    ).trials
    assert not trial.over
    assert max(bits for _, bits in modes(trial)) <= 4


def test_more_trials_are_a_search_as_before(net: MLPClassifier, tmp_path: Path) -> None:
    trials = tune(net, tmp_path / "h.db", max_trials=6, tolerance=0.01).trials
    assert min(bits for _, bits in modes(trials[0])) < 8
