"""What the release before saved: results of three backends and a history, kept as they were
written.

``tests/data/release-0.1.0`` holds a network of three layers (``inputs.npz``: its weights, and rows
to run it on), what octavo 0.1.0 made of it on each backend, the outputs that the saved models gave
there, and each run's SQLite history as text.
"""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import octavo
from octavo.core.results.saved_recipes import read_scheme
from octavo.core.storage.history import read_history

RELEASE = Path(__file__).parents[2] / "data" / "release-0.1.0"
EXPECTED = json.loads((RELEASE / "expected.json").read_text())
FRAMEWORKS = {"numpy": "numpy", "onnx": "onnxruntime", "torch": "torch"}
SAVED = sorted(p.name for p in RELEASE.iterdir() if (p / "octavo.json").exists())

ARRAYS = np.load(RELEASE / "inputs.npz")
ROWS = ARRAYS["x"]
LAYERS = [(ARRAYS[f"w{i}"], ARRAYS[f"b{i}"]) for i in range(3)]


def float_network(rows: np.ndarray) -> np.ndarray:
    hidden = rows
    for index, (weight, bias) in enumerate(LAYERS):
        hidden = hidden @ weight.T + bias
        if index < 2:
            hidden = np.maximum(hidden, 0)
    return hidden


def torch_network() -> Any:
    import torch
    from torch import nn

    net = nn.Sequential(
        nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 5)
    )
    with torch.no_grad():
        for layer, (weight, bias) in zip((net[0], net[2], net[4]), LAYERS, strict=True):
            layer.weight.copy_(torch.from_numpy(weight))
            layer.bias.copy_(torch.from_numpy(bias))
    return net.eval()


def outputs_of(name: str) -> np.ndarray:
    backend = name.split("-")[0]
    model = octavo.load(RELEASE / name, torch_network if backend == "torch" else None)
    if backend == "torch":
        import torch

        with torch.no_grad():
            return np.asarray(model(torch.from_numpy(ROWS)))
    found = model(ROWS)
    return np.asarray(found[0] if isinstance(found, (tuple, list)) else found)


@pytest.mark.parametrize("name", SAVED)
def test_saved_results_load_and_give_the_outputs_of_then(name: str) -> None:
    pytest.importorskip(FRAMEWORKS[name.split("-")[0]])
    then = np.load(RELEASE / "outputs.npz")[name]
    now = outputs_of(name)
    # Other processors round products of activations in other places: by far less than quantization
    # moves them.
    step = np.abs(float_network(ROWS) - then).max()
    assert step > 0
    assert np.abs(now - then).max() <= 0.25 * step


@pytest.mark.parametrize("name", SAVED)
def test_saved_recipes_have_their_digests(name: str) -> None:
    manifest = json.loads((RELEASE / name / "octavo.json").read_text())
    recipe = octavo.Recipe.from_json(manifest["recipe"])
    assert recipe.to_json() == manifest["recipe"]
    assert read_scheme(RELEASE / name) == recipe
    if name in EXPECTED:
        assert recipe.digest == EXPECTED[name]["best"]


@pytest.fixture(params=sorted(FRAMEWORKS))
def history(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    return request.param, restored(request.param, tmp_path)


def restored(name: str, folder: Path) -> Path:
    """Write a history's text as the database that it was."""
    path = folder / "history.db"
    with sqlite3.connect(path) as connection:
        connection.executescript((RELEASE / f"{name}.sql").read_text())
    connection.close()
    return path


def test_histories_are_read(history: tuple[str, Path]) -> None:
    name, path = history
    _, trials, _ = read_history(str(path))
    searched = [t for t in trials if t.number]
    assert [t.recipe.digest for t in searched] == EXPECTED[name]["trials"]
    assert [dict(t.metrics) for t in searched] == EXPECTED[name]["metrics"]


def test_a_history_is_resumed_and_finished_trials_are_not_run_again(
    tmp_path: Path,
) -> None:
    """The run of 0.1.0 had four trials; a run of six over its store runs two, and asks what 0.1.0
    would have asked."""
    pytest.importorskip("onnx")
    path = restored("numpy", tmp_path)
    forget_the_machine(path)
    truth = float_network(ROWS).argmax(1)
    evaluated = []

    def score(model: Any) -> float:
        evaluated.append(model)
        return float((np.asarray(model(ROWS)).argmax(1) == truth).mean())

    result = octavo.autotune(
        RELEASE / "mlp.onnx",
        score,
        calibration=[ROWS],
        backends=["numpy"],
        strategy="basic",
        max_trials=6,
        minimise="size",
        tolerance=0.05,
        seed=0,
        storage=path,
    )
    assert [t.recipe.digest for t in result.trials] == EXPECTED["numpy"]["six"]
    # The float model, two new trials, the winner after it was saved. 0.1.0 also scored the float
    # model on the file's own runtime.
    assert len(evaluated) == 4


def forget_the_machine(path: Path) -> None:
    """Leave out of the stored fingerprint what is of another processor and other packages; the rest
    must still agree."""
    with sqlite3.connect(path) as connection:
        rows = connection.execute(
            "select study_user_attribute_id, value_json from study_user_attributes"
            " where key = 'octavo:fingerprint'"
        ).fetchall()
        for row, text in rows:
            stored = json.loads(text)
            kept = {k: v for k, v in stored.items() if k not in ("machine", "versions")}
            connection.execute(
                "update study_user_attributes set value_json = ? where study_user_attribute_id = ?",
                (json.dumps(kept), row),
            )
    connection.close()
