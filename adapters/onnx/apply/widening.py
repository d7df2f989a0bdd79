"""What the file holds in fewer bytes than a kernel reads, and the runtime widens as it loads it.

ONNX Runtime's kernels take scales in the type of the activations alone (MatMulNBits of 1.32: "Type
parameter (T1) bound to different types"). What is written here reads constants only: the runtime
computes it once, when it loads the model, and runs the kernel that it runs for scales of float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from math import prod

import numpy as np
import onnx_ir as ir
from onnx_ir import DataType, Node, Value

from octavo.core.values.sizes import DOUBLE_BLOCK

from .editing import Editor
from .nodes import declare
from .packing import ScaleTensors, WeightTensors, tensor


def shared_scale(e: Editor, name: str, scales: ScaleTensors) -> Value:
    """Return a weight's scales in float32, written once however many ops use them.

    Args:
        e: The graph.
        name: The weight's.
        scales: As the file is to hold them.
    """
    stored = e.shared(f"{name}_scale", scales.stored)
    is_plain = stored.dtype == DataType.FLOAT
    if is_plain and scales.shape in (None, tuple(scales.stored.shape.numpy())):
        return stored
    return e.computed(stored, lambda: _in_float(e, name, stored, scales))


def shared_weight(
    e: Editor, name: str, weight: WeightTensors, *, asks_for_zero: bool = False
) -> list[Value | None]:
    """Register a weight's codes, scale and zero point, as :meth:`.Editor.shared` does.

    Args:
        e: The graph.
        name: The weight's.
        weight: Its tensors.
        asks_for_zero: Give zero points where they are 0, too, for a kernel that asks for them:
            those of all weights of as many channels are one tensor of the file.
    """
    zero = shared_zero(e, name, weight)
    if zero is None and asks_for_zero:
        shape = weight.scale.shape or tuple(weight.scale.stored.shape.numpy())
        zero = e.shared("no_zero", _zeros(shape, weight.codes.dtype))
    scale = shared_scale(e, name, weight.scale)
    return [e.shared(f"{name}_quantized", weight.codes), scale, zero]


@cache
def _zeros(shape: tuple[int, ...], dtype: DataType) -> ir.TensorProtocol:
    return tensor(np.zeros(shape), dtype, "zero")


def shared_zero(e: Editor, name: str, weight: WeightTensors) -> Value | None:
    """Register a weight's zero points; None where they are 0."""
    zero = weight.zero_point
    return None if zero is None else e.shared(f"{name}_zero", zero)


def shared_blocks(
    e: Editor, name: str, codes: ir.TensorProtocol, shape: tuple[int, int, int]
) -> Value:
    """Return packed codes in whole blocks.

    Where the last block of a row is short, the file holds no more than there is.

    Args:
        e: The graph.
        name: The weight's.
        codes: uint8 (rows, bytes).
        shape: What the kernel takes: (rows, blocks, bytes of a block). It reads none of what fills
            the last block, which stands for features that the input has not.
    """
    stored = e.shared(f"{name}_quantized", codes)
    rows, blocks, size = shape
    missing = blocks * size - codes.shape.numpy()[1]

    def whole() -> Value:
        steps = _Steps(stored)
        filled = stored
        if missing:
            filled = steps.add("Pad", stored, steps.whole([0, 0, 0, missing]))
        turned = steps.add("Reshape", filled, steps.whole([rows, blocks, size]))
        return steps.result(e, turned, shape)

    return e.computed(stored, whole)


def shared_packed_zeros(
    e: Editor, name: str, zeros: ir.TensorProtocol, shape: tuple[int, int], bits: int
) -> Value:
    """Return packed zero points, each row of whole bytes as the kernels take them.

    Args:
        e: The graph.
        name: The weight's.
        zeros: uint8, (rows, bytes); one stream of bits, where a row is no whole bytes.
        shape: (rows, zero points of a row).
        bits: Width of one: 2, 4 or 8.
    """
    stored = e.shared(f"{name}_zero", zeros)
    if zeros.shape.rank() == 2:
        return stored
    return e.computed(stored, lambda: _by_row(e, stored, shape, bits))


def _by_row(e: Editor, stored: Value, shape: tuple[int, int], bits: int) -> Value:
    """Take one stream of bits apart, and pack each row by itself.

    In float32, which holds bytes exactly and for which ONNX Runtime has every operator.
    """
    rows, columns = shape
    in_byte = 8 // bits
    steps = _Steps(stored)
    radix = steps.number(2.0**bits)
    rest = steps.add("Cast", stored, to=DataType.FLOAT.value)
    codes = []
    for _ in range(in_byte - 1):
        above = steps.add("Floor", steps.add("Div", rest, radix))
        lowest = steps.add("Sub", rest, steps.add("Mul", above, radix))
        codes.append(lowest)
        rest = above
    single = [steps.add("Reshape", c, steps.whole([-1, 1])) for c in (*codes, rest)]
    flat = steps.add("Reshape", steps.add("Concat", *single, axis=1), steps.whole([-1]))
    used = steps.add("Slice", flat, steps.whole([0]), steps.whole([rows * columns]))
    by_row = steps.add("Reshape", used, steps.whole(shape))
    missing = -columns % in_byte
    filled = steps.add("Pad", by_row, steps.whole([0, 0, 0, missing]))
    by_byte = steps.add("Reshape", filled, steps.whole([rows, -1, in_byte]))
    places = steps.numbers([2.0 ** (bits * place) for place in range(in_byte)])
    octets = steps.add("MatMul", by_byte, places)
    whole = steps.add("Cast", octets, to=DataType.UINT8.value)
    return steps.result(e, whole, (rows, (columns + missing) // in_byte))


def _in_float(e: Editor, name: str, stored: Value, scales: ScaleTensors) -> Value:
    """Write the nodes that widen stored scales; return their result."""
    steps = _Steps(stored)
    wide = stored
    shape = scales.stored.shape.numpy()
    if stored.dtype != DataType.FLOAT:
        wide = steps.add("Cast", stored, to=DataType.FLOAT.value)
    if scales.steps is not None and scales.offsets is not None:
        step = e.shared(f"{name}_scale_steps", scales.steps)
        offset = e.shared(f"{name}_scale_offsets", scales.offsets)
        wide = _of_two_levels(steps, wide, step, offset, shape)
    if scales.shape is not None:
        shape = scales.shape
        wide = steps.add("Expand", wide, steps.whole(shape))
    return steps.result(e, wide, shape)


def _of_two_levels(
    steps: _Steps, codes: Value, step: Value, offset: Value, shape: Sequence[int]
) -> Value:
    """Return ``codes * step + offset``, each block of codes by its own.

    The same two operations in float32 that the core rounds with: the result is equal to the bit.
    """
    count = prod(shape)
    if count <= DOUBLE_BLOCK:
        # One block for all: its numbers broadcast.
        return steps.add("Add", steps.add("Mul", codes, step), offset)
    missing = -count % DOUBLE_BLOCK
    flat = steps.add("Reshape", codes, steps.whole([-1]))
    if missing:
        flat = steps.add("Pad", flat, steps.whole([0, missing]))
    blocks = steps.add("Reshape", flat, steps.whole([-1, DOUBLE_BLOCK]))
    single = steps.whole([-1, 1])
    by_step = steps.add("Mul", blocks, steps.add("Reshape", step, single))
    restored = steps.add("Add", by_step, steps.add("Reshape", offset, single))
    flat = steps.add("Reshape", restored, steps.whole([-1]))
    if missing:
        flat = steps.add("Slice", flat, steps.whole([0]), steps.whole([count]))
    return steps.add("Reshape", flat, steps.whole(shape))


class _Steps:
    """Nodes in the order in which they are made, named after the constant that they widen.

    Args:
        stored: The constant, an initializer.
    """

    def __init__(self, stored: Value) -> None:
        self._nodes: list[Node] = []
        self._name = stored.name

    def add(self, op_type: str, first: Value, *rest: Value, **attributes: int) -> Value:
        """Make a node; return its result, of the type of ``first`` unless it is cast."""
        node = ir.node(op_type, [first, *rest], attributes or None)
        to = attributes.get("to")
        dtype = first.dtype if to is None else DataType(to)
        assert dtype is not None
        return self._made(node, dtype)

    def whole(self, numbers: Sequence[int]) -> Value:
        """Return whole numbers, as a node's attribute: they are no tensor of the file."""
        node = ir.node("Constant", [], {"value_ints": list(numbers)})
        return self._made(node, DataType.INT64)

    def number(self, number: float) -> Value:
        """Return a number in float32, as a node's attribute."""
        return self._made(
            ir.node("Constant", [], {"value_float": number}), DataType.FLOAT
        )

    def numbers(self, numbers: Sequence[float]) -> Value:
        """Return numbers in float32, as a node's attribute."""
        node = ir.node("Constant", [], {"value_floats": list(numbers)})
        return self._made(node, DataType.FLOAT)

    def _made(self, node: Node, dtype: DataType) -> Value:
        node.name = f"{self._name}_widened_{len(self._nodes)}"
        self._nodes.append(node)
        return declare(node.outputs[0], f"{node.name}_output", dtype)

    def result(self, e: Editor, value: Value, shape: Sequence[int]) -> Value:
        """Put the nodes before all others of the main graph, where bodies read them too; return
        the value that they end in, of a shape."""
        value.shape = ir.Shape(shape)
        first = e.graph[0]
        e.graph.insert_before(first, self._nodes)
        return value
