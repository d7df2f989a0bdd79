"""Models of one op, of the size that models have: what is timed when schemes are compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from octavo.adapters.onnx.prepare.opset import as_model

_Shape = tuple[int, ...]


@dataclass(frozen=True)
class _Sample:
    """An operator, the shape of its input, the shapes of its constants, and its attributes."""

    operator: str
    shape: _Shape
    constants: tuple[_Shape, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)


_SAMPLES: Mapping[str, _Sample] = {
    "conv": _Sample(
        "Conv", (1, 64, 28, 28), ((64, 64, 3, 3), (64,)), {"pads": [1, 1, 1, 1]}
    ),
    "conv_transpose": _Sample(
        "ConvTranspose", (1, 64, 14, 14), ((64, 64, 2, 2), (64,)), {"strides": [2, 2]}
    ),
    "linear": _Sample("MatMul", (64, 512), ((512, 512),)),
    "embedding": _Sample("Gather", (8, 64), ((4096, 256),)),
    "lstm": _Sample(
        "LSTM",
        (24, 1, 128),
        ((1, 512, 128), (1, 512, 128), (1, 1024)),
        {"hidden_size": 128},
    ),
}


def sample(kind: str) -> tuple[onnx.ModelProto, Mapping[str, np.ndarray]] | None:
    """Return a model with one op of a type and a batch for it.

    None for types that no scheme makes much faster or slower.
    """
    wanted = _SAMPLES.get(kind)
    if wanted is None:
        return None
    random = np.random.default_rng(0)
    held = []
    for i, shape in enumerate(wanted.constants):
        numbers = random.normal(size=shape).astype(np.float32)
        held.append(numpy_helper.from_array(numbers, f"c{i}"))
    batch: np.ndarray = random.normal(size=wanted.shape).astype(np.float32)
    names = ["x", *(tensor.name for tensor in held)]
    if wanted.operator == "Gather":
        rows, _ = wanted.constants[0]
        batch = random.integers(0, rows, wanted.shape)
        names = ["c0", "x"]
    return _model(wanted, names, held, batch), {"x": batch}


def _model(
    wanted: _Sample, names: list[str], held: list[onnx.TensorProto], batch: np.ndarray
) -> onnx.ModelProto:
    element = helper.np_dtype_to_tensor_dtype(batch.dtype)
    node = helper.make_node(
        wanted.operator, names, ["y"], "sample", **wanted.attributes
    )
    inputs = [helper.make_tensor_value_info("x", element, wanted.shape)]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    graph = helper.make_graph([node], "sample", inputs, outputs, held)
    return as_model(graph)
