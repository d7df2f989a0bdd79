"""Optional results and inputs that a graph leaves out: the one is not read in the place of the
other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
helper = pytest.importorskip("onnx.helper")

import octavo  # noqa: E402

ROWS = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32) - 2


def graph() -> onnx.ModelProto:
    """A norm whose mean is left out, then a clip without a lower bound."""
    ones = onnx.numpy_helper.from_array(np.ones(8, np.float32), "gain")
    high = onnx.numpy_helper.from_array(np.float32(0.5), "high")
    nodes = [
        helper.make_node("LayerNormalization", ["x", "gain"], ["y", "", "inv"], "norm"),
        helper.make_node("Clip", ["y", "", "high"], ["z"], "clip"),
        helper.make_node("Mul", ["z", "inv"], ["out"], "scale"),
    ]
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 8])
    out = helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, ["n", 8])
    made = helper.make_graph(nodes, "left_out", [x], [out], [ones, high])
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    return model


def expected() -> np.ndarray:
    centred = ROWS - ROWS.mean(-1, keepdims=True)
    inverse = 1 / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    return np.minimum(centred * inverse, 0.5) * inverse


def test_a_result_that_is_left_out_is_no_later_input(tmp_path: Path) -> None:
    path = tmp_path / "left_out.onnx"
    onnx.save(graph(), path)
    kept = octavo.quantize_model(
        path, octavo.Recipe({}, backend="numpy"), backend="numpy"
    )
    np.testing.assert_allclose(kept.model(ROWS), expected(), rtol=1e-5)
