"""Ops that only move values: shown as carrying codes where ONNX Runtime runs them on integers, and
as float where it does not."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import octavo
from octavo.core.report.model import OpLine

RANDOM = np.random.default_rng(0)
X = np.abs(RANDOM.normal(size=(4, 8, 8, 8))).astype(np.float32)


def model() -> onnx.ModelProto:
    """Return conv -> relu -> max pool -> conv -> flatten -> matmul."""

    def held(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array(
            RANDOM.normal(size=shape).astype(np.float32), name
        )

    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], "first", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node(
            "MaxPool", ["b"], ["c"], "pool", kernel_shape=[2, 2], strides=[2, 2]
        ),
        helper.make_node("Conv", ["c", "v"], ["d"], "second", pads=[1, 1, 1, 1]),
        helper.make_node("Flatten", ["d"], ["e"], "flat"),
        helper.make_node("MatMul", ["e", "m"], ["y"], "head"),
    ]
    values = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 8, 8, 8]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 5]),
    ]
    tensors = [held("w", 16, 8, 3, 3), held("v", 16, 16, 3, 3), held("m", 256, 5)]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], tensors)
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9
    )


def test_a_pool_between_integer_convolutions_carries_codes() -> None:
    quantized = octavo.quantize_model(model(), "int8-static", [(X,)])
    pool = quantized.ledger["pool"]
    assert pool.carries_codes
    assert pool.applied.is_float
    line = OpLine("pool", "max_pool", 0, pool)
    assert not line.is_float
    assert line.applied == "carries codes"
    # The runtime says so itself: the pool's input has an integer type in the graph that it
    # executes.
    assert _input_type(quantized, "MaxPool") in (TensorProto.UINT8, TensorProto.INT8)


def test_among_float_ops_it_is_float_and_says_why() -> None:
    rules = {
        "rules": [
            {"types": "conv", "keep": "float"},
            {"types": "linear", "mode": "dynamic"},
        ]
    }
    ledger = octavo.quantize_model(model(), rules, [(X,)]).ledger
    for name in ("pool", "flat"):
        assert not ledger[name].carries_codes
        assert OpLine(name, "max_pool", 0, ledger[name]).is_float
        assert "float" in ledger[name].reason


def test_it_survives_the_disk_and_the_report(tmp_path) -> None:  # type: ignore[no-untyped-def]
    result = octavo.autotune(
        model(),
        lambda m: 1.0,
        [(X,)],
        minimise="size",
        strategy="basic",
        max_trials=1,
        storage=tmp_path / "h.db",
        metric="accuracy",
        rules=[{"types": ["conv", "linear"], "mode": "static"}],
    )
    assert result.best.number
    folder = result.save(tmp_path / "out")
    (file,) = (folder / "model").glob("*.onnx")
    from octavo.core.results.result import load_candidate, read_manifest

    assert load_candidate(file).ledger["pool"].carries_codes
    from octavo.core.report import report_data

    data = report_data(read_manifest(folder))
    assert "pool" not in [
        name for _, _, names, _ in data.left_in_float for name in names
    ]
    assert any(scheme == "carries codes" for scheme, *_ in data.schemes)
    pytest.importorskip("jinja2")
    assert "moves integer codes" in result.report(tmp_path / "r.html").read_text()


def _input_type(quantized: octavo.Quantized, operator: str) -> int:
    """Return the type of an operator's input in the graph that ONNX Runtime executes."""
    import tempfile
    from pathlib import Path

    import onnxruntime as ort

    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "optimized.onnx")
        options = ort.SessionOptions()
        options.optimized_model_filepath = path
        options.graph_optimization_level = (
            ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        )
        ort.InferenceSession(
            quantized.model.model.SerializeToString(),
            options,
            providers=["CPUExecutionProvider"],
        )
        seen = onnx.shape_inference.infer_shapes(onnx.load(path))
    (node,) = (n for n in seen.graph.node if operator in n.op_type)
    maker = next(n for n in seen.graph.node if node.input[0] in n.output)
    types = {t.name: t.data_type for t in seen.graph.initializer}
    return types[
        next(
            i
            for i in reversed(maker.input)
            if types.get(i) in (TensorProto.UINT8, TensorProto.INT8)
        )
    ]
