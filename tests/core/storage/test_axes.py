"""Recipes as parameters of Optuna: of every kind of trial, across resumes and odd names."""

from __future__ import annotations

import pytest

from octavo.core.storage.axes import Axes
from octavo.core.storage.history import StudyHistory
from octavo.core.values.recipe import Recipe
from octavo.core.values.trial import Measurement, Trial

PRINT = {"model": "a"}
LONG = "encoder/" * 90
SIZE = Measurement(10.0, 9.0, 11.0, "bytes", 0.3)


def axes(*names: str) -> Axes:
    """Return a parameter with a name that no column holds, and a plain one; each recipe takes the
    last choice."""
    choices = dict.fromkeys((LONG + "a", LONG + "b", "op"), names or ("w8", "float"))
    return Axes(
        choices, lambda recipe: {name: len(c) - 1 for name, c in choices.items()}
    )


def opened(storage: str, name: str, told: Axes | None = None) -> StudyHistory:
    directions = ("maximize", "minimize")
    return StudyHistory(
        storage, name=name, fingerprint=PRINT, directions=directions, axes=told
    )


def write(history: StudyHistory, *trials: Trial) -> None:
    for trial in trials:
        history.begin(trial.number, trial.recipe)
        history.finish(trial)


def complete(number: int) -> Trial:
    metrics = {"accuracy": 0.9}
    return Trial(number, Recipe({}), metrics=metrics, objectives={"size": SIZE})


def rows(storage: str, name: str) -> list:
    import optuna

    url = storage if "://" in storage else f"sqlite:///{storage}"
    return optuna.load_study(study_name=name, storage=url).get_trials()


def test_trials_of_every_end_have_parameters(
    storage: str, request: pytest.FixtureRequest
) -> None:
    name = request.node.name
    history = opened(storage, name, axes())
    write(
        history,
        Trial(0, Recipe({}), "failed", error="Traceback"),
        Trial(1, Recipe({}), "rejected", {"accuracy": 0.1}, evaluated=0.2),
        complete(2),
    )
    history.begin(3, Recipe({}))
    history.interrupt(3)
    history.close()
    found = rows(storage, name)
    assert [row.state.name for row in found] == ["FAIL", "PRUNED", "COMPLETE", "FAIL"]
    assert all(set(row.params.values()) == {"float"} for row in found)
    names = set(found[0].params)
    assert "op" in names
    assert len(names) == 3
    assert all(len(name) <= 512 for name in names)


def test_a_study_without_parameters_goes_on_with_them(
    storage: str, request: pytest.FixtureRequest
) -> None:
    import optuna

    name = request.node.name
    old = opened(storage, name)
    write(old, complete(0))
    # As an earlier octavo left it.
    old._storage.set_study_system_attr(old._study, "study:metric_names", None)
    old.close()
    again = opened(storage, name, axes())
    assert [t.number for t in again.trials] == [0]
    write(again, complete(1))
    again.close()
    assert [len(row.params) for row in rows(storage, name)] == [0, 3]
    url = storage if "://" in storage else f"sqlite:///{storage}"
    study = optuna.load_study(study_name=name, storage=url)
    assert study.metric_names == ["accuracy", "size"]


def test_a_parameter_keeps_the_names_that_it_was_written_with(
    storage: str, request: pytest.FixtureRequest
) -> None:
    """A later octavo may call schemes otherwise; Optuna wants one set of choices for a study."""
    name = request.node.name
    for number, told in enumerate((axes("w8", "float"), axes("int8", "fp32"))):
        history = opened(storage, name, told)
        write(history, complete(number))
        history.close()
    first, second = rows(storage, name)
    assert first.params == second.params
    assert first.distributions == second.distributions
