"""What quantization leaves as it is: fused operators of com.microsoft, recurrent layers without a
kernel."""

import numpy as np
import onnx
from onnx import helper

import octavo
from octavo.adapters.onnx import OnnxConfig
from octavo.adapters.onnx.prepare.source import read
from octavo.adapters.onnx.run.compiling import compile_model
from tests.adapters.onnx import models

HIDDEN = 16


def fused() -> onnx.ModelProto:
    """Attention, SkipLayerNormalization and FusedMatMul between two plain products."""
    h = HIDDEN
    t = models.weights(
        w1=(h, h), wa=(h, 3 * h), ba=(3 * h,), s=(h,), wf=(h, h), w2=(h, h)
    ) | {"g": np.ones(h, np.float32)}
    ms = {"domain": "com.microsoft"}
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["a"], "first"),
        helper.make_node(
            "Attention", ["a", "wa", "ba"], ["m"], "attention", num_heads=2, **ms
        ),
        helper.make_node(
            "SkipLayerNormalization", ["a", "m", "g", "s"], ["n"], "skip", **ms
        ),
        helper.make_node(
            "FusedMatMul", ["n", "wf"], ["f"], "fused", alpha=0.5, transB=1, **ms
        ),
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
        assert sorted(a.SerializeToString() for a in after[name].attribute) == sorted(
            a.SerializeToString() for a in node.attribute
        )
        assert list(after[name].input[1:]) == list(node.input[1:])
    optimized = [
        n.op_type
        for n in compile_model(result.model.graph, OnnxConfig(), inspect=True).nodes
    ]
    assert {
        "Attention",
        "SkipLayerNormalization",
        "FusedMatMul",
        "DynamicQuantizeMatMul",
    } <= set(optimized)
    (expected,) = compile_model(read(proto), OnnxConfig()).session.run(None, {"x": x})
    assert np.linalg.norm(result.model(x) - expected) < 0.05 * np.linalg.norm(expected)
