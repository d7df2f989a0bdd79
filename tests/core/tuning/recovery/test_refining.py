"""The winner learns once more, and keeps that where held-back samples say that it helps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import octavo
from octavo.core.errors import ConfigError
from octavo.core.opening.config import TuningConfig
from octavo.core.report.trial_tables import state
from octavo.core.tuning.bench import without_refined
from octavo.core.tuning.recovery.ladder import LadderPlan
from octavo.core.tuning.recovery.refining import AUTOMATIC
from octavo.core.tuning.telling.lines import line
from octavo.core.values.recipe import Recipe
from octavo.core.values.scheme import OpScheme, QuantSpec
from octavo.core.values.trial import Trial

torch = pytest.importorskip("torch")
from tests import residual  # noqa: E402

RULE = {**residual.TWO_BITS, "algorithm": "gptq"}


def batches() -> list[Any]:
    x, _ = residual.digits()
    return [x[i : i + 64] for i in range(0, 512, 64)]


def tune(folder: Path, score: Any = residual.accuracy, **settings: Any) -> Any:
    settings = {
        "strategy": "basic",
        "rules": [RULE],
        "budgets": {"bits": 4},
        "max_trials": 1,
        "tolerance": 0.9,
        "minimise": "size",
        "accuracy": {"guard": False},
        "output_metric": "kl",
        **settings,
    }
    return octavo.autotune(
        residual.network(), score, batches(), storage=folder / "h.db", **settings
    )


def divergence(model: Any, rows: Any) -> float:
    """KL(float || model), in nats a sample."""
    with torch.no_grad():
        p = torch.log_softmax(residual.network()(rows).double(), -1)
        q = torch.log_softmax(model(rows).double(), -1)
    return float((p.exp() * (p - q)).sum(-1).mean())


def test_a_budgets_winner_is_refined_unasked_and_stands_in_its_place(
    tmp_path: Path,
) -> None:
    result = tune(tmp_path)
    start, refined = result.trials
    assert refined.recipe == start.recipe.recovered(AUTOMATIC)
    assert result.best == refined
    assert refined.distances["after"] < 0.9 * refined.distances["before"]
    # Judged by the batches that it did not learn from: the fourth and the eighth.
    judges = torch.cat([batches()[3], batches()[7]])
    found = divergence(result.model, judges)
    assert refined.distances["after"] == pytest.approx(found, rel=1e-3)
    plain = octavo.quantize_model(residual.network(), start.recipe, batches())
    before = divergence(plain.model, judges)
    assert refined.distances["before"] == pytest.approx(before, rel=1e-3)
    assert refined.objectives["size"].value == start.objectives["size"].value
    assert refined.seconds["recover"] > 0
    assert "refined by distillation" in result.reason
    assert any("refined by distillation" in told for told in result.remarks)
    # What was learned is told by the record, and makes no file larger.
    result.save(tmp_path / "saved")
    loaded = octavo.load(tmp_path / "saved", residual.network())
    rows = batches()[0]
    with torch.no_grad():
        np.testing.assert_allclose(loaded(rows), result.model(rows), atol=1e-6)
    again = tune(tmp_path, refine=[AUTOMATIC])
    assert again.trials == result.trials
    assert again.best == refined


def test_what_does_not_help_is_left_out_and_not_scored(tmp_path: Path) -> None:
    scored: list[Any] = []

    def score(model: Any) -> float:
        scored.append(model)
        return residual.accuracy(model)

    harmful = {"kind": "distillation", "steps": 1, "scale_rate": 3.0}
    result = tune(tmp_path, score, refine=harmful, confirm=False)
    start, left_out = result.trials
    assert left_out.state == "rejected"
    assert left_out.distances["after"] >= left_out.distances["before"]
    assert not left_out.metrics
    assert left_out.evaluated == 0
    assert result.best == start
    assert "left out: it does not help" in result.reason
    (tmp_path / "plain").mkdir()
    count = len(scored)
    tune(tmp_path / "plain", score, refine=[], confirm=False)
    assert len(scored) == 2 * count, "no evaluation more than without"
    assert state(left_out).plain == "left out, no gain"
    assert line(left_out, "score").startswith("trial 2 on torch: left out")
    again = tune(tmp_path, score, refine=harmful, confirm=False)
    assert again.trials == result.trials


def test_steps_follow_each_other_from_the_best_so_far(tmp_path: Path) -> None:
    blocks = {"kind": "reconstruction", "iterations": 4}
    result = tune(tmp_path, refine=[blocks, "distillation"])
    start, first, second = result.trials
    kinds = [[step.kind for step in t.recipe.recovery] for t in result.trials]
    assert kinds[1] == ["reconstruction"]
    from_first = first if first.is_gain else start
    assert second.recipe.unrecovered == start.recipe
    assert kinds[2] == [*kinds[from_first.number - 1], "distillation"]
    assert second.distances["before"] == pytest.approx(
        from_first.distances.get("after", second.distances["before"])
    )
    assert dict(first.recipe.recovery[0].options)["hold_back"] is True


@pytest.mark.parametrize(
    "settings",
    [
        {"budgets": {}},
        {"stop": "goal"},
        {"refine": []},
        {
            "rules": [{**RULE, "weight": {"dtype": "int8"}, "algorithm": "rtn"}],
            "budgets": {"bits": 20},
        },
    ],
    ids=["no budget", "at the goal", "turned off", "8 bits"],
)
def test_nothing_is_learned_unasked_where(settings: Any, tmp_path: Path) -> None:
    result = tune(tmp_path, **settings)
    assert not any(trial.recipe.recovery for trial in result.trials)


def test_what_cannot_be_refined_is_told(tmp_path: Path) -> None:
    octavo_batches = batches()[:1]
    result = octavo.autotune(
        residual.network(),
        residual.accuracy,
        octavo_batches,
        storage=tmp_path / "h.db",
        strategy="basic",
        rules=[RULE],
        max_trials=1,
        tolerance=0.9,
        minimise="size",
        accuracy={"guard": False},
        refine="distillation",
    )
    assert len(result.trials) == 1
    assert any("two batches" in told for told in result.remarks)


def test_a_refinement_that_passes_takes_the_place_of_its_start() -> None:
    weight = QuantSpec(dtype="uint2", symmetric=False, granularity="group:32")
    recipe = Recipe({"a": OpScheme(mode="weight_only", weight=weight)}, backend="torch")
    start = Trial(1, recipe, passed=True, margin=0.5)
    nearer = {"before": 2.0, "after": 1.0}
    refined = Trial(
        2, recipe.recovered(AUTOMATIC), passed=True, margin=0.4, distances=nearer
    )
    other = Trial(3, Recipe(backend="torch"), passed=True)

    def left(*trials: Trial) -> list[int]:
        return [trial.number for trial in without_refined(trials)]

    assert left(start, refined, other) == [2, 3]
    assert left(start, replace(refined, passed=False), other) == [1, 2, 3]
    assert left(replace(start, passed=False), replace(refined, passed=False)) == [2]
    assert left(start, replace(refined, refused="on the held-out data")) == [1, 2]
    assert left(start, replace(refined, distances={})) == [1, 2]
    assert left(start, replace(refined, state="rejected")) == [1, 2]


def test_settings_of_a_refinement_are_those_after_an_algorithm() -> None:
    read = TuningConfig.read(None, refine="distillation").refine
    assert read == (AUTOMATIC,)
    mine = TuningConfig.read(None, refine={"kind": "distillation", "rate": 0.1}).refine
    assert dict(mine[0].options)["rate"] == 0.1
    assert LadderPlan.of(TuningConfig()).refine is None
    assert LadderPlan.of(TuningConfig(stop="goal")).refine == ()
    with pytest.raises(ConfigError, match="qat"):
        TuningConfig.read(None, refine=["qat"])
    with pytest.raises(ConfigError, match="distillation"):
        TuningConfig.read(None, refine=["distilation"])
