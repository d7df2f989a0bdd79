"""Loaders of any form for graphs, whose inputs are single arrays: on ONNX Runtime and on NumPy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import octavo
from octavo.core.errors import DataError

RANDOM = np.random.default_rng(0)
W = RANDOM.standard_normal((8, 4)).astype(np.float32)


def rand(*shape: int) -> np.ndarray:
    return RANDOM.uniform(-1, 1, shape).astype(np.float32)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """x (batch, any, 8) times a matrix, times a mask (batch, any, 1)."""
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["h"]),
            helper.make_node("Mul", ["h", "mask"], ["y"]),
        ],
        "g",
        [
            helper.make_tensor_value_info(
                "x", TensorProto.FLOAT, ["batch", "length", 8]
            ),
            helper.make_tensor_value_info(
                "mask", TensorProto.FLOAT, ["batch", "length", 1]
            ),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "length", 4])],
        [numpy_helper.from_array(W, "w")],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    onnx.save(model, tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def sample(length: int) -> tuple[np.ndarray, np.ndarray]:
    return rand(3, length, 8), np.ones((3, length, 1), np.float32)


LOADERS: dict[str, Any] = {
    "labels": lambda n: (*sample(n), np.arange(3)),
    "pairs": lambda n: (sample(n), np.arange(3)),
    "mapping": lambda n: {
        **dict(zip(("x", "mask"), sample(n), strict=True)),
        "label": np.arange(3),
        "name": "a",
    },
    "mapping and labels": lambda n: (
        dict(zip(("x", "mask"), sample(n), strict=True)),
        np.arange(3),
    ),
    "call": lambda n: octavo.Call(sample(n)[0], mask=sample(n)[1]),
}


@pytest.mark.parametrize("backend", ["onnx", "numpy"])
@pytest.mark.parametrize("name", LOADERS)
def test_what_a_graph_cannot_take_is_dropped_and_said(
    name: str, backend: str, path: Path
) -> None:
    quantized = octavo.quantize_model(
        path, "int8-static", [LOADERS[name](n) for n in (4, 7, 2)], backend=backend
    )
    assert sum("left out" in note for note in quantized.notes) == (name != "call")
    x, mask = sample(5)
    mask[1] = 0
    for batch in ((x, mask), {"x": x, "mask": mask}, octavo.Call(x, mask=mask)):
        (y,) = quantized.candidate.run(batch)
        assert np.abs(y - (x @ W) * mask).max() < 0.1


@pytest.mark.parametrize("backend", ["onnx", "numpy"])
def test_batches_pick_the_inputs(backend: str, path: Path) -> None:
    loader = [{"picture": sample(n), "label": 0} for n in (4, 7)]
    picked = octavo.Batches(loader, inputs=lambda batch: batch["picture"])
    quantized = octavo.quantize_model(path, "int8-static", picked, backend=backend)
    x, mask = sample(5)
    assert np.abs(quantized.candidate.run((x, mask))[0] - x @ W).max() < 0.1
    with pytest.raises(
        DataError, match=r"keys \['picture', 'label'\].*octavo\.Batches"
    ):
        octavo.quantize_model(path, "int8-static", loader, backend=backend)


@pytest.mark.parametrize("backend", ["onnx", "numpy"])
def test_a_dimension_that_the_file_fixes_is_checked(backend: str, path: Path) -> None:
    with pytest.raises(
        DataError,
        match=r"batch 1, input 'x': expected shape \(any, any, 8\), got \(3, 4, 9\)",
    ):
        octavo.quantize_model(
            path,
            "int8-static",
            [sample(4), (rand(3, 4, 9), rand(3, 4, 1))],
            backend=backend,
        )
