"""Faults of weights, of digests and of our own making: named where they are, never hidden."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

import octavo
from octavo.adapters.onnx import OnnxConfig, offers
from octavo.adapters.onnx.adapter import OnnxAdapter
from octavo.adapters.onnx.kernels import probing
from octavo.adapters.onnx.session import OnnxSession
from octavo.core.contract.plugins import PluginHost
from octavo.core.errors import NonFiniteWeight, SchemeError
from octavo.core.opening.opening import open_model
from tests.adapters.onnx import models


def session_of(proto: onnx.ModelProto) -> OnnxSession:
    return OnnxAdapter(OnnxConfig(threads=1)).open(proto)


def spoilt(name: str, value: float) -> onnx.ModelProto:
    proto = models.convolutional()
    tensor = next(t for t in proto.graph.initializer if t.name == name)
    array = numpy_helper.to_array(tensor).copy()
    array.flat[1] = value
    tensor.CopyFrom(numpy_helper.from_array(array, name))
    return proto


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["b2", "g", "v", "b4"])
def test_a_parameter_that_is_not_finite_is_named_at_open(
    name: str, value: float
) -> None:
    with pytest.raises(NonFiniteWeight, match=f"{name!r}"):
        open_model(spoilt(name, value), PluginHost(third_party=False))


@pytest.mark.parametrize("name", ["w1", "w2"])
def test_a_weight_that_is_not_finite_stops_before_anything_is_run(name: str) -> None:
    """w1 lies before a batch norm, into which it would be folded under another name."""
    with pytest.raises(NonFiniteWeight, match=f"weight {name!r}"):
        octavo.quantize_model(
            spoilt(name, np.nan), "int8-static", calibration=models.images()
        )


def test_an_infinite_mask_is_no_fault() -> None:
    mask = np.where(np.tri(4, dtype=bool), 0, -np.inf).astype(np.float32)
    nodes = [
        helper.make_node("Add", ["x", "mask"], ["s"], "add"),
        helper.make_node("Softmax", ["s"], ["y"], "softmax"),
    ]
    session_of(
        models.build(nodes, {"mask": mask}, {"x": ["n", 4, 4]}, {"y": ["n", 4, 4]})
    )


def with_constant(value: float) -> onnx.ModelProto:
    """A large tensor in a Constant node, which a printed attribute abbreviates."""
    array = np.zeros(5000, np.float32)
    array[2500] = value
    nodes = [
        helper.make_node(
            "Constant", [], ["c"], "constant", value=numpy_helper.from_array(array, "c")
        ),
        helper.make_node("Add", ["x", "c"], ["y"], "add"),
    ]
    return models.build(nodes, {}, {"x": [5000]}, {"y": [5000]})


def with_body(value: float) -> onnx.ModelProto:
    """An If whose branches hold a tensor of their own; ``value`` is in the first."""
    branches = []
    for number in (value, 1.0):
        held = numpy_helper.from_array(np.full(3, number, np.float32), "held")
        out = helper.make_tensor_value_info("out", TensorProto.FLOAT, [3])
        branches.append(
            helper.make_graph(
                [helper.make_node("Add", ["x", "held"], ["out"], "sum")],
                "branch",
                [],
                [out],
                [held],
            )
        )
    nodes = [
        helper.make_node(
            "If",
            ["choice"],
            ["y"],
            "branch",
            then_branch=branches[0],
            else_branch=branches[1],
        )
    ]
    return models.build(nodes, {"choice": np.array(True)}, {"x": [3]}, {"y": [3]})


def with_fraction(value: float) -> onnx.ModelProto:
    return models.build(
        [helper.make_node("LeakyRelu", ["x"], ["y"], "leaky", alpha=value)],
        {},
        {"x": [3]},
        {"y": [3]},
    )


@pytest.mark.parametrize("make", [with_constant, with_body, with_fraction])
def test_models_that_differ_have_other_fingerprints(
    make: Callable[[float], onnx.ModelProto],
) -> None:
    prints = [session_of(make(value)).fingerprint() for value in (0.5, 0.25, 0.5)]
    assert prints[0] == prints[2] != prints[1]


@pytest.mark.parametrize("kind", [TensorProto.INT4, TensorProto.UINT4])
def test_initializers_of_4_bits_run_whatever_their_size(
    kind: int, tmp_path: Path
) -> None:
    codes = np.random.default_rng(0).integers(0, 8, (64, 64))
    held = [
        helper.make_tensor("w", kind, [64, 64], codes.ravel()),
        numpy_helper.from_array(np.full(64, 0.1, np.float32), "s"),
    ]
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s"], ["d"], "dequantize", axis=1),
        helper.make_node("MatMul", ["x", "d"], ["y"], "product"),
    ]
    proto = models.build(nodes, {}, {"x": ["n", 64]}, {"y": ["n", 64]}, opset=21)
    proto.ir_version = 10
    proto.graph.initializer.extend(held)
    reference = session_of(proto).reference()
    x = np.random.default_rng(1).normal(size=(3, 64)).astype(np.float32)
    (expected,) = ort.InferenceSession(proto.SerializeToString()).run(None, {"x": x})
    np.testing.assert_array_equal(reference.native(x), expected)
    # The runtime rounds x to 8 bits here.
    np.testing.assert_allclose(expected, x @ (codes * np.float32(0.1)), atol=0.1)
    reference.save(tmp_path)
    np.testing.assert_array_equal(
        OnnxAdapter(OnnxConfig()).load(tmp_path).run((x,))[0], reference.native(x)
    )


@pytest.mark.parametrize(
    "fault", [SchemeError("ours"), TypeError("ours"), KeyError("ours")]
)
def test_faults_of_our_own_are_not_taken_for_an_answer_of_the_runtime(
    fault: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise fault

    monkeypatch.setattr(probing, "emit", broken)
    with pytest.raises(type(fault)):
        probing.Probe.of("softmax", OnnxConfig(threads=1)).ask(
            offers._candidates()["softmax"][0]
        )
