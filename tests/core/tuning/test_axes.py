"""Other people's tools read a run's store: Optuna itself and its dashboard."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import octavo
from octavo.core.tuning.axes import axes_of
from octavo.core.values.recipe import Recipe
from octavo.core.values.scheme import FLOAT, OpScheme, PartChoice, QuantSpec
from octavo.core.values.space import TuningSpace, Unit
from tests import tiny

INT8 = OpScheme(
    mode="weight_only", weight=QuantSpec(dtype="int8", granularity="channel")
)
INT4 = OpScheme(
    mode="weight_only", weight=QuantSpec(dtype="int4", granularity="channel")
)


def tune(storage: str, **settings: Any) -> octavo.Result:
    return octavo.autotune(
        tiny.chain(),
        tiny.accuracy,
        tiny.calibration(),
        storage=storage,
        host=tiny.host(),
        strategy="random",
        minimise=["size"],
        metric="accuracy",
        **settings,
    )


def url_of(storage: str) -> str:
    return storage if "://" in storage else f"sqlite:///{storage}"


def test_optuna_names_axes_and_finds_what_matters(
    storage: str, request: pytest.FixtureRequest
) -> None:
    import optuna

    name = request.node.name
    result = tune(storage, study=name, max_trials=5)
    # Another run goes on with the same parameters.
    result = tune(storage, study=name, max_trials=8)
    study = optuna.load_study(study_name=name, storage=url_of(storage))
    assert study.metric_names == ["accuracy", "size"]
    ops = list(result.best.recipe.schemes)
    trials = study.get_trials(states=[optuna.trial.TrialState.COMPLETE])
    assert len(trials) == 9
    assert {len(t.params) for t in trials} == {4}
    assert set(ops) <= set(trials[0].params)
    assert set(trials[0].params.values()) == {"float"}
    for trial, row in zip(result.trials, trials[1:], strict=True):
        for op, told in row.params.items():
            assert (told == "float") == trial.recipe[op].is_float
    frame = study.trials_dataframe()
    assert {"values_accuracy", "values_size", *(f"params_{op}" for op in ops)} <= set(
        frame
    )
    found = optuna.importance.get_param_importances(
        study, target=lambda trial: trial.values[1]
    )
    assert set(found) == set(trials[0].params)


@contextmanager
def dashboard(storage: str) -> Iterator[Any]:
    """Start the real dashboard, and yield what asks it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", "from optuna_dashboard._cli import main; main()"]
    process = subprocess.Popen(
        [*command, url_of(storage), "--host", "127.0.0.1", "--port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def ask(path: str) -> Any:
        address = f"http://127.0.0.1:{port}/api/{path}"
        with urllib.request.urlopen(address, timeout=60) as answer:
            return json.load(answer)

    try:
        ends = time.monotonic() + 90
        while True:
            try:
                ask("meta")
                break
            except (urllib.error.URLError, ConnectionError):
                assert process.poll() is None
                assert time.monotonic() < ends
                time.sleep(0.2)
        yield ask
    finally:
        process.kill()
        process.wait(20)


def test_the_dashboard_starts_on_a_store_and_lists_names(tmp_path: Path) -> None:
    pytest.importorskip("optuna_dashboard")
    storage = str(tmp_path / "h.db")
    result = tune(storage, max_trials=6)
    with dashboard(storage) as ask:
        (summary,) = ask("studies")["study_summaries"]
        assert summary["study_name"] == "octavo"
        study = ask(f"studies/{summary['study_id']}")
        assert study["objective_names"] == ["accuracy", "size"]
        named = {param["name"] for param in study["union_search_space"]}
        assert named == set(result.best.recipe.schemes)
        assert study["union_search_space"] == study["intersection_search_space"]
        told = ask(f"studies/{summary['study_id']}/param_importances")
        by_metric = told["param_importances"]
        assert len(by_metric) == 2
        for importances in by_metric:
            assert {entry["name"] for entry in importances} == named


def space(backend: str, *units: Unit, transforms: Any = ((),)) -> TuningSpace:
    return TuningSpace(backend, units, transforms)


def unit(name: str, *choices: OpScheme) -> Unit:
    return Unit(name, "linear", (name,), (*choices, FLOAT))


def test_ops_transforms_and_backends_are_parameters() -> None:
    smooth = PartChoice(kind="smoothquant")
    one = space(
        "onnx", unit("a", INT8, INT4), unit("fixed"), transforms=((), (smooth,))
    )
    axes = axes_of({"onnx": one})
    assert axes.choices == {
        "a": ("w8 per channel", "w4 per channel", "float"),
        "transforms": ("none", "smoothquant"),
    }
    recipe = Recipe({"a": INT4}, (smooth,), "onnx")
    assert axes.place(recipe) == {"a": 1, "transforms": 1}
    assert axes.place(Recipe({}, (), "onnx")) == {"a": 2, "transforms": 0}
    # What the space has not is no choice of it.
    stranger = INT8.variant(algorithm=PartChoice(kind="gptq"))
    assert axes.place(Recipe({"a": stranger}, (), "onnx")) == {"transforms": 0}


def test_each_trial_of_several_backends_has_every_parameter() -> None:
    axes = axes_of(
        {
            "torch": space("torch", unit("backend", INT8)),
            "onnx": space("onnx", unit("a", INT8)),
        }
    )
    assert axes.choices["backend"] == ("torch", "onnx")
    placed = axes.place(Recipe({"a": INT8}, (), "onnx"))
    names = {name: axes.choices[name][index] for name, index in placed.items()}
    assert names == {
        "torch: op backend": "on another backend",
        "onnx: a": "w8 per channel",
        "backend": "onnx",
    }
