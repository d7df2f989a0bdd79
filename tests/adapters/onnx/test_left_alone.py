"""What quantization leaves as it is: fused operators of com.microsoft, bodies of Loop and Scan, recurrent layers."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import octavo
from octavo.adapters.onnx import OnnxConfig
from octavo.adapters.onnx.adapter import OnnxAdapter
from octavo.adapters.onnx.runtime import compile_model
from octavo.adapters.onnx.source import read
from tests.adapters.onnx import models

HIDDEN = 16


def fused() -> onnx.ModelProto:
    """Attention, SkipLayerNormalization and FusedMatMul between two plain products."""
    h = HIDDEN
    t = models.weights(w1=(h, h), wa=(h, 3 * h), ba=(3 * h,), s=(h,), wf=(h, h), w2=(h, h)) | {"g": np.ones(h, np.float32)}
    ms = {"domain": "com.microsoft"}
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["a"], "first"),
        helper.make_node("Attention", ["a", "wa", "ba"], ["m"], "attention", num_heads=2, **ms),
        helper.make_node("SkipLayerNormalization", ["a", "m", "g", "s"], ["n"], "skip", **ms),
        helper.make_node("FusedMatMul", ["n", "wf"], ["f"], "fused", alpha=0.5, transB=1, **ms),
        helper.make_node("MatMul", ["f", "w2"], ["y"], "last"),
    ]
    proto = models.build(nodes, t, {"x": ["n", 5, h]}, {"y": ["n", 5, h]})
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return proto


def test_fused_operators_pass_through_intact() -> None:
    proto = fused()
    x = np.random.default_rng(0).normal(size=(2, 5, HIDDEN)).astype(np.float32)
    result = octavo.quantize_model(proto, "int8-dynamic", calibration=[(x,)])
    before = {n.name: n for n in proto.graph.node if n.domain}
    after = {n.name: n for n in result.model.model.graph.node if n.name in before}
    assert after.keys() == before.keys()
    for name, node in before.items():
        assert (after[name].op_type, after[name].domain) == (node.op_type, node.domain)
        assert sorted(a.SerializeToString() for a in after[name].attribute) == sorted(a.SerializeToString() for a in node.attribute)
        assert list(after[name].input[1:]) == list(node.input[1:])
    optimized = [n.op_type for n in compile_model(result.model.graph, OnnxConfig(), inspect=True).nodes]
    assert {"Attention", "SkipLayerNormalization", "FusedMatMul", "DynamicQuantizeMatMul"} <= set(optimized)
    (expected,) = compile_model(read(proto), OnnxConfig()).session.run(None, {"x": x})
    assert np.linalg.norm(result.model(x) - expected) < 0.05 * np.linalg.norm(expected)


def _body(kind: str) -> onnx.GraphProto:
    """state' = state @ w (of the outer graph); the state is also what is put out."""
    info = helper.make_tensor_value_info
    inputs, outputs = [info("state", TensorProto.FLOAT, [2, 4])], [info("next", TensorProto.FLOAT, [2, 4])]
    nodes = [helper.make_node("MatMul", ["state", "w"], ["product"], "inner")]
    if kind == "Loop":
        inputs = [info("i", TensorProto.INT64, []), info("go", TensorProto.BOOL, []), *inputs]
        outputs = [info("still", TensorProto.BOOL, []), *outputs]
        nodes += [helper.make_node("Identity", ["go"], ["still"], "again"), helper.make_node("Tanh", ["product"], ["next"], "tanh")]
    else:
        inputs.append(info("row", TensorProto.FLOAT, [2, 4]))
        outputs.append(info("seen", TensorProto.FLOAT, [2, 4]))
        nodes += [helper.make_node("Add", ["product", "row"], ["next"], "sum"), helper.make_node("Tanh", ["next"], ["seen"], "tanh")]
    return helper.make_graph(nodes, "body", inputs, outputs)


def looping(kind: str) -> onnx.ModelProto:
    """A product, then a Loop or Scan whose body reads the same weight, then a product."""
    t = models.weights(w=(4, 4), w2=(4, 6))
    nodes = [helper.make_node("MatMul", ["x", "w"], ["a"], "first")]
    if kind == "Loop":
        t |= {"times": np.array(3), "go_on": np.array(True)}
        nodes.append(helper.make_node("Loop", ["times", "go_on", "a"], ["b"], "loop", body=_body(kind)))
    else:
        t |= {"rows": np.random.default_rng(1).normal(size=(3, 2, 4)).astype(np.float32)}
        nodes.append(helper.make_node("Scan", ["a", "rows"], ["b", "all"], "loop", body=_body(kind), num_scan_inputs=1))
    nodes.append(helper.make_node("MatMul", ["b", "w2"], ["y"], "last"))
    return models.build(nodes, t, {"x": [2, 4]}, {"y": [2, 6]})


@pytest.mark.parametrize("kind", ["Loop", "Scan"])
def test_bodies_stay_float_and_that_is_said(kind: str) -> None:
    proto = looping(kind)
    x = np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)
    view = OnnxAdapter(OnnxConfig()).open(proto).describe()
    assert [n for n in view.notes if "loop" in n and kind in n and "stays float" in n]
    assert "inner" not in view.by_name
    assert view.by_name["loop"].out_of_reach == "its body stays float"
    result = octavo.quantize_model(proto, "int8-dynamic", calibration=[(x,)])
    made = {n.name: n for n in result.model.model.graph.node}
    assert result.ledger["loop"].reason == "its body stays float"
    (body,) = [a.g for a in made["loop"].attribute if a.name == "body"]
    assert [n.op_type for n in body.node] == [n.op_type for n in _body(kind).node]
    kept = {i.name: i for i in result.model.model.graph.initializer}
    np.testing.assert_array_equal(numpy_helper.to_array(kept["w"]), models.weights(w=(4, 4), w2=(4, 6))["w"])
    (expected,) = ReferenceEvaluator(proto).run(None, {"x": x})
    assert np.linalg.norm(result.model(x) - expected) < 0.05 * np.linalg.norm(expected)


def test_a_gru_says_why_it_stays_float() -> None:
    t = models.weights(w=(1, 24, 4), r=(1, 24, 8))
    nodes = [helper.make_node("GRU", ["x", "w", "r"], ["y"], "cell", hidden_size=8)]
    session = OnnxAdapter(OnnxConfig()).open(models.build(nodes, t, {"x": ["s", 2, 4]}, {"y": ["s", 1, 2, 8]}))
    assert "no GRU kernel" in session.describe().by_name["cell"].out_of_reach
    assert "no GRU kernel" in session.reference().ledger["cell"].reason
