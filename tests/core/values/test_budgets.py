"""Budgets are hard: what overruns one does not pass, whatever its accuracy, and the figures are
said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import octavo
from octavo.core.tuning import baseline
from octavo.core.values.budgets import average_bits, explain, overruns
from octavo.core.values.scheme import FLOAT, OpScheme, QuantSpec
from octavo.core.values.space import TuningSpace, Unit
from octavo.core.values.trial import Measurement
from tests import tiny

W4 = OpScheme(
    mode="weight_only", weight=QuantSpec(dtype="int4", granularity="group:32")
)
SPACE = TuningSpace(
    "tiny",
    (
        Unit("a", "linear", ("a", "a2"), (W4, FLOAT), parameters=300),
        Unit("b", "linear", ("b",), (W4, FLOAT), parameters=100),
        Unit("fixed", "linear", ("fixed",), (FLOAT,), parameters=900),
    ),
)


def test_bits_are_an_average_over_the_weights_that_may_be_quantized() -> None:
    assert average_bits(SPACE, {}) == 32
    some = {"a": W4, "a2": W4}
    codes = (300 * 4 + 100 * 32) / 400
    assert average_bits(SPACE, some, of="codes") == pytest.approx(codes)
    # 300 weights in one row are ten groups of at most 32, with a float32 scale each.
    whole = (300 * 4 + 10 * 32 + 100 * 32) / 400
    assert average_bits(SPACE, some) == pytest.approx(whole)
    every = (whole * 400 + 900 * 32) / 1300
    assert average_bits(SPACE, some, kept=True) == pytest.approx(every)


def test_each_budget_of_bits_counts_what_its_name_says() -> None:
    some = {"a": W4, "a2": W4}
    limits = {"bits": 1.0, "all_bits": 1.0, "code_bits": 1.0, "all_code_bits": 1.0}
    codes = 300 * 4 + 100 * 32
    scales = 10 * 32
    kept = 900 * 32
    assert overruns(limits, SPACE, some, {}) == {
        "bits": pytest.approx((codes + scales) / 400),
        "all_bits": pytest.approx((codes + scales + kept) / 1300),
        "code_bits": pytest.approx(codes / 400),
        "all_code_bits": pytest.approx((codes + kept) / 1300),
    }


def test_a_model_of_halves_has_halves_in_its_file() -> None:
    halves = Unit("a", "linear", ("a",), (W4, FLOAT), parameters=64, float_width=2.0)
    space = TuningSpace("tiny", (halves,))
    assert average_bits(space, {}) == 16
    assert average_bits(space, {}, of="codes") == 32


def test_what_was_not_measured_is_not_within_a_budget() -> None:
    size = Measurement(50.0, 50.0, 50.0, "bytes", 0.5)
    budgets = {"size": 0.4, "latency": 1.0, "bits": 32.0}
    over = overruns(budgets, SPACE, {}, {"size": size})
    assert over == {"size": pytest.approx(1.25), "latency": float("inf")}
    assert explain({"size": 1.25}, budgets) == "size 0.5, and 0.4 is allowed"
    assert overruns({"size": 0.5}, SPACE, {}, {"size": size}) == {}


def tune(tmp_path: Path, **settings: Any) -> octavo.Result:
    return octavo.autotune(
        tiny.chain(),
        tiny.accuracy,
        tiny.calibration(),
        host=tiny.host(),
        storage=tmp_path / "h.db",
        **settings,
    )


@pytest.mark.parametrize("strategy", ["auto", "budget"])
def test_the_saved_file_keeps_the_budget(tmp_path: Path, strategy: str) -> None:
    result = tune(
        tmp_path,
        strategy=strategy,
        budgets={"size": 0.5},
        minimise="latency",
        tolerance=0.05,
    )
    assert result.goal_met
    assert "at most 0.5 of the size" in result.goal
    # Not an objective of this run, and measured all the same.
    assert result.best.objectives["size"].ratio <= 0.5
    saved = result.save(tmp_path / "out")
    files = sum(p.stat().st_size for p in (saved / "model").rglob("*") if p.is_file())
    assert files <= 0.5 * result.baseline.objectives["size"].value


def test_an_accurate_recipe_that_is_too_large_does_not_pass(tmp_path: Path) -> None:
    result = tune(
        tmp_path,
        strategy="basic",
        budgets={"size": 0.01},
        minimise="size",
        max_trials=3,
        tolerance=0.5,
    )
    assert not result.goal_met
    assert all(
        t.margin >= 0 and t.over["size"] > 1 and not t.passed
        for t in result.trials
        if t.state == "complete"
    )
    assert "0.01 is allowed" in result.reason
    again = type(result.trials[0]).from_json(result.trials[0].to_json())
    assert again.over == result.trials[0].over


def test_timings_of_a_busy_machine_are_told() -> None:
    steady = Measurement(10.0, 9.5, 10.5, "ms", 1.0)
    busy = Measurement(10.0, 9.0, 14.0, "ms", 1.0)
    assert (
        baseline.unsteadiness(
            {"latency": steady, "size": Measurement(5.0, 5.0, 5.0, "bytes", 1.0)}
        )
        == ""
    )
    assert "varied from 9 to 14 ms" in baseline.unsteadiness({"latency": busy})


def test_progress_says_which_budget_was_overrun() -> None:
    from octavo.cli.progress import line

    trial = octavo.Trial(
        2,
        octavo.Recipe(backend="tiny"),
        metrics={"score": 0.9},
        margin=0.5,
        over={"size": 1.08},
    )
    assert line(trial, "score").endswith("over budget: size by 8.0%")
