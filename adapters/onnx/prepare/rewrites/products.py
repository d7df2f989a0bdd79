"""Products with a constant in one form: ``x @ W`` with a matrix W on the right.

Gemm has alpha, beta and transA, and adds anything that broadcasts; MatMul takes constants of any
rank on either side.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir import Node, Value

from octavo.adapters.onnx.prepare.constants import (
    add_initializer,
    constant,
    is_constant,
    replace_input,
)
from octavo.adapters.onnx.prepare.patterns import float_of, input_at, int_of, rank_of
from octavo.adapters.onnx.prepare.scopes import owner

from .layouts import Layouts, before, replace_with, swap_last
from .left import LEFT


def plain_gemm(node: Node, layouts: Layouts) -> None:
    """Bring a Gemm to alpha, beta and transA of their defaults, and a bias of one number a column.

    A Gemm whose right side is no constant becomes MatMul, with Mul and Add where it needs them.
    """
    a = node.inputs[0]
    b = node.inputs[1]
    if a is None or b is None:
        return
    if int_of(node, "transA", 0) == 1:
        a = _transposed(node, a, "left", layouts)
    if not is_constant(b) or is_constant(a):
        if _is_right_transposed(node):
            b = _transposed(node, b, "right", layouts)
        _as_matmul(node, a, b)
        return
    # Before the attributes go: beta is one of them.
    addend = _Addend.of(node)
    scaled = _times(node, a, "alpha", like=a)
    node.replace_input_with(0, scaled)
    for name in ("alpha", "beta", "transA"):
        node.attributes.pop(name, None)
    if addend is None:
        return
    columns = _columns(node, b)
    if columns is not None and addend.is_vector_of(columns):
        addend.become_row(columns)
    else:
        node.resize_inputs(2)
        _add_after(node, addend)


@dataclass(frozen=True)
class _Addend:
    """What a Gemm adds to its product, beta times."""

    gemm: Node
    value: Value
    beta: float

    @classmethod
    def of(cls, gemm: Node) -> _Addend | None:
        value = input_at(gemm, 2)
        if value is None:
            return None
        beta = float_of(gemm, "beta", 1.0)
        return cls(gemm, value, beta)

    def is_vector_of(self, columns: int) -> bool:
        """True for a constant of one number, or one per column."""
        held = constant(self.value)
        if held is None:
            return False
        one_number = ((), (1,), (1, 1))
        one_per_column = ((columns,), (1, columns))
        return held.shape in one_number + one_per_column

    def become_row(self, columns: int) -> None:
        """Make it a bias of one number per column."""
        held = constant(self.value)
        assert held is not None
        if self.beta == 1 and held.size == columns:
            return
        factor = np.asarray(self.beta, held.dtype)
        flat = held.reshape(-1)
        whole = np.broadcast_to(flat, (columns,))
        row = np.ascontiguousarray(whole * factor)
        graph = owner(self.gemm)
        made = add_initializer(graph, f"{self.value.name}_row", row)
        replace_input(self.gemm, 2, made)

    def scaled(self, like: Value) -> Value:
        """Return it times beta."""
        if self.beta == 1:
            return self.value
        factor = _number(self.gemm, like, "beta", self.beta)
        return before(self.gemm, "Mul", [self.value, factor], "beta")


def _as_matmul(node: Node, a: Value, b: Value) -> None:
    addend = _Addend.of(node)
    product = before(node, "MatMul", [a, b], "product")
    found = _times(node, product, "alpha", like=a)
    if addend is not None:
        added = addend.scaled(like=a)
        found = before(node, "Add", [found, added], "sum")
    replace_with(node, found)


def _times(node: Node, value: Value, name: str, like: Value) -> Value:
    """Return a value times an attribute of a Gemm."""
    number = float_of(node, name, 1.0)
    if number == 1:
        return value
    factor = _number(node, like, name, number)
    return before(node, "Mul", [value, factor], name)


def _number(node: Node, like: Value, tag: str, number: float) -> Value:
    """Register a scalar of the type of ``like``."""
    dtype = np.dtype(np.float32)
    if like.dtype is not None:
        dtype = like.dtype.numpy()
    held = np.asarray(number, dtype)
    graph = owner(node)
    return add_initializer(graph, f"{node.name}_{tag}", held)


def _transposed(node: Node, value: Value, tag: str, layouts: Layouts) -> Value:
    if is_constant(value):
        return layouts.of(node, value, "turned", _turn)
    swap = {"perm": [1, 0]}
    return before(node, "Transpose", [value], tag, swap)


def _turn(matrix: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(matrix.T)


def _add_after(node: Node, addend: _Addend) -> None:
    """Let an Add of its own do what Gemm does with anything but a bias."""
    old = node.outputs[0]
    inputs = list(node.inputs)
    attributes = dict(node.attributes)
    product = ir.node("Gemm", inputs, attributes, name=node.name)
    owner(node).insert_before(node, [product])
    result = product.outputs[0]
    result.name = f"{node.name}_product"
    result.type = old.type
    result.shape = old.shape
    added = addend.scaled(like=addend.value)
    total = before(node, "Add", [result, added], "sum")
    replace_with(node, total)


def _columns(gemm: Node, weight: Value) -> int | None:
    held = weight.const_value
    if held is None or len(held.shape) != 2:
        return None
    rows, columns = held.shape.numpy()
    if _is_right_transposed(gemm):
        return int(rows)
    return int(columns)


def _is_right_transposed(gemm: Node) -> bool:
    return int_of(gemm, "transB", 0) == 1


def matrix_on_the_right(node: Node, layouts: Layouts) -> None:
    """Bring a MatMul with one constant to ``x @ W``.

    W is a matrix, or a stack of matrices where the constant is one.
    """
    left = node.inputs[0]
    right = node.inputs[1]
    if left is None or right is None:
        return
    is_on_the_left = is_constant(left)
    if is_on_the_left == is_constant(right):
        return
    if is_on_the_left:
        held = left
        x = right
    else:
        x = left
        held = right
    rank = rank_of(x)
    assert held.const_value is not None
    shape = held.const_value.shape.numpy()
    if rank is None or len(shape) < 2:
        return
    *stack, _, _ = shape
    # With fewer axes in x than in the stack, the result has more axes than x.
    is_stack_of_one = bool(stack) and set(stack) == {1}
    if is_stack_of_one and rank >= len(shape):
        held = layouts.of(node, held, "matrix", _without_stack)
        place = 0 if is_on_the_left else 1
        node.replace_input_with(place, held)
        stack = []
    if is_on_the_left and not stack:
        _from_the_left(node, held, x, layouts)


def _without_stack(array: np.ndarray) -> np.ndarray:
    matrix = array.shape[-2:]
    return array.reshape(matrix)


def _from_the_left(node: Node, held: Value, x: Value, layouts: Layouts) -> None:
    """``W @ x`` is the swap of ``swap(x) @ swap(W)``."""
    turned = layouts.of(node, held, "turned", _turn)
    shape = x.shape
    assert shape is not None
    rank = len(shape)
    # A vector has no axes to swap.
    if rank == 1:
        node.replace_input_with(0, x)
        node.replace_input_with(1, turned)
        return
    order = swap_last(rank)
    swap = {"perm": order}
    inner = before(node, "Transpose", [x], "swap_in", swap)
    inner.shape = ir.Shape([shape[axis] for axis in order])
    product = ir.node("MatMul", [inner, turned], name=node.name)
    product.meta[LEFT] = held.const_value
    owner(node).insert_before(node, [product])
    result = product.outputs[0]
    result.name = f"{node.name}_swapped"
    result.type = node.outputs[0].type
    node.name = f"{node.name}_replaced"
    swapped = before(node, "Transpose", [result], "swap_out", swap)
    replace_with(node, swapped)
