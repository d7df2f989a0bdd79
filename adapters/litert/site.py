"""One operator of a .tflite model, recognized as an op of the core's vocabulary."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as fb

from octavo.plugin import Op

from .graph import Graph

Axes = tuple[int, ...]

KINDS: Mapping[str, str] = {
    "CONV_2D": "conv",
    "DEPTHWISE_CONV_2D": "conv",
    "TRANSPOSE_CONV": "conv_transpose",
    "FULLY_CONNECTED": "linear",
    "BATCH_MATMUL": "matmul",
    "CONCATENATION": "concat",
    "AVERAGE_POOL_2D": "avg_pool",
    "MAX_POOL_2D": "max_pool",
    "LOGISTIC": "sigmoid",
}
"""Operator -> op type; any other keeps its own name in small letters."""

TO_CORE: Mapping[str, Axes] = {
    "CONV_2D": (0, 3, 1, 2),
    "DEPTHWISE_CONV_2D": (3, 0, 1, 2),
    "TRANSPOSE_CONV": (3, 0, 1, 2),
    "FULLY_CONNECTED": (0, 1),
    "GATHER": (0, 1),
}
"""Operator -> axes of its weight in the file, in the core's order.

LiteRT keeps (outputs, height, width, inputs / groups), a depthwise weight as (1, height, width,
outputs). The core has ONNX's: (outputs, inputs / groups, height, width), of a transposed
convolution (inputs, outputs, height, width).
"""

CARRIERS = (
    "RESHAPE", "SQUEEZE", "EXPAND_DIMS", "TRANSPOSE", "MAX_POOL_2D", "PAD", "SLICE",
    "STRIDED_SLICE", "SPACE_TO_DEPTH", "DEPTH_TO_SPACE", "SPACE_TO_BATCH_ND", "TILE",
    "BATCH_TO_SPACE_ND", "RESIZE_NEAREST_NEIGHBOR", "SPLIT", "GATHER", "RELU", "RELU6",
)  # fmt: skip
"""Operators that move, select or clip values: they take codes as they take numbers."""

_PRODUCTS = [code for code in TO_CORE if code != "GATHER"]

_PLACES = {"TRANSPOSE_CONV": (2, 1, 3), "GATHER": (1, 0, None)}
"""Operator -> which inputs are its activation, weight and bias; else 0, 1 and 2."""

_ACTIVATIONS = {
    fb.ActivationFunctionType.RELU: "relu",
    fb.ActivationFunctionType.RELU6: "clip",
    fb.ActivationFunctionType.RELU_N1_TO_1: "clip",
}
"""Fused activations that integer kernels carry out by clipping their codes."""


@dataclass(frozen=True)
class Site:
    """An operator, and which of its inputs is what.

    Attributes:
        node: The operator.
        code: Its name in the schema.
        positions: The inputs that are activations of the op.
        weight: The input that holds the weight; None where there is none.
        bias: The input that holds the bias, or would.
        op: As the core sees it.
    """

    node: Any
    code: str
    positions: Axes
    weight: int | None
    bias: int | None
    op: Op

    @property
    def read(self) -> Axes:
        """Tensors of the op's activation inputs."""
        return tuple(int(self.node.inputs[at]) for at in self.positions)

    @property
    def carries(self) -> bool:
        """True if it may move codes as they are."""
        return self.code in CARRIERS and self.weight is None and bool(self.positions)

    @property
    def axes(self) -> Axes:
        """The weight's axes in the file, in the core's order."""
        return TO_CORE[self.code]


def parts(graph: Graph, node: Any) -> tuple[Axes, int | None, int | None]:
    """Return which inputs of an operator are activations, the weight and the bias."""
    code = graph.code(node)
    if code in TO_CORE:
        at, weight, bias = _PLACES.get(code, (0, 1, 2))
        held = graph.constant(int(node.inputs[weight]))
        is_table = code != "GATHER" or _is_table(held, node.builtinOptions)
        if held is not None and held.dtype == np.float32 and is_table:
            return (at,), weight, bias
    read = [at for at, index in enumerate(node.inputs) if graph.varies(index)]
    if code == "CONCATENATION":
        read = list(range(len(node.inputs)))
    return tuple(read[:1] if code in CARRIERS else read), None, None


def _is_table(held: np.ndarray | None, options: Any) -> bool:
    """True for rows that are looked up one by one."""
    return (
        held is not None and held.ndim == 2 and not (options.axis or options.batchDims)
    )


def refusal(graph: Graph, node: Any, positions: Axes, weight: int | None) -> str:
    """Return why an operator must stay float; empty where it need not."""
    options = node.builtinOptions
    activation = getattr(options, "fusedActivationFunction", 0)
    if activation and activation not in _ACTIVATIONS:
        return "no integer kernel takes its fused activation"
    if getattr(options, "weightsFormat", 0):
        return "its weight is stored in shuffled order"
    code = graph.code(node)
    if code in _PRODUCTS and weight is None:
        return "its weight is no constant of float32"
    is_whole = all(graph.varies(node.inputs[at]) for at in positions)
    if not is_whole or (code == "BATCH_MATMUL" and len(positions) < 2):
        return "one of its operands is a constant"
    return ""


def attributes(graph: Graph, node: Any, kernel: Axes) -> dict[str, Any]:
    """Return what the core may know of an operator beside its values.

    Args:
        graph: Where it stands.
        node: The operator.
        kernel: Shape of a convolution's weight in the core's layout; () for all others.
    """
    options = node.builtinOptions
    found: dict[str, Any] = {"litert": graph.code(node)}
    activation = getattr(options, "fusedActivationFunction", 0)
    if activation in _ACTIVATIONS:
        found["activation"] = _ACTIVATIONS[activation]
    axes = graph.constant(int(node.inputs[-1]))
    if found["litert"] == "MEAN" and axes is not None:
        found["axes"] = tuple(sorted(int(axis) for axis in axes.reshape(-1)))
    if len(kernel) != 4:
        return found
    wide, narrow = int(node.inputs[0]), int(node.outputs[0])
    if found["litert"] == "TRANSPOSE_CONV":
        # What it pads is its result: it is a convolution the other way round.
        wide = narrow
    else:
        channels = graph.shape(wide)[-1]
        found["groups"] = 1 if channels is None else channels // kernel[1]
    found["strides"] = (options.strideH, options.strideW)
    dilations = ("dilationHFactor", "dilationWFactor")
    found["dilations"] = tuple(getattr(options, name, 1) for name in dilations)
    begins, ends = [], []
    for axis, stride in enumerate(found["strides"]):
        reach = (kernel[2 + axis] - 1) * found["dilations"][axis] + 1
        length = graph.shape(wide)[1 + axis] or stride
        # SAME keeps ceil(length / stride) places; an unknown length is taken for whole strides.
        total = (ceil(length / stride) - 1) * stride + reach - length
        total = max(total, 0) if options.padding == fb.Padding.SAME else 0
        begins.append(total // 2)
        ends.append(total - total // 2)
    found["pads"] = (*begins, *ends)
    return found
