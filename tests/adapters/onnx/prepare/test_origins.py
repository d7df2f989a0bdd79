"""Graphs as the exporters write them: PyTorch's two, tf2onnx's (channels last, explicit Pad,
BiasAdd), scikit-learn's."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper

import octavo
from octavo.adapters.onnx import OnnxConfig
from octavo.adapters.onnx.adapter import OnnxAdapter
from octavo.adapters.onnx.prepare.preparation import prepare
from octavo.adapters.onnx.prepare.source import read
from octavo.adapters.onnx.run.compiling import compile_model
from octavo.core.values.recipe import Recipe
from tests.adapters.onnx import models


def expected(proto: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    return ort.InferenceSession(proto.SerializeToString()).run(
        None, {proto.graph.input[0].name: x}
    )[0]


def channels_last(opset: int) -> onnx.ModelProto:
    """What tf2onnx makes of a small MobileNet-like network: NHWC outside, Pad before a strided
    convolution, BiasAdd and scale as Add and Mul, ReLU6, mean over the middle axes, Dense as MatMul
    and Add."""
    t = models.weights(
        w1=(8, 3, 3, 3),
        w2=(8, 1, 3, 3),
        w3=(16, 8, 1, 1),
        b1=(1, 8, 1, 1),
        b3=(1, 16, 1, 1),
        w=(16, 5),
        b=(5,),
    )
    t |= {"s2": np.linspace(0.5, 2, 8, dtype=np.float32).reshape(1, 8, 1, 1)}
    pads = [0, 0, 0, 0, 0, 0, 1, 1]
    inputs = opset >= 11
    if inputs:
        t |= {
            "pads": np.array(pads, np.int64),
            "low": np.float32(0),
            "high": np.float32(6),
        }
    clips = [
        helper.make_node("Clip", [f"a{i}", "low", "high"], [f"r{i}"], f"relu6_{i}")
        if inputs
        else helper.make_node(
            "Clip", [f"a{i}"], [f"r{i}"], f"relu6_{i}", min=0.0, max=6.0
        )
        for i in (1, 2, 3)
    ]
    nodes = [
        helper.make_node("Transpose", ["x"], ["nchw"], "to_nchw", perm=[0, 3, 1, 2]),
        helper.make_node("Pad", ["nchw", "pads"], ["p"], "pad")
        if inputs
        else helper.make_node("Pad", ["nchw"], ["p"], "pad", pads=pads),
        helper.make_node(
            "Conv", ["p", "w1"], ["c1"], "conv1", strides=[2, 2], kernel_shape=[3, 3]
        ),
        helper.make_node("Add", ["c1", "b1"], ["a1"], "bias1"),
        clips[0],
        helper.make_node(
            "Conv",
            ["r1", "w2"],
            ["c2"],
            "depthwise",
            group=8,
            auto_pad="SAME_UPPER",
            kernel_shape=[3, 3],
        ),
        helper.make_node("Mul", ["c2", "s2"], ["a2"], "scale2"),
        clips[1],
        helper.make_node("Conv", ["r2", "w3"], ["c3"], "conv3", kernel_shape=[1, 1]),
        helper.make_node("Add", ["b3", "c3"], ["a3"], "bias3"),
        clips[2],
        helper.make_node("Transpose", ["r3"], ["nhwc"], "to_nhwc", perm=[0, 2, 3, 1]),
        helper.make_node(
            "ReduceMean", ["nhwc"], ["m"], "mean", axes=[1, 2], keepdims=0
        ),
        helper.make_node("MatMul", ["m", "w"], ["d"], "dense"),
        helper.make_node("Add", ["d", "b"], ["y"], "dense_bias"),
    ]
    return models.build(nodes, t, {"x": ["n", 16, 16, 3]}, {"y": ["n", 5]}, opset=opset)


@pytest.mark.parametrize("opset", [9, 10, 11, 13])
def test_channels_last_networks_of_tensorflow(opset: int) -> None:
    proto = channels_last(opset)
    data = [
        (np.random.default_rng(i).normal(size=(4, 16, 16, 3)).astype(np.float32),)
        for i in range(2)
    ]
    x = data[0][0]
    plain = (
        OnnxAdapter(OnnxConfig(threads=1)).open(proto).apply(Recipe(backend="onnx"), {})
    )
    np.testing.assert_allclose(
        plain.native(x), expected(proto, x), rtol=1e-4, atol=1e-5
    )
    result = octavo.quantize_model(proto, "int8-static", calibration=data)
    found = [
        n.op_type
        for n in compile_model(result.model.graph, OnnxConfig(), inspect=True).nodes
    ]
    assert found.count("QLinearConv") == 3
    assert not {"Pad", "Add", "Mul", "Clip", "ReduceMean", "DequantizeLinear"} & set(
        found
    )
    assert found.count("QuantizeLinear") == 1
    y = expected(proto, x)
    assert np.linalg.norm(result.model(x) - y) < 0.05 * np.linalg.norm(y)


def one_convolution(
    before: Sequence[onnx.NodeProto],
    after: Sequence[onnx.NodeProto],
    **tensors: np.ndarray,
) -> onnx.ModelProto:
    nodes = [
        *before,
        helper.make_node("Conv", ["p", "w"], ["c"], "conv", pads=[1, 0, 0, 1]),
        *after,
    ]
    return models.build(
        nodes,
        models.weights(w=(6, 3, 3, 3)) | tensors,
        {"x": ["n", 3, 8, 8]},
        {"y": ["n", 6, "h", "v"]},
        opset=13,
    )


PADS = {"spatial": [0, 0, 1, 2, 0, 0, 3, 0], "cropping": [0, 0, -1, 0, 0, 0, 0, 1]}


@pytest.mark.parametrize(
    ("case", "stays"),
    [("spatial", False), ("cropping", True), ("edge", True), ("filled", True)],
)
def test_only_zero_padding_moves_into_the_convolution(case: str, stays: bool) -> None:
    tensors = {
        "pads": np.array(PADS.get(case, PADS["spatial"]), np.int64),
        "value": np.float32(1 if case == "filled" else 0),
    }
    pad = helper.make_node(
        "Pad",
        ["x", "pads", "value"],
        ["p"],
        "pad",
        mode="edge" if case == "edge" else "constant",
    )
    proto = one_convolution(
        [pad], [helper.make_node("Relu", ["c"], ["y"], "relu")], **tensors
    )
    assert ("Pad" in [n.op_type for n in prepare(read(proto)).graph]) == stays
    x = models.images(1, size=2)[0][0][:, :, :8, :8]
    got = (
        OnnxAdapter(OnnxConfig(threads=1))
        .open(proto)
        .apply(Recipe(backend="onnx"), {})
        .native(x)
    )
    np.testing.assert_allclose(got, expected(proto, x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "shape", "folded"),
    [
        ("Add", (6, 1, 1), True),
        ("Mul", (1, 6, 1, 1), True),
        ("Add", (), True),
        ("Mul", (1, 1, 1, 9), False),
        ("Add", (9,), False),
    ],
)
def test_only_numbers_per_channel_are_folded(
    kind: str, shape: tuple[int, ...], folded: bool
) -> None:
    number = np.random.default_rng(2).normal(size=shape).astype(np.float32)
    pad = helper.make_node("Pad", ["x", "pads"], ["p"], "pad")
    proto = one_convolution(
        [pad],
        [helper.make_node(kind, ["c", "k"], ["y"], "after")],
        k=number,
        pads=np.array([0, 0, 0, 0, 0, 0, 2, 2]),
    )
    assert (kind not in [n.op_type for n in prepare(read(proto)).graph]) == folded
    x = models.images(1, size=2)[0][0][:, :, :8, :8]
    got = (
        OnnxAdapter(OnnxConfig(threads=1))
        .open(proto)
        .apply(Recipe(backend="onnx"), {})
        .native(x)
    )
    np.testing.assert_allclose(got, expected(proto, x), rtol=1e-4, atol=1e-5)


def classifier() -> onnx.ModelProto:
    """What scikit-learn's exporter makes of a scaler and an MLP classifier: ai.onnx.ml operators,
    biases of shape (1, n), labels."""
    t = models.weights(w1=(10, 32), b1=(1, 32), w2=(32, 3), b2=(1, 3)) | {
        "classes": np.array([3, 5, 8], np.int64)
    }
    nodes = [
        helper.make_node(
            "Scaler",
            ["x"],
            ["s"],
            "scaler",
            domain="ai.onnx.ml",
            offset=[0.1] * 10,
            scale=[0.9] * 10,
        ),
        helper.make_node("Cast", ["s"], ["f"], "cast", to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["f", "w1"], ["h0"], "MatMul"),
        helper.make_node("Add", ["h0", "b1"], ["h1"], "Add"),
        helper.make_node("Relu", ["h1"], ["h2"], "Relu"),
        helper.make_node("MatMul", ["h2", "w2"], ["o0"], "MatMul1"),
        helper.make_node("Add", ["o0", "b2"], ["o1"], "Add1"),
        helper.make_node("Softmax", ["o1"], ["probabilities"], "Softmax"),
        helper.make_node("ArgMax", ["probabilities"], ["best"], "ArgMax", axis=1),
        helper.make_node(
            "ArrayFeatureExtractor",
            ["classes", "best"],
            ["labels"],
            "ArrayFeatureExtractor",
            domain="ai.onnx.ml",
        ),
    ]
    proto = models.build(
        nodes, t, {"x": ["n", 10]}, {"probabilities": ["n", 3]}, opset=13
    )
    proto.graph.output.append(
        helper.make_tensor_value_info("labels", TensorProto.INT64, ["one", "n"])
    )
    proto.opset_import.append(helper.make_opsetid("ai.onnx.ml", 1))
    return proto


@pytest.mark.parametrize("scheme", ["int8-static", "int8-dynamic"])
def test_pipelines_of_scikit_learn(scheme: str, tmp_path: Path) -> None:
    proto = classifier()
    data = [(np.random.default_rng(0).normal(size=(64, 10)).astype(np.float32),)]
    x = data[0][0]
    result = octavo.quantize_model(proto, scheme, calibration=data)
    assert [
        name for name, line in result.ledger.items() if not line.applied.is_float
    ] == [
        "MatMul",
        "MatMul1",
    ]
    assert "Add" not in [n.op_type for n in result.model.model.graph.node], (
        "the biases are inside the products"
    )
    result.save(tmp_path / "out")
    probabilities, labels = octavo.load(tmp_path / "out")(x)
    wanted = ort.InferenceSession(proto.SerializeToString()).run(None, {"x": x})
    np.testing.assert_allclose(probabilities, wanted[0], atol=0.02)
    sure = np.sort(wanted[0], axis=1)[:, -1] - np.sort(wanted[0], axis=1)[:, -2] > 0.05
    np.testing.assert_array_equal(np.ravel(labels)[sure], np.ravel(wanted[1])[sure])


class Small(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 3, padding=1),
            torch.nn.BatchNorm2d(8),
            torch.nn.ReLU(),
            torch.nn.MaxPool2d(2),
        )
        self.norm, self.head = torch.nn.LayerNorm(8 * 36), torch.nn.Linear(8 * 36, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(
            torch.nn.functional.gelu(self.norm(self.features(x).flatten(1)))
        )


@pytest.mark.parametrize("dynamo", [False, True])
@pytest.mark.filterwarnings("ignore")
def test_both_exporters_of_pytorch(
    dynamo: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    module, data = Small().eval(), models.images()
    shapes = (
        {"dynamic_shapes": ({0: torch.export.Dim("n")},)}
        if dynamo
        else {"dynamic_axes": {"x": {0: "n"}, "y": {0: "n"}}}
    )
    path = tmp_path / "model.onnx"
    torch.onnx.export(
        module,
        (torch.from_numpy(data[0][0]),),
        path,
        dynamo=dynamo,
        input_names=["x"],
        output_names=["y"],
        **shapes,
    )  # type: ignore[arg-type]
    capsys.readouterr()
    result = octavo.quantize_model(path, "int8-static", calibration=data)
    assert {
        line.reason.split("; ")[0]
        for line in result.ledger.values()
        if not line.applied.is_float
    } >= {"QLinearConv", "QGemm"}
    x = data[0][0][:3]
    with torch.no_grad():
        y = module(torch.from_numpy(x)).numpy()
    assert np.linalg.norm(result.model(x) - y) < 0.05 * np.linalg.norm(y)
