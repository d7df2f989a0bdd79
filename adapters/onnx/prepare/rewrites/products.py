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
        if int_of(node, "transB", 0) == 1:
            b = _transposed(node, b, "right", layouts)
        _as_matmul(node, a, b)
        return
    addend = _Addend.of(node)
    node.replace_input_with(0, _times(node, a, "alpha", like=a))
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
        return cls(gemm, value, float_of(gemm, "beta", 1.0))

    def is_vector_of(self, columns: int) -> bool:
        """True for a constant of one number, or one per column."""
        held = constant(self.value)
        shapes = ((), (1,), (1, 1), (columns,), (1, columns))
        return held is not None and held.shape in shapes

    def become_row(self, columns: int) -> None:
        """Make it a bias of one number per column."""
        held = constant(self.value)
        assert held is not None
        if self.beta == 1 and held.size == columns:
            return
        factor = np.asarray(self.beta, held.dtype)
        whole = np.broadcast_to(held.reshape(-1), (columns,))
        row = np.ascontiguousarray(whole * factor)
        name = f"{self.value.name}_row"
        made = add_initializer(owner(self.gemm), name, row)
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
    dtype = np.dtype(np.float32)
    if like.dtype is not None:
        dtype = like.dtype.numpy()
    held = np.asarray(number, dtype)
    return add_initializer(owner(node), f"{node.name}_{tag}", held)


def _transposed(node: Node, value: Value, tag: str, layouts: Layouts) -> Value:
    if is_constant(value):
        return layouts.of(node, value, "turned", _turn)
    return before(node, "Transpose", [value], tag, {"perm": [1, 0]})


def _turn(matrix: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(matrix.T)


def _add_after(node: Node, addend: _Addend) -> None:
    """Let an Add of its own do what Gemm does with anything but a bias."""
    old = node.outputs[0]
    product = ir.node("Gemm", list(node.inputs), dict(node.attributes), name=node.name)
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
    return int(rows if int_of(gemm, "transB", 0) == 1 else columns)


def matrix_on_the_right(node: Node, layouts: Layouts) -> None:
    """Bring a MatMul with one constant to ``x @ W``.

    W is a matrix, or a stack of matrices where the constant is one.
    """
    left = node.inputs[0]
    right = node.inputs[1]
    if left is None or right is None or is_constant(left) == is_constant(right):
        return
    is_on_the_left = is_constant(left)
    x, held = (right, left) if is_on_the_left else (left, right)
    rank = rank_of(x)
    assert held.const_value is not None
    shape = held.const_value.shape.numpy()
    if rank is None or len(shape) < 2:
        return
    *stack, _, _ = shape
    # With fewer axes in x than in the stack, the result has more axes than x.
    if stack and rank >= len(shape) and set(stack) == {1}:
        held = layouts.of(node, held, "matrix", _without_stack)
        node.replace_input_with(0 if is_on_the_left else 1, held)
        stack = []
    if is_on_the_left and not stack:
        _from_the_left(node, held, x, layouts)


def _without_stack(array: np.ndarray) -> np.ndarray:
    return array.reshape(array.shape[-2:])


def _from_the_left(node: Node, held: Value, x: Value, layouts: Layouts) -> None:
    """``W @ x`` is the swap of ``swap(x) @ swap(W)``."""
    turned = layouts.of(node, held, "turned", _turn)
    assert x.shape is not None
    rank = len(x.shape)
    if rank == 1:
        node.replace_input_with(0, x)
        node.replace_input_with(1, turned)
        return
    order = swap_last(rank)
    inner = before(node, "Transpose", [x], "swap_in", {"perm": order})
    inner.shape = ir.Shape([x.shape[axis] for axis in order])
    product = ir.node("MatMul", [inner, turned], name=node.name)
    product.meta[LEFT] = held.const_value
    owner(node).insert_before(node, [product])
    result = product.outputs[0]
    result.name = f"{node.name}_swapped"
    result.type = node.outputs[0].type
    node.name = f"{node.name}_replaced"
    swapped = before(node, "Transpose", [result], "swap_out", {"perm": order})
    replace_with(node, swapped)
