"""Time and bytes of each op of an ONNX model, by ONNX Runtime's profiler."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from octavo.adapters.onnx import OnnxConfig
from octavo.adapters.onnx.session import OnnxSession
from octavo.core.values.layers import REST
from octavo.core.values.recipe import Recipe
from tests.adapters.onnx.models import build, convolutional, weights
from tests.helpers import as_opened, preset_candidate

RNG = np.random.default_rng(0)


def opened(model: onnx.ModelProto, **settings: Any) -> Any:
    return as_opened(OnnxSession(ir.from_proto(model), OnnxConfig(**settings)))


def image() -> dict[str, np.ndarray]:
    return {"x": RNG.normal(size=(2, 3, 12, 12)).astype(np.float32)}


def raw_bytes(path: Path) -> int:
    tensors = onnx.load(path).graph.initializer
    return sum(ir.from_proto(tensor).nbytes for tensor in tensors)


@pytest.mark.parametrize(
    ("preset", "form"),
    [
        ("int8-static", "qdq"),
        ("int8-static", "qoperator"),
        ("int8-dynamic", "qdq"),
        ("int4-weight-only", "qdq"),
    ],
)
def test_every_byte_of_the_file_is_some_ops(
    preset: str, form: str, tmp_path: Path
) -> None:
    model = opened(convolutional(), form=form)
    candidate = preset_candidate(model, preset, [image()])
    found = candidate.bytes_by_op()
    assert set(found) <= {*(op.name for op in model.view.ops), REST}
    candidate.save(tmp_path)
    assert sum(found.values()) == raw_bytes(tmp_path / "model.onnx")
    travelled = pickle.loads(pickle.dumps(candidate))
    assert travelled.bytes_by_op() == found


def test_int8_convolutions_take_a_byte_a_weight() -> None:
    model = opened(convolutional())
    found = preset_candidate(model, "int8-static", [image()]).bytes_by_op()
    conv2 = model.view.by_name["conv2"]
    channels = conv2.weight.shape[0]
    codes = conv2.weight.size
    # Codes; a scale of four bytes and a zero point of one for each channel of the weight; the bias
    # and its scale in four bytes each, with a zero point.
    assert codes + 9 * channels < found["conv2"] < codes + 20 * channels


def test_times_of_fused_and_blocked_nodes_are_their_ops() -> None:
    model = opened(convolutional())
    products = {op.name for op in model.view.ops if op.type in ("conv", "linear")}
    # ONNX Runtime computes float convolutions in blocks of channels, under names of its own.
    in_float = model.session.apply(Recipe(backend="onnx"), {})
    quantized = preset_candidate(model, "int8-static", [image()])
    for candidate in (in_float, quantized):
        found = candidate.profile(image(), 0.05)
        assert products <= set(found)
        assert set(found) <= {*(op.name for op in model.view.ops), REST}
        assert found[REST] < sum(found.values())


def test_a_slow_op_comes_out_on_top() -> None:
    tensors = weights(a=(16, 16), b=(16, 4096), c=(4096, 16))
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["m"], "small"),
        helper.make_node("MatMul", ["m", "b"], ["w"], "up"),
        helper.make_node("MatMul", ["w", "c"], ["y"], "down"),
    ]
    model = opened(build(nodes, tensors, {"x": ["n", 16]}, {"y": ["n", 16]}))
    batch = {"x": RNG.normal(size=(256, 16)).astype(np.float32)}
    for preset in ("int8-static", "int8-dynamic", "int8-weight-only"):
        candidate = preset_candidate(model, preset, [batch])
        found = candidate.profile(batch, 0.1)
        assert found["small"] < min(found["up"], found["down"]), preset


def test_what_runs_in_a_body_counts_once() -> None:
    tensors = weights(w=(64, 512), v=(512, 64))
    inner = [
        helper.make_node("MatMul", ["x", "w"], ["wide"], "up"),
        helper.make_node("MatMul", ["wide", "v"], ["inside"], "down"),
    ]
    ends = [helper.make_tensor_value_info("inside", TensorProto.FLOAT, ["n", 64])]
    other = [helper.make_tensor_value_info("same", TensorProto.FLOAT, ["n", 64])]
    passed = [helper.make_node("Identity", ["x"], ["same"], "pass")]
    node = helper.make_node(
        "If",
        ["on"],
        ["y"],
        "choice",
        then_branch=helper.make_graph(inner, "then", [], ends),
        else_branch=helper.make_graph(passed, "else", [], other),
    )
    proto = build([node], tensors, {"x": ["n", 64]}, {"y": ["n", 64]})
    proto.graph.initializer.append(numpy_helper.from_array(np.array(True), "flag"))
    proto.graph.node.insert(0, helper.make_node("Identity", ["flag"], ["on"], "gate"))
    model = opened(proto)
    batch = {"x": RNG.normal(size=(512, 64)).astype(np.float32)}
    candidate = model.session.apply(Recipe(backend="onnx"), {})
    found = candidate.profile(batch, 0.05)
    in_body = sum(time for op, time in found.items() if op.endswith(("up", "down")))
    assert in_body > 0
    # Twice counted, the rest could not be what is left of the call.
    assert found.get("choice", 0.0) < in_body


def test_a_model_from_a_file_has_no_figures(tmp_path: Path) -> None:
    reference = opened(convolutional()).session.reference()
    assert reference.profile(image(), 0.01) == {}
    assert reference.bytes_by_op() == {}
