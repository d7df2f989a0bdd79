"""Recovery in a search: what misses the goal after rounding is learned, and every step is a
trial."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import octavo
from octavo.core.errors import ConfigError, DataError, SchemeError, StoreError
from octavo.core.storage.history import read_history
from octavo.core.tuning.progress import Phase, Progress
from octavo.core.values.recipe import Recipe
from octavo.core.values.scheme import PartChoice
from tests import tiny

torch = pytest.importorskip("torch")
from tests import residual  # noqa: E402

LADDER: list[Any] = [
    {"kind": "reconstruction", "iterations": 1},
    {"kind": "distillation", "steps": 1},
    "qat",
]
TWO_BITS = {**residual.TWO_BITS, "weight": {"dtype": ["uint2", "int2"]}}
Trains = Callable[[Any], None]


def steps(trial: octavo.Trial) -> list[str]:
    return [step.kind for step in trial.recipe.recovery]


def tune(storage: Path, train_fn: Trains | None = residual.fit, **settings: Any) -> Any:
    settings = {
        "recover": LADDER,
        "strategy": "basic",
        "rules": [TWO_BITS],
        "budgets": {"code_bits": 2.5},
        "max_trials": 2,
        "tolerance": 0.03,
        "minimise": "size",
        "accuracy": {"guard": False},
        **settings,
    }
    return octavo.autotune(
        residual.network(),
        residual.accuracy,
        residual.batches(),
        storage=storage / "h.db",
        train_fn=train_fn,
        **settings,
    )


class Told(Progress):
    def __init__(self) -> None:
        self.phases: list[Phase] = []
        self.trials: list[int] = []

    def phase(self, phase: Phase) -> None:
        self.phases.append(phase)

    def finished(self, trial: Any, best: Any, seconds_left: Any) -> None:
        self.trials.append(trial.number)


def test_the_closest_climb_the_ladder_until_one_passes(tmp_path: Path) -> None:
    trained: list[Any] = []

    def train(model: Any) -> None:
        trained.append(model)
        residual.fit(model, 80)

    told = Told()
    result = tune(tmp_path, train, callbacks=[told])
    searched, learned = result.trials[:2], result.trials[2:]
    assert not any(trial.passed or trial.recipe.recovery for trial in searched)
    # Step by step, each on the closest first; the two that trained are of one step.
    nearest = sorted(searched, key=lambda t: -t.margin)
    assert [steps(t)[-1] for t in learned] == [
        *2 * ["reconstruction"],
        *2 * ["distillation"],
        *2 * ["qat"],
    ]
    assert [t.recipe.unrecovered for t in learned] == 3 * [t.recipe for t in nearest]
    assert len(trained) == 2
    assert result.goal_met
    assert steps(result.best) == ["qat"]
    assert result.confirmed == result.best.metrics
    assert all(t.seconds["recover"] > 0 for t in learned)
    assert told.trials == [1, 2, 3, 4, 5, 6, 7, 8]
    of_recovery = [p for p in told.phases if p.name == "recovery"]
    assert {p.total for p in of_recovery} == {6}
    assert of_recovery[-1].done == 6
    assert "2 trials were used up; then reached the goal by recovery" in result.reason
    assert "qat" in result.summary()
    assert "then qat" in str(result.trials.table())
    # The history holds them all, the recipe survives, and the model needs no training again.
    kept = {t.number: t.recipe for t in read_history(tmp_path / "h.db")[1]}
    assert kept[result.best.number] == result.best.recipe
    result.save(tmp_path / "saved")
    loaded = octavo.load(tmp_path / "saved", residual.network())
    assert residual.accuracy(loaded) == result.best.metrics["score"]
    assert len(trained) == 2


def test_a_finished_run_is_answered_without_training(tmp_path: Path) -> None:
    first = tune(tmp_path, partial(residual.fit, steps=80), recover=["qat"])

    def never(model: Any) -> None:
        raise AssertionError("trained again")

    again = tune(tmp_path, never, recover=["qat"])
    assert again.trials == first.trials
    assert again.best.number == first.best.number
    assert again.goal_met
    assert again.confirmed == first.confirmed


def test_a_search_that_passes_recovers_nothing(tmp_path: Path) -> None:
    result = tune(tmp_path, tolerance=0.2)
    assert result.goal_met
    assert not any(trial.recipe.recovery for trial in result.trials)


def test_stop_at_the_goal_ends_with_the_first_that_passes(tmp_path: Path) -> None:
    train = partial(residual.fit, steps=80)
    result = tune(tmp_path, train, recover=["qat"], stop="goal")
    assert [steps(trial) for trial in result.trials] == [[], [], ["qat"]]
    assert result.goal_met


def test_what_is_trained_is_seeded(tmp_path: Path) -> None:
    runs = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        torch.manual_seed(
            len(runs)
        )  # the caller's random numbers are none of the run's
        found = tune(tmp_path / name, recover=["qat"], recover_top=1)
        runs.append([trial.metrics for trial in found.trials])
    assert runs[0] == runs[1]


def test_a_function_that_trains_means_qat_and_runs_where_evaluations_do(
    tmp_path: Path,
) -> None:
    result = tune(
        tmp_path,
        partial(residual.fit, steps=80),
        recover=[],
        recover_top=1,
        executor="process",
        progress=False,
    )
    assert result.config.recover == (PartChoice(kind="qat"),)
    assert steps(result.best) == ["qat"]
    assert result.goal_met


def test_what_fails_is_a_trial_with_its_error(tmp_path: Path) -> None:
    def wrong(model: Any) -> Any:
        return 0.5

    result = tune(tmp_path, wrong, recover=["qat"], recover_top=1)
    failed = result.trials[-1]
    assert failed.state == "failed"
    assert "SchemeError: train_fn returned float" in failed.error
    assert not result.goal_met
    assert "then one recovery did not reach the goal" in result.reason


@pytest.mark.parametrize(
    ("train_fn", "recover", "said"),
    [
        (None, ["qat"], "no function trains: give train_fn"),
        (residual.fit, ["distillation"], "add 'qat' to recover"),
        (3, ["qat"], "train_fn must be callable"),
        (None, ["distilation"], "did you mean 'distillation'"),
        (None, [{"kind": "distillation", "step": 3}], "did you mean 'steps'"),
    ],
)
def test_what_cannot_be_meant_is_said_before_any_work(
    tmp_path: Path, train_fn: Any, recover: Any, said: str
) -> None:
    def never(model: Any) -> float:
        raise AssertionError("evaluated")

    with pytest.raises(ConfigError, match=said):
        octavo.autotune(
            residual.network(), never, residual.batches(), recover=recover,
            train_fn=train_fn, storage=tmp_path / "h.db",
        )  # fmt: skip


def test_a_backend_without_training_says_so(tmp_path: Path) -> None:
    result = octavo.autotune(
        tiny.chain(), tiny.nearness, tiny.calibration(), train_fn=print,
        recover=["distillation", "qat"], tolerance=0.0, mode="absolute",
        strategy="basic", max_trials=2, storage=tmp_path / "h.db", host=tiny.host(),
        minimise="size", accuracy={"guard": False},
    )  # fmt: skip
    assert not result.goal_met
    told = " ".join(result.remarks)
    assert "no recovery by qat: backend 'tiny' offers no quantization-aware" in told
    assert "no recovery by distillation: backend 'tiny'" in told


def test_other_recoveries_are_another_run(tmp_path: Path) -> None:
    tune(tmp_path, None, recover=LADDER[:1], recover_top=1)
    with pytest.raises(StoreError, match="another recover"):
        tune(tmp_path, None, recover=LADDER[:2], recover_top=1)


def learned_recipe(*names: str) -> Recipe:
    found = octavo.quantize_model(
        residual.network(), {"rules": [residual.TWO_BITS]}, residual.batches()
    )
    steps = [PartChoice(kind=name) for name in names]
    recipe: Recipe = found.candidate.recipe.recovered(*steps)
    return recipe


@pytest.mark.parametrize("kind", ["reconstruction", "distillation"])
def test_a_recipe_is_carried_out_with_what_it_learned(kind: str) -> None:
    x, _ = residual.digits()
    recipe = learned_recipe(kind)
    with torch.no_grad():
        target = residual.network()(x[:256])

        def loss(recipe: Recipe) -> float:
            made = octavo.quantize_model(residual.network(), recipe, residual.batches())
            assert made.candidate.recipe == recipe
            return float(np.square((made.model(x[:256]) - target).numpy()).mean())

        assert loss(recipe) < 0.9 * loss(recipe.unrecovered)


def test_without_a_search_what_is_missing_is_said() -> None:
    net, data = residual.network(), residual.batches()
    with pytest.raises(ConfigError, match="give train_fn"):
        octavo.quantize_model(net, learned_recipe("qat"), data)
    with pytest.raises(DataError, match="learns from calibration data"):
        octavo.quantize_model(net, learned_recipe("distillation"))
    elsewhere = Recipe({}, (), "tiny", (PartChoice(kind="distillation"),))
    with pytest.raises(SchemeError, match="'tiny' offers no distillation"):
        octavo.quantize_model(
            tiny.chain(), elsewhere, tiny.calibration(), host=tiny.host()
        )
