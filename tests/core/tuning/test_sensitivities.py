"""Sensitivities outlive the process that found them: a resumed run starts from them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import octavo
from octavo.core.sensitivity.memory import short_key, worth_keeping
from octavo.core.sensitivity.output_distance import OutputDistance
from octavo.core.tuning import sensitivities
from octavo.core.values.recipe import Recipe
from tests import tiny


def tune(folder: Path, max_trials: int) -> octavo.Result:
    return octavo.autotune(
        tiny.chain(),
        tiny.accuracy,
        tiny.calibration(),
        strategy="budget",
        budgets={"size": 0.6},
        storage=folder / "history.db",
        minimise="size",
        max_trials=max_trials,
        host=tiny.host(),
    )


def test_a_resumed_run_finds_out_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probed: list[str] = []
    real = OutputDistance.of

    def counted(self: OutputDistance, recipe: Recipe) -> float:
        probed.append(recipe.digest)
        return real(self, recipe)

    monkeypatch.setattr(OutputDistance, "of", counted)
    first = tune(tmp_path, 2)
    assert probed
    asked = {op: layer.sensitivity for op, layer in first.layers.items()}
    probed.clear()
    second = tune(tmp_path, 3)
    assert not probed
    again: dict[str, Any] = {op: x.sensitivity for op, x in second.layers.items()}
    same = first.best.recipe == second.best.recipe
    assert not same or again == asked


def test_what_is_found_anew_in_no_time_is_not_kept() -> None:
    scores = {
        "weight_error a {}": 0.5,
        "hessian a {}": 0.5,
        "hessian_trace a {}": 0.5,
        "output_distance a {}": float("inf"),
    }
    kept = worth_keeping(scores)
    assert kept == {
        short_key("hessian_trace a {}"): 0.5,
        short_key("output_distance a {}"): None,
    }


def test_what_probes_are_worth_is_decided_once_in_the_life_of_a_history(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened() -> Any:
        return octavo.prepare(
            tiny.chain(),
            tiny.accuracy,
            tiny.calibration(),
            storage=tmp_path / "history.db",
            minimise="size",
            host=tiny.host(),
        )

    clock = iter(float(second) for second in range(100))
    with opened() as run:
        (service,) = run._bench.sensitivities.values()
        baseline = replace(run._bench.baseline, seconds={"evaluate": 36.0}, runs=2)
        run._bench.scored = baseline
        # A run of a batch takes a second, an evaluation 18: twenty of them are more than a minute.
        monkeypatch.setattr(sensitivities.time, "perf_counter", lambda: next(clock))
        first = sensitivities.worth_of_probes(run._bench, service)
        monkeypatch.undo()
        assert first == 20 * 18.0
        run._bench.scored = replace(baseline, seconds={"evaluate": 1.0})
        assert sensitivities.worth_of_probes(run._bench, service) == first
    with opened() as run:
        (service,) = run._bench.sensitivities.values()
        assert sensitivities.worth_of_probes(run._bench, service) == first
        service.batches = ()
        assert sensitivities.worth_of_probes(run._bench, service) is None
