"""Where quantizing gains nothing, the float model is the result: it is saved, loaded, reported and
shown as any other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import octavo
from octavo.adapters.numpy.graph import Builder
from octavo.cli import app
from octavo.core.report import report_data
from octavo.core.results.result import read_manifest

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(64, 8)).astype(np.float32)
W = RANDOM.normal(size=(8, 4)).astype(np.float32)
TRUTH = (X @ W).argmax(1)


def torch_model(folder: Path) -> nn.Module:
    model = nn.Sequential(nn.Linear(8, 4, bias=False)).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.from_numpy(W.T.copy()))
    return model


def onnx_model(folder: Path) -> Path:
    from onnx import TensorProto, helper, numpy_helper, save

    values = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", w])
        for n, w in (("x", 8), ("y", 4))
    ]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], "layer")],
        "g",
        values[:1],
        values[1:],
        [numpy_helper.from_array(W, "w")],
    )
    save(
        helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9
        ),
        folder / "tiny.onnx",
    )
    return folder / "tiny.onnx"


def numpy_model(folder: Path) -> Any:
    b = Builder()
    return b.graph(
        b.Gemm(b.input("x", (None, 8)), W, np.zeros(4, np.float32), name="layer")
    )


def accuracy(model: Any) -> float:
    return float((np.asarray(model(X)).argmax(1) == TRUTH).mean())


def score_torch(model: Any) -> float:
    return float(
        (model(torch.from_numpy(X)).detach().numpy().argmax(1) == TRUTH).mean()
    )


CASES = {
    "torch": (torch_model, score_torch),
    "onnx": (onnx_model, accuracy),
    "numpy": (numpy_model, accuracy),
}


@pytest.fixture(params=CASES)
def case(
    request: pytest.FixtureRequest, tmp_path: Path
) -> tuple[Any, Callable[[Any], float]]:
    make, score = CASES[request.param]
    return make(tmp_path), score


def test_thirty_two_weights_are_kept_in_float(
    case: tuple[Any, Callable[[Any], float]], tmp_path: Path
) -> None:
    """Codes, scales and names of a layer this small take more than its numbers: every recipe
    passes, and none is smaller."""
    model, score = case
    result = octavo.autotune(
        model,
        score,
        [X[:32]],
        minimise="size",
        tolerance=0.5,
        max_trials=4,
        storage=tmp_path / "h.db",
        metric="accuracy",
    )
    assert any(t.passed for t in result.trials)
    assert all(t.objectives["size"].ratio >= 0.999 for t in result.trials if t.passed)
    assert result.goal_met
    assert result.best == result.baseline
    assert "the float model is kept" in result.reason
    assert "of float's size" in result.reason
    assert (result.coverage.quantized, result.coverage.kept) == (0, 32)
    assert score(result.model) == 1.0

    folder = result.save(tmp_path / "out")
    again = octavo.load(folder, model if isinstance(model, nn.Module) else None)
    assert score(again) == 1.0
    data = report_data(read_manifest(folder))
    assert data.kept_float
    assert data.verdict == "the float model is kept"
    assert data.coverage.kept == 32
    pytest.importorskip("jinja2")
    page = result.report(tmp_path / "report.html").read_text()
    assert "The float model is kept" in page
    assert "Weights that stay float" in page


def test_the_command_line_says_so_and_is_done(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=X, label=TRUTH)
    arguments = [
        "tune",
        str(onnx_model(tmp_path)),
        "--data",
        str(tmp_path / "data.npz"),
        "--labels",
        "label",
        "--minimise",
        "size",
    ]
    limits = [
        "--tolerance",
        "0.5",
        "--max-trials",
        "3",
        "--calibration-size",
        "16",
        "--no-report",
        "-o",
        str(tmp_path / "out"),
    ]
    done = CliRunner().invoke(app, [*arguments, *limits])
    assert done.exit_code == 0, done.output
    assert "the float model is kept" in done.output
    assert "32 of 32 weights (100 %) stay float" in done.output


def test_a_budget_that_float_overruns_is_still_served(tmp_path: Path) -> None:
    """Half the size was asked for: a recipe that has it wins, whether or not it is faster than the
    float model."""
    big = RANDOM.normal(size=(256, 256)).astype(np.float32)
    b = Builder()
    graph = b.graph(
        b.Gemm(b.input("x", (None, 256)), big, np.zeros(256, np.float32), name="layer")
    )
    x = RANDOM.normal(size=(16, 256)).astype(np.float32)
    truth = (x @ big).argmax(1)
    result = octavo.autotune(
        graph,
        lambda m: float((m(x).argmax(1) == truth).mean()),
        [x],
        minimise="latency",
        budgets={"size": 0.5},
        tolerance=0.5,
        max_trials=4,
        storage=tmp_path / "h.db",
        metric="accuracy",
    )
    assert result.goal_met
    assert result.best.number > 0
    assert result.best.objectives["size"].ratio <= 0.5
