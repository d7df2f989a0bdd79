"""With accuracy.confidence a goal is met only where held-out samples prove it; what they cannot
prove is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import octavo
from octavo.core.errors import ConfigError, EvaluationError
from octavo.core.scoring.evaluation import check_scores
from tests import tiny


def recipe_of(model: Any) -> octavo.Recipe:
    recipe: octavo.Recipe = model.recipe
    return recipe


def wrong_share(model: Any) -> float:
    """Return the share of answers that quantizing spoils: one hundredth for each op beyond the
    second."""
    return 0.02 * max(0, len(recipe_of(model)) - 2)


DICE = np.random.default_rng(7).random(4000)


def samples(model: Any, indices: np.ndarray) -> np.ndarray:
    return (DICE[indices] >= wrong_share(model)).astype(float)


def whole(model: Any) -> octavo.Evaluation:
    found = samples(model, np.arange(len(DICE)))
    return octavo.Evaluation(float(found.mean()), found)


def tune(path: Path, score: Any, **settings: Any) -> octavo.Result:
    settings = {
        "strategy": "basic",
        "minimise": "size",
        "host": tiny.host(),
        "accuracy": {"confidence": 0.95, "tolerance": 0.01, "mode": "absolute"},
        **settings,
    }
    return octavo.autotune(
        tiny.chain(), score, tiny.calibration(), storage=path, **settings
    )


@pytest.mark.parametrize(
    "score",
    [octavo.SampleScore(samples, len(DICE)), whole],
    ids=["samples", "evaluation"],
)
def test_the_winner_is_certified_on_samples_that_the_search_never_saw(
    tmp_path: Path, score: Any
) -> None:
    result = tune(tmp_path / "h.db", score)
    assert result.goal_met
    found = result.certificate
    assert found is not None
    assert found.holds
    assert found.samples == len(DICE) // 2
    assert found.confidence == 0.95
    assert found.bound is not None
    assert wrong_share(result.model) <= found.bound <= 0.01
    assert "certified: with 0.95 confidence" in result.reason
    assert len(result.best.recipe) == 2
    assert result.holdout is not None
    saved = json.loads((result.save(tmp_path / "out") / "octavo.json").read_text())
    assert saved["certificate"]["bound"] == found.bound
    assert saved["certificate"]["method"].startswith("betting")
    pytest.importorskip("jinja2")
    assert (
        "Certified: with 0.95 confidence"
        in result.report(tmp_path / "r.html").read_text()
    )


def test_without_scores_of_samples_it_says_what_would_be_needed(tmp_path: Path) -> None:
    result = tune(tmp_path / "h.db", tiny.accuracy)
    assert "nothing can be certified" in " ".join(result.remarks)
    assert not result.goal_met
    assert (
        "meets the goal on what it was scored on, and it is not certified"
        in result.reason
    )
    assert "SampleScore" in result.reason
    assert result.certificate is not None
    assert not result.certificate.holds
    assert result.best.passed


def test_too_few_samples_say_how_many_it_takes(tmp_path: Path) -> None:
    result = tune(tmp_path / "h.db", octavo.SampleScore(samples, 100))
    assert "too few to certify" in " ".join(result.remarks)
    assert not result.goal_met
    assert "it takes about" in result.reason


def test_the_range_of_other_scores_is_asked_for(tmp_path: Path) -> None:
    def cosine(model: Any, indices: np.ndarray) -> np.ndarray:
        return 0.97 - 0.1 * wrong_share(model) + 0.02 * DICE[indices]

    score = octavo.SampleScore(cosine, len(DICE))
    with pytest.raises(ConfigError, match="score_range"):
        tune(tmp_path / "h.db", score)
    accuracy = {
        "confidence": 0.9,
        "tolerance": 0.02,
        "score_range": [-1, 1],
        "metric": "cosine",
    }
    result = tune(tmp_path / "i.db", score, accuracy=accuracy)
    assert result.goal_met
    with pytest.raises(EvaluationError, match="outside the range"):
        tune(tmp_path / "j.db", score, accuracy={**accuracy, "score_range": [0, 0.9]})


def test_several_metrics_are_not_certified_in_silence(tmp_path: Path) -> None:
    def two(model: Any) -> dict[str, float]:
        return {"accuracy": 0.9, "f1": 0.9}

    result = tune(tmp_path / "h.db", two)
    assert "a certificate is of one metric" in " ".join(result.remarks)
    assert not result.goal_met


def test_a_holdout_of_evaluations_needs_no_sample_score(tmp_path: Path) -> None:
    result = tune(tmp_path / "h.db", whole, holdout=0.25, accuracy={"tolerance": 0.05})
    assert result.goal_met
    assert result.certificate is None
    assert result.holdout is not None
    with pytest.raises(ConfigError, match="SampleScore"):
        tune(tmp_path / "i.db", tiny.accuracy, holdout=0.25)


@pytest.mark.parametrize("percent", [0, 1, 95, -0.5])
def test_a_confidence_is_a_share(tmp_path: Path, percent: float) -> None:
    with pytest.raises(ConfigError, match="confidence"):
        tune(tmp_path / "h.db", whole, accuracy={"confidence": percent})


@pytest.mark.parametrize(("value", "per_sample", "fault"), [
    (0.5, [1.0, 1.0], "mean"),
    (95.0, [1.0, 0.9], "mean"),
    (0.5, [], "empty"),
    ({"f1": 0.4, "accuracy": 0.5}, [1.0, 1.0], "mean"),
])  # fmt: skip
def test_scores_of_samples_must_be_those_of_the_value(
    value: Any, per_sample: list[float], fault: str
) -> None:
    with pytest.raises(EvaluationError, match=fault):
        check_scores(octavo.Evaluation(value, per_sample))


def test_scores_of_samples_keep_their_number(tmp_path: Path) -> None:
    def shrinking(model: Any) -> octavo.Evaluation:
        count = 50 if len(recipe_of(model)) else 60
        return octavo.Evaluation(1.0, np.ones(count))

    result = tune(tmp_path / "h.db", shrinking, accuracy={}, max_trials=3)
    assert not result.goal_met
    assert "50 samples, and 60 the time before" in result.trials[0].error


def test_ten_samples_are_said_to_be_too_coarse(tmp_path: Path) -> None:
    def perfect(model: Any, indices: np.ndarray) -> np.ndarray:
        return np.ones(len(indices))

    accuracy = {"tolerance": 0.01, "mode": "absolute"}
    result = tune(tmp_path / "h.db", octavo.SampleScore(perfect, 10), accuracy=accuracy)
    assert "one sample is 10 tolerances" in " ".join(result.remarks)
    assert "one sample is 10 tolerances" in result.reason
    many = tune(tmp_path / "i.db", octavo.SampleScore(perfect, 1000), accuracy=accuracy)
    assert "one sample" not in many.reason
