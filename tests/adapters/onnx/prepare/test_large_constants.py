"""Large constants of any type and place: 4-bit initializers run and travel, and the fingerprint
sees every number."""

import pickle
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

import octavo
from octavo.adapters.onnx import OnnxConfig
from octavo.adapters.onnx.adapter import OnnxAdapter
from tests.adapters.onnx.observe.test_bodies import cosine, looping, spared

node = helper.make_node
K = 256


@pytest.mark.parametrize("kind", [TensorProto.INT4, TensorProto.UINT4])
def test_four_bit_initializers_of_many_bytes_run(kind: int, tmp_path: Path) -> None:
    """32 KiB of 4-bit codes, decoded by the model itself, before a float product."""
    low, high = (-8, 8) if kind == TensorProto.INT4 else (0, 16)
    codes = np.random.default_rng(0).integers(low, high, (K, K))
    tensors = [
        helper.make_tensor("c", kind, [K, K], codes.ravel().tolist()),
        numpy_helper.from_array(np.float32(0.02), "s"),
        numpy_helper.from_array(spared(K, 8), "v"),
    ]
    nodes = [
        node("DequantizeLinear", ["c", "s"], ["w"]),
        node("MatMul", ["x", "w"], ["a"], "done"),
        node("MatMul", ["a", "v"], ["y"], "open"),
    ]
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [info("x", TensorProto.FLOAT, ["n", K])],
        [info("y", TensorProto.FLOAT, ["n", 8])],
        tensors,
    )
    proto = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10
    )
    x = np.random.default_rng(1).normal(size=(4, K)).astype(np.float32)
    (expected,) = ort.InferenceSession(proto.SerializeToString()).run(None, {"x": x})
    result = octavo.quantize_model(proto, "int8-dynamic", calibration=[(x,)])
    assert any(
        "in int4 by QDQ" in note or "in uint4 by QDQ" in note for note in result.notes
    )
    assert cosine(expected, result.model(x)) > 0.99
    result.save(tmp_path / "saved")
    again = ort.InferenceSession(str(next((tmp_path / "saved").rglob("model.onnx"))))
    np.testing.assert_allclose(
        again.run(None, {"x": x})[0], result.model(x), rtol=1e-5, atol=1e-5
    )
    np.testing.assert_allclose(
        pickle.loads(pickle.dumps(result.model))(x),
        result.model(x),
        rtol=1e-5,
        atol=1e-5,
    )


def _fingerprint(proto: onnx.ModelProto) -> str:
    return OnnxAdapter(OnnxConfig()).open(proto).fingerprint()


def test_one_number_in_the_middle_of_a_constant_changes_the_fingerprint() -> None:
    def model(middle: float) -> onnx.ModelProto:
        w = np.zeros((K, K), np.float32)
        w[K // 2, K // 2] = middle
        nodes = [
            node("Constant", [], ["w"], value=numpy_helper.from_array(w)),
            node("MatMul", ["x", "w"], ["y"], "op"),
        ]
        info = helper.make_tensor_value_info
        graph = helper.make_graph(
            nodes,
            "g",
            [info("x", TensorProto.FLOAT, ["n", K])],
            [info("y", TensorProto.FLOAT, ["n", K])],
        )
        return helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8
        )

    assert _fingerprint(model(1.0)) == _fingerprint(model(1.0))
    assert _fingerprint(model(1.0)) != _fingerprint(model(2.0))


def test_one_number_in_the_body_of_a_loop_changes_the_fingerprint() -> None:
    first, second, third = looping("Loop"), looping("Loop"), looping("Loop")
    (body,) = [a.g for n in second.graph.node for a in n.attribute if a.name == "body"]
    w = numpy_helper.to_array(body.initializer[0]).copy()
    w[16, 16] += 1
    body.initializer[0].CopyFrom(numpy_helper.from_array(w, body.initializer[0].name))
    (body,) = [a.g for n in third.graph.node for a in n.attribute if a.name == "body"]
    body.node[3].op_type = "Relu"
    assert (
        len(
            {
                _fingerprint(first),
                _fingerprint(second),
                _fingerprint(third),
                _fingerprint(looping("Loop")),
            }
        )
        == 3
    )
