"""A score that varies: what passes is better than the goal by more than its noise; an exact score
costs nothing more."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import octavo
from octavo.core.scoring.criteria.config import ToleranceConfig
from octavo.core.scoring.criteria.tolerance import Tolerance
from octavo.core.scoring.evaluation import Scores
from octavo.core.scoring.noise import Noise
from octavo.core.scoring.yardstick import Judged, Yardstick
from tests import tiny

TOLERANCE = 0.01


class Model:
    """Stands for a candidate whose true score is known."""

    def __init__(self, truth: float) -> None:
        self.truth = truth


def yardstick(deviation: float, seed: int) -> Yardstick:
    """A yardstick over scores with normal noise, of so many tolerances."""
    random = np.random.default_rng(seed)

    def score(model: Any) -> Scores:
        return Scores(
            {"score": model.truth + random.normal(0.0, deviation * TOLERANCE)}
        )

    criterion = Tolerance(ToleranceConfig(mode="absolute", tolerance=TOLERANCE))
    found = Yardstick(score, criterion)
    found.measure(Model(0.9), 2)
    return found


def examined(
    stick: Yardstick, truth: float, number: int = 1
) -> tuple[Judged, Judged | None]:
    model: Any = Model(truth)
    searched = stick.judge(model, stick.score(model), looks=number)
    return searched, stick.confirm(
        model, stick.score(model), 1
    ) if searched.passed else None


@pytest.mark.parametrize("deviation", [0.25, 0.5, 1.0])
def test_a_model_that_misses_the_goal_seldom_passes_by_luck(deviation: float) -> None:
    """Twenty candidates just beyond the goal are looked at, and the first that passes
    is confirmed."""
    false = 0
    for seed in range(60):
        stick = yardstick(deviation, seed)
        for number in range(1, 21):
            searched, confirmed = examined(stick, 0.9 - 1.05 * TOLERANCE, number)
            if searched.passed:
                assert confirmed is not None
                false += confirmed.passed
                break
    # A binomial of 60 at 5 % is above 8 in less than 1 of 100.
    assert false <= 8


@pytest.mark.parametrize("deviation", [0.25, 0.5])
def test_a_model_that_loses_nothing_mostly_passes(deviation: float) -> None:
    passed = 0
    for seed in range(40):
        searched, confirmed = examined(yardstick(deviation, seed), 0.9)
        passed += searched.passed and confirmed is not None and confirmed.passed
    assert passed >= 30


def test_the_float_score_is_a_mean_of_repeats() -> None:
    errors = [yardstick(1.0, seed).baseline["score"] - 0.9 for seed in range(200)]
    # 32 evaluations: a standard error of 1/sqrt(32); a single draw would be off by a tolerance.
    assert float(np.std(errors)) == pytest.approx(TOLERANCE / np.sqrt(32), rel=0.25)


def test_the_margin_asked_for_is_that_of_students_t() -> None:
    """Against a simulation: how often a mean of n beats the mean of r by so much, where both are
    alike."""
    random = np.random.default_rng(0)
    r, n, error = 8, 4, 0.05
    beyond = 0
    for _ in range(20000):
        runs = random.normal(size=r)
        noise = Noise(float(np.std(runs, ddof=1)), r)
        beyond += random.normal(size=n).mean() - runs.mean() > noise.needed(n, error)
    assert beyond / 20000 == pytest.approx(error, abs=0.006)


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


def test_an_exact_score_is_evaluated_twice_then_once_a_trial_and_once_at_the_end(
    tmp_path: Path,
) -> None:
    count = itertools.count(1)

    def score(model: Any) -> float:
        next(count)
        return tiny.accuracy(model)

    result = tune(tmp_path / "h.db", score)
    before = 2 + len(result.trials) + 1
    assert next(count) - 1 <= before + 1
    assert result.goal_met
    assert "varies" not in result.reason
    assert result.baseline.noise == 0.0
    assert {t.runs for t in result.trials} == {1}


def test_a_score_that_varies_is_told_with_the_interval(tmp_path: Path) -> None:
    random = np.random.default_rng(3)

    def score(model: Any) -> float:
        return tiny.accuracy(model) + float(random.normal(0, 0.003))

    result = tune(tmp_path / "h.db", score, tolerance=0.02)
    assert "varies between evaluations" in " ".join(result.remarks)
    assert result.goal_met
    assert "evaluations of its own" in result.reason
    assert "the margin to the goal is" in result.reason
    assert result.baseline.runs >= 8
    assert result.best.runs >= 1
    assert abs(result.baseline.metrics["score"] - tiny.accuracy(tiny.chain())) < 0.004


def test_noise_that_the_float_models_two_scores_did_not_show_is_noticed_at_the_end(
    tmp_path: Path,
) -> None:
    """The first two scores meet by chance; the winner's second score is another, and then all is
    looked at again."""
    random = np.random.default_rng(1)
    calls = itertools.count()

    def score(model: Any) -> float:
        shift = 0.0 if next(calls) < 2 else float(random.normal(0, 0.01))
        return 0.9 + shift - (0.3 if len(model.recipe) else 0.0)

    accuracy = {"tolerance": 0.345, "mode": "relative", "guard": False}
    result = tune(tmp_path / "h.db", score, accuracy=accuracy)
    assert "varies between evaluations" in " ".join(result.remarks)
    assert result.baseline.runs >= 8


def test_a_score_of_samples_is_checked_on_samples_from_everywhere(
    tmp_path: Path,
) -> None:
    """Noise that touches the second half of the samples only is seen."""
    random = np.random.default_rng(2)
    x, y = tiny.digits()

    def score(model: Any, indices: np.ndarray) -> np.ndarray:
        right = (model(x[1200:][indices]).argmax(1) == y[1200:][indices]).astype(float)
        flipped = (indices > 300) & (random.random(len(indices)) < 0.3)
        return np.where(flipped, 1 - right, right)

    result = tune(
        tmp_path / "h.db", octavo.SampleScore(score, 597), max_trials=1, racing=None
    )
    assert "varies between evaluations" in " ".join(result.remarks)


def test_noise_and_runs_come_back_from_a_stored_trial() -> None:
    trial = octavo.Trial(0, octavo.Recipe({}), runs=16, noise=0.4)
    assert octavo.Trial.from_json(trial.to_json()) == trial
    old = {
        k: v
        for k, v in trial.to_json().items()
        if k not in ("runs", "noise", "refused")
    }
    assert octavo.Trial.from_json(old).runs == 1
