"""Small ONNX models, seeded, built with onnx.helper alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def build(
    nodes: Sequence[onnx.NodeProto],
    tensors: Mapping[str, np.ndarray],
    inputs: Mapping[str, Sequence[Any]],
    outputs: Mapping[str, Sequence[Any]],
    opset: int = 17,
    input_type: int = TensorProto.FLOAT,
    output_type: int = TensorProto.FLOAT,
    **extra: Any,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        list(nodes),
        "small",
        [helper.make_tensor_value_info(n, input_type, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info(n, output_type, s) for n, s in outputs.items()],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in tensors.items()],
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8, **extra
    )


def weights(seed: int = 0, **shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        n: (rng.normal(size=s) / np.sqrt(max(1, np.prod(s[1:])))).astype(np.float32)
        for n, s in shapes.items()
    }


def convolutional() -> onnx.ModelProto:
    """Batch norm, residual add, depthwise convolution, max pool, mean, Gemm."""
    t = weights(
        w1=(8, 3, 3, 3),
        w2=(8, 8, 3, 3),
        b2=(8,),
        w3=(8, 1, 3, 3),
        b3=(8,),
        w5=(8, 8, 1, 1),
        w4=(5, 8),
        b4=(5,),
        g=(8,),
        h=(8,),
        m=(8,),
    )
    t |= {
        "v": np.linspace(0.5, 2, 8, dtype=np.float32),
        "axes": np.array([2, 3], np.int64),
    }
    pads = {"pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c1"], "conv1", **pads),
        helper.make_node(
            "BatchNormalization", ["c1", "g", "h", "m", "v"], ["n1"], "norm1"
        ),
        helper.make_node("Relu", ["n1"], ["r1"], "relu1"),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], "conv2", **pads),
        helper.make_node("Add", ["r1", "c2"], ["a"], "residual"),
        helper.make_node("Relu", ["a"], ["r2"], "relu2"),
        helper.make_node(
            "MaxPool", ["r2"], ["p"], "pool", kernel_shape=[2, 2], strides=[2, 2]
        ),
        helper.make_node(
            "Conv", ["p", "w3", "b3"], ["c3"], "depthwise", group=8, **pads
        ),
        helper.make_node("Relu", ["c3"], ["r3"], "relu3"),
        helper.make_node("Conv", ["r3", "w5"], ["c5"], "pointwise"),
        helper.make_node("ReduceMean", ["c5", "axes"], ["mean"], "mean", keepdims=0),
        helper.make_node("Gemm", ["mean", "w4", "b4"], ["y"], "classifier", transB=1),
    ]
    return build(nodes, t, {"x": ["n", 3, 12, 12]}, {"y": ["n", 5]}, opset=18)


def transformer_block(
    seed: int = 1, hidden: int = 32, tokens: str | int = "s"
) -> onnx.ModelProto:
    """Embedding, layer norm, single-head attention, residual, GELU-free MLP with ReLU."""
    h = hidden
    t = weights(
        seed,
        table=(50, h),
        wq=(h, h),
        bq=(h,),
        wk=(h, h),
        bk=(h,),
        wv=(h, h),
        bv=(h,),
        wo=(h, h),
        bo=(h,),
        w1=(h, 4 * h),
        b1=(4 * h,),
        w2=(4 * h, h),
        b2=(h,),
    )
    t |= {
        "g": np.linspace(0.5, 1.5, h, dtype=np.float32),
        "s": np.zeros(h, np.float32),
        "root": np.float32(np.sqrt(h)),
    }
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["e"], "embed"),
        helper.make_node("LayerNormalization", ["e", "g", "s"], ["n"], "norm"),
    ]
    for name in "qkv":
        nodes += [
            helper.make_node("MatMul", ["n", f"w{name}"], [f"{name}0"], name),
            helper.make_node(
                "Add", [f"{name}0", f"b{name}"], [f"{name}1"], f"{name}_bias"
            ),
        ]
    nodes += [
        helper.make_node("Transpose", ["k1"], ["kt"], "transpose", perm=[0, 2, 1]),
        helper.make_node("MatMul", ["q1", "kt"], ["scores"], "scores"),
        helper.make_node("Div", ["scores", "root"], ["scaled"], "scale"),
        helper.make_node("Softmax", ["scaled"], ["p"], "softmax"),
        helper.make_node("MatMul", ["p", "v1"], ["mix"], "mix"),
        helper.make_node("MatMul", ["mix", "wo"], ["o0"], "out"),
        helper.make_node("Add", ["bo", "o0"], ["o1"], "out_bias"),
        helper.make_node("Add", ["n", "o1"], ["r"], "residual"),
        helper.make_node("MatMul", ["r", "w1"], ["f0"], "up"),
        helper.make_node("Add", ["f0", "b1"], ["f1"], "up_bias"),
        helper.make_node("Relu", ["f1"], ["f2"], "relu"),
        helper.make_node("MatMul", ["f2", "w2"], ["f3"], "down"),
        helper.make_node("Add", ["f3", "b2"], ["y"], "down_bias"),
    ]  # fmt: skip
    return build(
        nodes,
        t,
        {"ids": ["n", tokens]},
        {"y": ["n", tokens, h]},
        input_type=TensorProto.INT64,
    )


def images(batches: int = 2, size: int = 4, seed: int = 0) -> list[tuple[np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [
        (rng.normal(size=(size, 3, 12, 12)).astype(np.float32),) for _ in range(batches)
    ]


def tokens(lengths: Sequence[int] = (7, 11), seed: int = 0) -> list[tuple[np.ndarray]]:
    """Ragged batches of token ids."""
    rng = np.random.default_rng(seed)
    return [(rng.integers(0, 50, (3, n)),) for n in lengths]
