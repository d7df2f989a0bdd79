"""What a run says of each op of its result: sensitivity, error, time and bytes, layer by layer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import octavo
from octavo.adapters.numpy.candidate import NumpyCandidate
from octavo.adapters.numpy.graph import Builder
from octavo.core.values.layers import REST, Layer
from tests import tiny

WIDE = 512


class Net(nn.Module):
    """A narrow layer, a wide one, a narrow one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(8, WIDE)
        self.wide = nn.Linear(WIDE, WIDE)
        self.last = nn.Linear(WIDE, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.wide(torch.relu(self.first(x)))))


def arrays(seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(16, 8)).astype(np.float32) for _ in range(2)]


def graph(net: Net) -> Any:
    b = Builder()
    x = b.input("x", (None, 8))
    for name in ("first", "wide", "last"):
        layer = getattr(net, name)
        weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
        x = b.Gemm(x, weight, bias, name=name, transB=1)
        if name != "last":
            x = b.Relu(x)
    return b.graph(x)


def message(net: Net) -> Any:
    from onnx import helper

    from tests.adapters.onnx.models import build

    tensors, nodes, x = {}, [], "x"
    for name in ("first", "wide", "last"):
        layer = getattr(net, name)
        tensors[f"{name}_w"] = layer.weight.detach().numpy()
        tensors[f"{name}_b"] = layer.bias.detach().numpy()
        given = [x, f"{name}_w", f"{name}_b"]
        out = "y" if name == "last" else f"{name}_out"
        nodes.append(helper.make_node("Gemm", given, [out], name, transB=1))
        x = out
        if name != "last":
            x = f"{name}_relu"
            nodes.append(helper.make_node("Relu", [out], [x], x))
    return build(nodes, tensors, {"x": ["n", 8]}, {"y": ["n", 4]})


def model_of(backend: str) -> Any:
    net = Net().eval()
    return {"torch": lambda: net, "numpy": lambda: graph(net)}.get(
        backend, lambda: message(net)
    )()


def tuned(backend: str, folder: Path, score: Any = None, **given: Any) -> octavo.Result:
    settings = {"strategy": "basic", "max_trials": 1, "minimise": ["size", "latency"]}
    return octavo.autotune(
        model_of(backend),
        score or (lambda model: 1.0),
        arrays(),
        storage=folder / "history.db",
        confirm=False,
        **(settings | given),
    )


@cache
def finished(backend: str) -> octavo.Result:
    """Return a run's result, which several tests look at."""
    with TemporaryDirectory() as folder:
        return tuned(backend, Path(folder))


def known(layers: Mapping[str, Layer], figure: str) -> dict[str, Any]:
    found = {op: getattr(layer, figure) for op, layer in layers.items() if op != REST}
    return {op: value for op, value in found.items() if value is not None}


BACKENDS = pytest.mark.parametrize("backend", ["torch", "numpy", "onnx"])


@BACKENDS
def test_every_figure_of_every_layer(backend: str, tmp_path: Path) -> None:
    result = finished(backend)
    assert len(result.best.recipe) >= 3
    ops = {op.name for op in result.views[backend].ops}
    assert set(result.layers) == {*ops, REST}
    products = {"first", "wide", "last"}
    for figure in ("sensitivity", "error", "ms", "float_ms", "bytes", "float_bytes"):
        assert products <= set(known(result.layers, figure)), figure
    for op in products:
        layer = result.layers[op]
        assert layer.kind == "weight_error"
        assert layer.scheme == str(result.best.recipe[op])
        assert 0 < layer.error < 0.01
        assert layer.bytes < layer.float_bytes
    # What is wide on purpose comes out on top.
    for figure in ("ms", "float_ms", "bytes", "float_bytes"):
        found = known(result.layers, figure)
        assert max(found, key=found.__getitem__) == "wide", figure
    # It is in the saved record, and read from there.
    folder = result.save(tmp_path / "saved")
    raw = json.loads((folder / "octavo.json").read_text())["layers"]
    assert {op: Layer.from_json(row) for op, row in raw.items()} == result.layers


@BACKENDS
def test_bytes_are_those_of_the_files(backend: str) -> None:
    result = finished(backend)
    for figure, trial in (("bytes", result.best), ("float_bytes", result.baseline)):
        told = sum(known(result.layers, figure).values())
        told += getattr(result.layers[REST], figure) or 0
        files = trial.objectives["size"].value
        # What is missing is structure: names, the recipe, the ledger.
        assert 0 < files - told < 8_000, figure


@BACKENDS
def test_milliseconds_add_up_to_a_call(backend: str) -> None:
    result = finished(backend)
    measured = result.best.objectives["latency"].value
    total = sum(layer.ms or 0 for layer in result.layers.values())
    # Machines that tests run on are busy with other things too.
    assert measured / 5 < total < measured * 5


@BACKENDS
def test_figures_are_equal_in_two_runs(backend: str, tmp_path: Path) -> None:
    first = finished(backend)
    second = tuned(backend, tmp_path)
    for figure in ("sensitivity", "error", "bytes", "float_bytes"):
        assert known(first.layers, figure) == known(second.layers, figure)


def test_the_searchs_own_sensitivities_reach_the_result(tmp_path: Path) -> None:
    result = tuned("torch", tmp_path, strategy="budget", budgets={"size": 0.5})
    losses = known(result.layers, "sensitivity")
    assert set(losses) == {"first", "wide", "last"}
    # Both are in the unit of the distance: drawn for weights, measured for rounded inputs.
    kinds = {result.layers[op].kind for op in losses}
    assert kinds <= {"gradient", "output_distance"}


def test_a_float_model_that_is_kept_has_figures(tmp_path: Path) -> None:
    b = Builder()
    ones = np.ones((8, 4), np.float32)
    model = b.graph(b.Gemm(b.input("x", (None, 8)), ones, name="layer"))
    result = octavo.autotune(
        model,
        lambda model: 1.0,
        arrays(),
        minimise="size",
        max_trials=2,
        storage=tmp_path / "history.db",
    )
    # 32 weights: quantized, the file is larger.
    assert result.best.number == 0
    layer = result.layers["layer"]
    assert layer.ms == layer.float_ms
    assert layer.ms is not None
    assert layer.bytes == layer.float_bytes == 128
    assert layer.error is None


def test_a_backend_without_the_primitives_has_the_other_figures(tmp_path: Path) -> None:
    result = octavo.autotune(
        tiny.chain(),
        tiny.accuracy,
        tiny.calibration(),
        strategy="basic",
        storage=tmp_path / "history.db",
        minimise="size",
        host=tiny.host(),
    )
    assert len(result.best.recipe) == 4
    assert len(known(result.layers, "error")) == 4
    assert len(known(result.layers, "sensitivity")) == 4
    assert not known(result.layers, "ms")
    assert not known(result.layers, "bytes")
    assert not any("by layer" in remark for remark in result.remarks)


def test_what_fails_costs_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Mapping[str, float]:
        raise RuntimeError("the clock fell down")

    monkeypatch.setattr(NumpyCandidate, "profile", broken)
    result = tuned("numpy", tmp_path)
    assert result.goal_met
    assert any("the clock fell down" in remark for remark in result.remarks)
    assert not known(result.layers, "ms")
    assert known(result.layers, "bytes")


def test_an_interruption_keeps_the_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> Mapping[str, int]:
        raise KeyboardInterrupt

    monkeypatch.setattr(NumpyCandidate, "bytes_by_op", interrupted)
    result = tuned("numpy", tmp_path)
    assert result.goal_met
    assert not known(result.layers, "ms")
