"""Models of one op, of the size that models have: what is timed when somebody asks how fast schemes are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from octavo.adapters.onnx.prepare.opset import CONVERTED, IR_VERSION

_SHAPES: Mapping[
    str, tuple[str, Mapping[str, Any], tuple[int, ...], tuple[tuple[int, ...], ...]]
] = {
    # op type: (operator, attributes, shape of the input, shapes of the constants)
    "conv": ("Conv", {"pads": [1, 1, 1, 1]}, (1, 64, 28, 28), ((64, 64, 3, 3), (64,))),
    "conv_transpose": (
        "ConvTranspose",
        {"strides": [2, 2]},
        (1, 64, 14, 14),
        ((64, 64, 2, 2), (64,)),
    ),
    "linear": ("MatMul", {}, (64, 512), ((512, 512),)),
    "embedding": ("Gather", {}, (8, 64), ((4096, 256),)),
    "lstm": ("LSTM", {"hidden_size": 128}, (24, 1, 128), ((1, 512, 128), (1, 512, 128), (1, 1024))),
}


def sample(kind: str) -> tuple[onnx.ModelProto, Mapping[str, np.ndarray]] | None:
    """Return a model with one op of a type and a batch for it; None for types that no scheme makes much faster or slower."""
    if kind not in _SHAPES:
        return None
    operator, attributes, shape, constants = _SHAPES[kind]
    random = np.random.default_rng(0)
    held = [
        numpy_helper.from_array(random.normal(size=s).astype(np.float32), f"c{i}")
        for i, s in enumerate(constants)
    ]
    names = ["x", *(t.name for t in held)]
    element = TensorProto.FLOAT
    batch: np.ndarray = random.normal(size=shape).astype(np.float32)
    if operator == "Gather":
        names, element, batch = (
            ["c0", "x"],
            TensorProto.INT64,
            random.integers(0, constants[0][0], shape),
        )
    node = helper.make_node(operator, names, ["y"], "sample", **attributes)
    inputs = [helper.make_tensor_value_info("x", element, shape)]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    graph = helper.make_graph([node], "sample", inputs, outputs, held)
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", CONVERTED)], ir_version=IR_VERSION
    ), {"x": batch}
