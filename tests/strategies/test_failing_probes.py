"""A sensitivity probe that raises costs that probe, and never the run."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import octavo
from octavo.adapters.numpy.graph import Builder, Graph
from octavo.adapters.numpy.session import NumpySession
from octavo.core.sensitivity.op_errors import OpErrors

STRATEGIES = [
    "auto",
    "basic",
    "bayesian",
    "budget",
    "prefix",
    "accuracy_control",
    "mse",
    "mse_v2",
    "hawq_v2",
    "conservative",
    "coordinate",
]
DRAW = np.random.default_rng(0)
ROWS = DRAW.standard_normal((32, 16)).astype(np.float32)
WEIGHTS = [DRAW.standard_normal((16, 16)).astype(np.float32) for _ in range(3)]


def graph() -> Graph:
    b = Builder()
    x = b.input("x", (None, 16))
    for name, weight in zip(("first", "second", "third"), WEIGHTS, strict=True):
        x = b.Tanh(b.Gemm(x, weight, np.zeros(16, np.float32), name=name))
    return b.graph(x)


def expected() -> np.ndarray:
    values = ROWS
    for weight in WEIGHTS:
        values = np.tanh(values @ weight)
    return values


class Notes(octavo.Progress):
    def __init__(self) -> None:
        self.told: list[str] = []

    def note(self, text: str) -> None:
        self.told.append(text)


def tune(tmp_path: Path, strategy: str, notes: Notes, **settings: Any) -> octavo.Result:
    goal = expected()
    return octavo.autotune(
        graph(),
        lambda model: 1 - float(np.abs(model(ROWS) - goal).mean()),
        [ROWS],
        strategy=strategy,
        max_trials=6,
        minimise="size",
        tolerance=1e-4,
        confirm=False,
        storage=tmp_path / "h.db",
        callbacks=[notes],
        **settings,
    )


@pytest.mark.parametrize("faulty", ["second", ""])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_no_strategy_ends_when_probes_of_an_op_or_all_probes_raise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strategy: str, faulty: str
) -> None:
    draft, of = NumpySession.draft, OpErrors.of

    def failing_draft(
        self: NumpySession, recipe: octavo.Recipe, parameters: Any
    ) -> Any:
        if not faulty or faulty in recipe.schemes:
            raise RuntimeError("this kernel does not take it")
        return draft(self, recipe, parameters)

    def failing_errors(self: OpErrors, ops: tuple[str, ...], *arguments: Any) -> Any:
        if not faulty or faulty in ops:
            raise MemoryError("no room for its Gram matrix")
        return of(self, ops, *arguments)

    monkeypatch.setattr(NumpySession, "draft", failing_draft)
    monkeypatch.setattr(OpErrors, "of", failing_errors)
    notes = Notes()
    settings = {"budgets": {"bits": 9.0}} if strategy == "budget" else {}
    result = tune(tmp_path, strategy, notes, **settings)
    assert result.trials
    assert all(t.state == "complete" for t in result.trials)
    if strategy in ("auto", "budget", "mse", "prefix"):
        assert any(
            "does not take it" in text or "no room" in text for text in notes.told
        )


def test_an_op_that_cannot_be_probed_is_quantized_only_where_the_budget_asks_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draft = NumpySession.draft

    def failing(self: NumpySession, recipe: octavo.Recipe, parameters: Any) -> Any:
        if "second" in recipe.schemes:
            raise RuntimeError("this kernel does not take it")
        return draft(self, recipe, parameters)

    monkeypatch.setattr(NumpySession, "draft", failing)
    strategy: Any = {"kind": "budget", "sensitivities": ["output_distance"]}
    wide = tune(tmp_path / "wide", strategy, Notes(), budgets={"bits": 17.0})
    narrow = tune(tmp_path / "narrow", strategy, Notes(), budgets={"bits": 9.0})
    # A third in float and 8 bits for the rest are 16 bits.
    assert "second" not in wide.trials[0].recipe.schemes
    assert set(narrow.trials[0].recipe.schemes) == {"first", "second", "third"}
