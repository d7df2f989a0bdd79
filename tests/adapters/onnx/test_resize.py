"""Resize between quantized convolutions: codes pass through the nearest mode, the others compute in
float."""

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator

import octavo
from octavo.adapters.onnx import OnnxConfig
from octavo.adapters.onnx.run.compiling import compile_model
from tests.adapters.onnx import models


def upsampling(**attributes: str) -> onnx.ModelProto:
    t = models.weights(w1=(8, 3, 3, 3), b1=(8,), w2=(6, 8, 3, 3), b2=(6,)) | {
        "scales": np.array([1, 1, 2, 2], np.float32)
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], "conv1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"], "relu1"),
        helper.make_node("Resize", ["r1", "", "scales"], ["u"], "up", **attributes),
        helper.make_node("Conv", ["u", "w2", "b2"], ["y"], "conv2", pads=[1, 1, 1, 1]),
    ]
    return models.build(nodes, t, {"x": ["n", 3, 12, 12]}, {"y": ["n", 6, 24, 24]})


@pytest.mark.parametrize(("mode", "flows"), [("nearest", True), ("linear", False)])
def test_codes_pass_through_the_nearest_mode_alone(mode: str, flows: bool) -> None:
    proto, batches = upsampling(mode=mode), models.images()
    result = octavo.quantize_model(proto, "int8-static", calibration=batches)
    optimized = [
        n.op_type
        for n in compile_model(result.model.graph, OnnxConfig(), inspect=True).nodes
    ]
    assert optimized.count("QLinearConv") == 2
    assert optimized.count("QuantizeLinear") == (1 if flows else 2)
    x = batches[0][0]
    (expected,) = ReferenceEvaluator(proto).run(None, {"x": x})
    got = np.asarray(result.model(x))
    assert np.linalg.norm(got - expected) < 0.03 * np.linalg.norm(expected)


def test_cropping_makes_values_of_its_own() -> None:
    """tf_crop_and_resize fills in its extrapolation value, which the codes need not reach."""
    from octavo.adapters.onnx.adapter import OnnxAdapter

    plain = OnnxAdapter(OnnxConfig()).open(upsampling()).describe().by_name["up"]
    assert (plain.type, plain.out_of_reach) == (
        "resize",
        "it carries the codes of its input",
    )
    proto = upsampling(coordinate_transformation_mode="tf_crop_and_resize")
    proto.graph.initializer.append(
        onnx.numpy_helper.from_array(
            np.array([0, 0, 0, 0, 1, 1, 1, 1], np.float32), "roi"
        )
    )
    proto.graph.node[2].input[1] = "roi"
    assert (
        OnnxAdapter(OnnxConfig()).open(proto).describe().by_name["up"].out_of_reach
        != "it carries the codes of its input"
    )
