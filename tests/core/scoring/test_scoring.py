"""Evaluations that stop early, and data that the search never sees, in a whole run."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import octavo
from octavo.core.errors import ConfigError
from tests import tiny


def sampled(spoil: Callable[[Any], float] = lambda model: 0.0) -> octavo.SampleScore:
    """Accuracy of each sample; ``spoil`` says which share of a candidate's answers is
    made wrong."""
    x, y = tiny.digits()
    x, y = np.tile(x[1200:], (3, 1)), np.tile(y[1200:], 3)
    dice = np.random.default_rng(1).random(len(x))
    seen.clear()

    def score(model: Any, indices: np.ndarray) -> np.ndarray:
        seen.append(np.asarray(indices))
        right = model(x[indices]).argmax(1) == y[indices]
        return (right & (dice[indices] >= spoil(model))).astype(float)

    return octavo.SampleScore(score, len(x))


seen: list[np.ndarray] = []


def recipe_of(model: Any) -> octavo.Recipe:
    return model.recipe


def tune(score: Any, path: Path, **settings: Any) -> octavo.Result:
    settings = {
        "strategy": {"kind": "bayesian", "sampler": "random", "over": "op"},
        "minimise": "size",
        "host": tiny.host(),
        "storage": path,
        "max_trials": 6,
        **settings,
    }
    return octavo.autotune(tiny.chain(), score, tiny.calibration(), **settings)


def test_hopeless_candidates_are_stopped_and_good_ones_see_every_sample(
    tmp_path: Path,
) -> None:
    def half_wrong_unless_complete(model: Any) -> float:
        return 0.5 if 0 < len(recipe_of(model)) < 4 else 0.0

    result = tune(sampled(half_wrong_unless_complete), tmp_path / "h.db", max_trials=12)
    rejected = [t for t in result.trials if t.state == "rejected"]
    complete = [t for t in result.trials if t.state == "complete"]
    assert rejected
    assert complete
    assert all(
        len(t.recipe) < 4 and t.evaluated < 0.3 and not t.passed and t.margin < 0
        for t in rejected
    )
    assert all(len(t.recipe) == 4 and t.evaluated == 1.0 for t in complete)
    assert result.goal_met
    again = tune(sampled(half_wrong_unless_complete), tmp_path / "h.db", max_trials=12)
    assert [t.state for t in again.trials] == [t.state for t in result.trials]


def test_racing_can_be_turned_off_and_changes_no_verdict(tmp_path: Path) -> None:
    def slightly_wrong(model: Any) -> float:
        return 0.08 * (4 - len(recipe_of(model))) if len(recipe_of(model)) else 0.0

    raced = tune(sampled(slightly_wrong), tmp_path / "a.db", tolerance=0.05)
    plain = tune(
        sampled(slightly_wrong),
        tmp_path / "b.db",
        tolerance=0.05,
        config={"racing": None},
    )
    assert [t.passed for t in raced.trials] == [t.passed for t in plain.trials]
    assert {t.state for t in plain.trials} == {"complete"}
    assert raced.best.recipe == plain.best.recipe


def test_the_holdout_is_never_seen_by_the_search(tmp_path: Path) -> None:
    score = sampled()
    everything: set[int] = set()
    search: set[int] = set()

    class Watch(octavo.Progress):
        def trying(self, number: int, recipe: octavo.Recipe) -> None:
            everything.update(int(i) for part in seen for i in part)
            seen.clear()

        def finished(
            self,
            trial: octavo.Trial,
            best: octavo.Trial | None,
            seconds_left: float | None,
        ) -> None:
            search.update(int(i) for part in seen for i in part)

    result = tune(
        score,
        tmp_path / "h.db",
        holdout=0.25,
        callbacks=(Watch(),),
        config={"confirm": False},
    )
    everything.update(int(i) for part in seen for i in part)
    assert len(search) == round(score.samples * 0.75)
    assert everything == set(range(score.samples))
    assert result.holdout is not None
    assert result.holdout.passed
    held = sorted(everything - search)
    assert result.holdout.best["score"] == pytest.approx(
        float(score.of(result.model, held).mean())
    )


def test_a_holdout_function_scores_the_winner(tmp_path: Path) -> None:
    x, y = tiny.digits()
    result = tune(
        tiny.accuracy,
        tmp_path / "h.db",
        holdout_fn=lambda m: float((m(x[:300]).argmax(1) == y[:300]).mean()),
    )
    assert result.holdout is not None
    assert result.holdout.best["score"] > 0.9
    with pytest.raises(ConfigError, match="SampleScore"):
        tune(tiny.accuracy, tmp_path / "i.db", holdout=0.2)


@pytest.mark.parametrize("executor", ["inline", "process"])
def test_a_race_runs_where_evaluations_run(tmp_path: Path, executor: str) -> None:
    score = octavo.SampleScore(_all_wrong_when_quantized, 600)
    result = tune(
        score,
        tmp_path / "h.db",
        max_trials=2,
        strategy="exhaustive",
        config={"executor": executor},
    )
    assert [t.state for t in result.trials] == ["rejected", "rejected"]
    assert not result.goal_met
    assert result.best.number > 0


def _all_wrong_when_quantized(model: Any, indices: np.ndarray) -> np.ndarray:
    return np.full(len(indices), 0.0 if len(recipe_of(model)) else 1.0)


def test_a_candidate_above_the_best_score_is_a_failed_trial_and_no_wrong_rejection(
    tmp_path: Path,
) -> None:
    score = octavo.SampleScore(
        lambda model, indices: np.full(
            len(indices), 1.5 if len(recipe_of(model)) else 0.9
        ),
        300,
    )
    result = tune(score, tmp_path / "h.db", max_trials=1, accuracy={"guard": False})
    assert result.trials[0].state == "failed"
    assert "better than the best" in result.trials[0].error


def test_the_float_model_is_scored_once_where_a_share_of_its_samples_comes_out_the_same(
    tmp_path: Path,
) -> None:
    tune(
        sampled(),
        tmp_path / "h.db",
        max_trials=1,
        confirm=False,
        accuracy={"noise_runs": 4, "guard": False},
        racing=None,
    )
    samples = max(map(len, seen))
    assert [len(part) for part in seen] == [
        samples,
        round(0.1 * samples),
        samples,
    ]  # float twice, and one candidate


def test_a_score_that_varies_is_repeated_over_all_samples(tmp_path: Path) -> None:
    steady = sampled()
    wrong = iter([0.0, 0.3, 0.3, *[0.0] * 50])
    noisy = octavo.SampleScore(
        lambda model, i: steady.score(model, i) * (1 - next(wrong)), steady.samples
    )
    result = tune(
        noisy,
        tmp_path / "h.db",
        max_trials=1,
        confirm=False,
        accuracy={"noise_runs": 4},
        racing=None,
    )
    told = " ".join(result.remarks)
    assert re.search(r"between \d+ runs.*varies between evaluations", told)
