"""Relative and absolute, either direction, several metrics."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.core.errors import ConfigError
from octavo.core.scoring.criteria.config import ToleranceConfig
from octavo.core.scoring.criteria.tolerance import Tolerance


def judge(score: float, baseline: float, **settings: object):
    criterion = Tolerance(ToleranceConfig(**settings))
    return criterion.judge({"score": score}, {"score": baseline})


@pytest.mark.parametrize(("settings", "baseline", "score", "passed"), [
    ({"tolerance": 0.01}, 0.90, 0.891, True),
    ({"tolerance": 0.01}, 0.90, 0.8909, False),
    ({"tolerance": 0.01, "mode": "absolute"}, 0.99, 0.98, True),
    ({"tolerance": 0.01, "mode": "absolute"}, 0.99, 0.9799, False),
    ({"tolerance": 0.01, "higher_is_better": False}, 30.0, 30.3, True),
    ({"tolerance": 0.01, "higher_is_better": False}, 30.0, 30.31, False),
    ({"tolerance": 0.01, "higher_is_better": False}, 10.0, 30.0, False),
    ({"tolerance": 0.01}, -2.0, -2.02, True),
    ({"tolerance": 0.01}, -2.0, -2.03, False),
    ({"tolerance": 0.0}, 0.5, 0.5, True),
    ({"tolerance": 0.0}, 0.5, 0.4999, False),
    ({"tolerance": 0.0}, 0.5, 0.6, True),
    ({"tolerance": 0.1, "mode": "absolute"}, 0.0, -0.05, True),
])  # fmt: skip
def test_verdicts(settings: dict, baseline: float, score: float, passed: bool) -> None:
    verdict = judge(score, baseline, **settings)
    assert verdict.passed is passed
    assert (verdict.margin >= 0) is passed


@given(st.floats(0.1, 10), st.floats(0.0, 10), st.floats(0.0, 10))
def test_margin_ranks_as_the_score_does(baseline: float, a: float, b: float) -> None:
    for higher in (True, False):
        x, y = (judge(s, baseline, higher_is_better=higher).margin for s in (a, b))
        if a != b:
            assert (x >= y) == ((a > b) == higher) or abs(a - b) < 1e-9


def test_a_relative_goal_at_zero_is_refused() -> None:
    with pytest.raises(ConfigError, match="absolute"):
        Tolerance(ToleranceConfig()).check_baseline({"score": 0.0})
    Tolerance(ToleranceConfig(mode="absolute")).check_baseline({"score": 0.0})


def test_a_metric_named_like_a_loss_is_not_guessed() -> None:
    with pytest.raises(ConfigError, match="higher_is_better"):
        Tolerance(ToleranceConfig()).check_baseline({"perplexity": 30.0})


def test_several_metrics() -> None:
    baseline = {"accuracy": 0.9, "wer": 0.10}
    goals = {
        "accuracy": {"tolerance": 0.01},
        "wer": {"tolerance": 0.05, "mode": "absolute", "higher_is_better": False},
    }
    every = Tolerance(ToleranceConfig(metrics=goals))
    assert every.judge({"accuracy": 0.895, "wer": 0.14}, baseline).passed
    assert not every.judge({"accuracy": 0.88, "wer": 0.10}, baseline).passed
    weighted = Tolerance(ToleranceConfig(metrics=goals, combine="weighted"))
    # 2.2 times the tolerated loss of one, none of the other's: the mean is over the goal; half of
    # both is not.
    assert not weighted.judge({"accuracy": 0.88, "wer": 0.10}, baseline).passed
    assert weighted.judge({"accuracy": 0.89, "wer": 0.12}, baseline).passed
    assert not every.judge({"accuracy": 0.9}, baseline).passed
    with pytest.raises(ConfigError, match="'accuracy'"):
        Tolerance(
            ToleranceConfig(metric="acuracy", higher_is_better=True)
        ).check_baseline(baseline)


def test_noise_is_compared_with_the_tolerance() -> None:
    criterion = Tolerance(ToleranceConfig(tolerance=0.01))
    assert criterion.noise(({"score": 0.9}, {"score": 0.905})) == ""
    assert "varied by 0.05" in criterion.noise(({"score": 0.9}, {"score": 0.95}))
