"""The QOperator form: the same codes as QDQ, in one operator each."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper

import octavo
from octavo.core.results.result import Quantized
from tests.adapters.onnx import models

FORMS = ("qdq", "qoperator")


def branches() -> onnx.ModelProto:
    """Sigmoid gate, leaky ReLU, average pool, concat, ReLU6, a transposed convolution, flattening
    and a plain product."""
    t = models.weights(
        w1=(8, 3, 3, 3),
        b1=(8,),
        w2=(8, 3, 3, 3),
        w3=(4, 16, 1, 1),
        b3=(4,),
        wt=(4, 4, 2, 2),
        w4=(576, 6),
    )
    t |= {"zero": np.float32(0), "six": np.float32(6)}
    pads = {"pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], "conv1", **pads),
        helper.make_node("Conv", ["x", "w2"], ["c2"], "conv2", **pads),
        helper.make_node("Sigmoid", ["c1"], ["s"], "sigmoid"),
        helper.make_node("Mul", ["c1", "s"], ["m"], "gate"),
        helper.make_node("LeakyRelu", ["c2"], ["l"], "leaky", alpha=0.2),
        helper.make_node(
            "AveragePool", ["l"], ["a"], "mean", kernel_shape=[3, 3], **pads
        ),
        helper.make_node("Concat", ["m", "a"], ["j"], "join", axis=1),
        helper.make_node("Conv", ["j", "w3", "b3"], ["c3"], "conv3"),
        helper.make_node("Clip", ["c3", "zero", "six"], ["r"], "relu6"),
        helper.make_node(
            "MaxPool", ["r"], ["p"], "pool", kernel_shape=[2, 2], strides=[2, 2]
        ),
        helper.make_node("ConvTranspose", ["p", "wt"], ["u"], "up", strides=[2, 2]),
        helper.make_node("Flatten", ["u"], ["f"], "flat"),
        helper.make_node("MatMul", ["f", "w4"], ["y"], "product"),
    ]
    return models.build(nodes, t, {"x": ["n", 3, 12, 12]}, {"y": ["n", 6]})


def made(
    proto: onnx.ModelProto,
    form: str,
    calibration: list[tuple[np.ndarray]],
    **settings: object,
) -> Quantized:
    return octavo.quantize_model(
        proto,
        settings,
        calibration=calibration,
        backend={"kind": "onnx", "threads": 1, "form": form},
    )


@pytest.mark.parametrize("name", ["convolutional", "branches", "transformer_block"])
def test_both_forms_answer_alike(name: str, tmp_path: Path) -> None:
    """Within one step of the last quantized value, for which a 127th of the answer's
    range stands."""
    proto = branches() if name == "branches" else getattr(models, name)()
    data = models.tokens() if name == "transformer_block" else models.images()
    answers = {}
    for form in FORMS:
        result = (
            made(proto, form, data, simulated=True)
            if name == "branches"
            else made(proto, form, data)
        )
        result.save(tmp_path / form)
        file = next((tmp_path / form).rglob("model.onnx"))
        onnx.checker.check_model(str(file), full_check=True)
        session = ort.InferenceSession(file)
        answers[form] = [
            session.run(None, {session.get_inputs()[0].name: x})[0] for (x,) in data
        ]
    for one, other in zip(*answers.values(), strict=True):
        np.testing.assert_allclose(one, other, atol=np.ptp(one) / 127)


def test_pairs_are_left_at_the_ends_alone() -> None:
    result = made(models.convolutional(), "qoperator", models.images())
    found = Counter(n.op_type for n in result.model.model.graph.node)
    assert found == {
        "QuantizeLinear": 1,
        "QLinearConv": 4,
        "QLinearAdd": 1,
        "MaxPool": 1,
        "QLinearGlobalAveragePool": 1,
        "Flatten": 1,
        "QGemm": 1,
    }
    assert {line.realization for line in result.ledger.values()} == {"kernel", "codes"}


def test_every_operator_that_there_is_is_written() -> None:
    result = made(branches(), "qoperator", models.images(), simulated=True)
    found = {n.op_type for n in result.model.model.graph.node}
    assert {
        "QLinearSigmoid",
        "QLinearMul",
        "QLinearLeakyRelu",
        "QLinearAveragePool",
        "QLinearConcat",
        "MatMulIntegerToFloat",
    } <= found
    assert not {"Conv", "Mul", "Concat", "Clip", "Sigmoid"} & found


def test_what_has_no_such_operator_is_said() -> None:
    result = made(branches(), "qoperator", models.images(), simulated=True)
    assert "no QOperator form" in result.ledger["up"].reason
    assert "ConvTranspose" in result.ledger["up"].reason
    assert "QOperator" not in result.ledger["conv1"].reason
