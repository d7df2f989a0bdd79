"""Goals that say nothing, or two things at once, are refused and not carried out in part."""

from __future__ import annotations

from typing import Any

import pytest

from octavo.core.errors import ConfigError
from octavo.core.opening.config import TuningConfig
from octavo.core.scoring.criteria.config import ToleranceConfig
from octavo.core.scoring.criteria.tolerance import Tolerance
from tests import tiny


@pytest.mark.parametrize("settings", [
    {"tolerance": 1},
    {"tolerance": 5.0},
    {"metrics": {"accuracy": {"tolerance": 1.0}}},
    {"metrics": {"accuracy": {}}, "tolerance": 3},
    {"metrics": {"accuracy": {"mode": "relative", "tolerance": 2}}, "mode": "absolute"},
    {"metrics": {"accuracy": {"floor": 1.5}, "f1": {}}, "combine": "weighted"},
])  # fmt: skip
def test_a_share_of_one_or_more_is_taken_for_percent_and_refused(
    settings: dict[str, Any],
) -> None:
    with pytest.raises(ValueError, match=r"1 % is 0\.01"):
        ToleranceConfig(**settings)


def test_an_absolute_tolerance_may_be_above_one() -> None:
    criterion = Tolerance(
        ToleranceConfig(metric="psnr", tolerance=1.5, mode="absolute")
    )
    assert criterion.judge({"psnr": 30.6}, {"psnr": 32.0}).passed


@pytest.mark.parametrize(
    ("tolerance", "score"), [(1.0, 0.96), (0.96, 0.96), (96.0, 95.9)]
)
def test_a_goal_that_any_output_meets_is_refused(
    tolerance: float, score: float
) -> None:
    criterion = Tolerance(
        ToleranceConfig(metric="accuracy", tolerance=tolerance, mode="absolute")
    )
    with pytest.raises(ConfigError, match="any model meets that"):
        criterion.check_baseline({"accuracy": score})


def test_metric_beside_metrics_is_refused() -> None:
    with pytest.raises(ConfigError, match="'accuracy' stands beside metrics"):
        TuningConfig.read(
            {"accuracy": {"metric": "accuracy", "metrics": {"f1": {}}}}
        ).criterion(tiny.host())
    with pytest.raises(ConfigError, match="stands beside metrics"):
        TuningConfig.read(
            {"accuracy": {"metrics": {"f1": {}}}}, metric="accuracy"
        ).criterion(tiny.host())


@pytest.mark.parametrize("budget", [{"size": 30}, {"latency": 1.5}, {"bits": 64}])
def test_a_budget_that_limits_nothing_is_refused(budget: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="limits nothing"):
        TuningConfig.read(budgets=budget)


@pytest.mark.parametrize(
    "budget", [{"size": 0}, {"size": -0.3}, {"latency": float("nan")}]
)
def test_a_budget_that_nothing_keeps_is_refused(budget: dict[str, float]) -> None:
    (name,) = budget
    with pytest.raises(ConfigError, match=rf"budgets\.{name}"):
        TuningConfig.read(budgets=budget)


def test_budgets_of_the_float_model_itself_are_taken() -> None:
    assert TuningConfig.read(budgets={"size": 1.0, "bits": 32}).budgets == {
        "size": 1.0,
        "bits": 32,
    }


def test_a_gain_cannot_hide_a_collapse() -> None:
    """The accuracy halves; recall gains forty tolerances, so that the weighted mean of both is far
    above the goal."""
    goals: dict[str, Any] = {
        "accuracy": {"tolerance": 0.01},
        "recall": {"tolerance": 0.01},
    }
    baseline = {"accuracy": 0.96, "recall": 0.4}
    criterion = Tolerance(ToleranceConfig(metrics=goals, combine="weighted"))
    assert not criterion.judge({"accuracy": 0.41, "recall": 0.8}, baseline).passed
    # Two metrics: each may lose twice its tolerance where the other makes up for it.
    assert criterion.judge({"accuracy": 0.96 * 0.981, "recall": 0.41}, baseline).passed
    assert not criterion.judge(
        {"accuracy": 0.96 * 0.979, "recall": 0.8}, baseline
    ).passed
    goals["accuracy"]["floor"] = 0.05
    wider = Tolerance(ToleranceConfig(metrics=goals, combine="weighted"))
    assert wider.judge({"accuracy": 0.96 * 0.951, "recall": 0.8}, baseline).passed
    assert not wider.judge({"accuracy": 0.96 * 0.949, "recall": 0.8}, baseline).passed


def test_weights_and_floors_that_nothing_uses_are_refused() -> None:
    with pytest.raises(ValueError, match="counts only where the weighted mean decides"):
        ToleranceConfig(metrics={"accuracy": {"weight": 2.0}})
    with pytest.raises(ValueError, match="below its tolerance"):
        ToleranceConfig(
            combine="weighted",
            metrics={"accuracy": {"tolerance": 0.1, "floor": 0.05}, "f1": {}},
        )
