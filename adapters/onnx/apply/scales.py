"""Scales in a format of their own, written back to float32 before a kernel reads them.

ONNX Runtime's kernels take scales in the type of the activations alone (MatMulNBits of 1.32: "Type
parameter (T1) bound to different types"). What is written here reads constants only: the runtime
computes it once, when it loads the model, and runs the kernel that it runs for scales of float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
from onnx_ir import DataType, Node, Value

from octavo.core.values.sizes import DOUBLE_BLOCK

from .editing import Editor
from .nodes import declare
from .packing import ScaleTensors, WeightTensors


def shared_scale(e: Editor, name: str, scales: ScaleTensors) -> Value:
    """Return a weight's scales in float32, written once however many ops use them.

    Args:
        e: The graph.
        name: The weight's.
        scales: As the file is to hold them.
    """
    stored = e.shared(f"{name}_scale", scales.stored)
    if stored.dtype == DataType.FLOAT:
        return stored
    return e.computed(stored, lambda: _in_float(e, name, stored, scales))


def shared_weight(e: Editor, name: str, weight: WeightTensors) -> list[Value | None]:
    """Register a weight's codes, scale and zero point, as :meth:`.Editor.shared` does."""
    return [
        e.shared(f"{name}_quantized", weight.codes),
        shared_scale(e, name, weight.scale),
        shared_zero(e, name, weight),
    ]


def shared_zero(e: Editor, name: str, weight: WeightTensors) -> Value | None:
    """Register a weight's zero points; None where they are 0."""
    zero = weight.zero_point
    return None if zero is None else e.shared(f"{name}_zero", zero)


def _in_float(e: Editor, name: str, stored: Value, scales: ScaleTensors) -> Value:
    """Write the nodes that widen stored scales; return their result."""
    steps = _Steps(stored)
    wide = steps.add("Cast", stored, to=DataType.FLOAT.value)
    if scales.steps is not None and scales.offsets is not None:
        step = e.shared(f"{name}_scale_steps", scales.steps)
        offset = e.shared(f"{name}_scale_offsets", scales.offsets)
        wide = _of_two_levels(steps, wide, step, offset)
    steps.place_first(e)
    return wide


def _of_two_levels(steps: _Steps, codes: Value, step: Value, offset: Value) -> Value:
    """Return ``codes * step + offset``, each block of codes by its own.

    The same two operations in float32 that the core rounds with: the result is equal to the bit.
    """
    shape = steps.shape
    count = shape[0] * shape[1] if len(shape) == 2 else shape[0]
    if count <= DOUBLE_BLOCK:
        # One block for all: its numbers broadcast.
        return steps.add("Add", steps.add("Mul", codes, step), offset)
    missing = -count % DOUBLE_BLOCK
    flat = steps.add("Reshape", codes, steps.whole([-1]))
    if missing:
        flat = steps.add("Pad", flat, steps.whole([0, missing]))
    blocks = steps.add("Reshape", flat, steps.whole([-1, DOUBLE_BLOCK]))
    restored = steps.add("Add", steps.add("Mul", blocks, step), offset)
    flat = steps.add("Reshape", restored, steps.whole([-1]))
    if missing:
        flat = steps.add("Slice", flat, steps.whole([0]), steps.whole([count]))
    return steps.add("Reshape", flat, steps.whole(shape))


class _Steps:
    """Nodes in the order in which they are made, named after the scales that they widen.

    Args:
        stored: The scales, an initializer.

    Attributes:
        nodes: What was made.
        shape: Of the scales.
    """

    def __init__(self, stored: Value) -> None:
        assert stored.const_value is not None
        self.nodes: list[Node] = []
        self.shape = list(stored.const_value.shape.numpy())
        self._name = stored.name

    def add(self, op_type: str, *inputs: Value, **attributes: int) -> Value:
        """Make a node; return its result, in float32."""
        return self._made(ir.node(op_type, inputs, attributes or None), DataType.FLOAT)

    def whole(self, numbers: Sequence[int]) -> Value:
        """Return whole numbers, as a node's attribute: they are no tensor of the file."""
        node = ir.node("Constant", [], {"value_ints": list(numbers)})
        return self._made(node, DataType.INT64)

    def _made(self, node: Node, dtype: DataType) -> Value:
        node.name = f"{self._name}_widened_{len(self.nodes)}"
        self.nodes.append(node)
        return declare(node.outputs[0], f"{node.name}_output", dtype)

    def place_first(self, e: Editor) -> None:
        """Put the nodes before all others of the main graph, where bodies read their result too."""
        first = e.graph[0]
        e.graph.insert_before(first, self.nodes)
