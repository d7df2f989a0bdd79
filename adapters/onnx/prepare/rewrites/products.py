"""Products with a constant in one form: ``x @ W`` with a matrix W on the right, whatever the model writes.

Gemm has alpha, beta and transA, and adds anything that broadcasts; MatMul takes constants of any rank on either side.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from octavo.adapters.onnx.prepare.constants import (
    add_initializer,
    constant,
    is_constant,
    replace_input,
)
from octavo.adapters.onnx.prepare.scopes import owner

from .layouts import Layouts, before, replace_with, swap_last

LEFT = "octavo.left"
"""Marks a product whose constant stood on the left, and holds that constant: the swaps around it go again where it stays float."""


def plain_gemm(node: ir.Node, layouts: Layouts) -> None:
    """Bring a Gemm to alpha, beta and transA of their defaults and a bias of one number per column.

    A Gemm whose right side is no constant becomes MatMul, with Mul and Add where it needs them.
    """
    a, b = node.inputs[0], node.inputs[1]
    c = node.inputs[2] if len(node.inputs) > 2 else None
    if a is None or b is None:
        return
    alpha, beta = _float(node, "alpha"), _float(node, "beta")
    if _flag(node, "transA"):
        a = _transposed(node, a, "left", layouts)
    if not is_constant(b) or is_constant(a):
        right = _transposed(node, b, "right", layouts) if _flag(node, "transB") else b
        _as_matmul(node, a, right, c, alpha, beta)
        return
    if alpha != 1:
        a = before(node, "Mul", [a, _scalar(node, a, "alpha", alpha)], "alpha")
    node.replace_input_with(0, a)
    for name in ("alpha", "beta", "transA"):
        node.attributes.pop(name, None)
    if c is None:
        return
    columns = _columns(node, b)
    held = constant(c)
    if (
        held is not None
        and columns is not None
        and held.shape in ((), (1,), (1, 1), (columns,), (1, columns))
    ):
        if beta != 1 or held.size != columns:
            row = np.broadcast_to(held.reshape(-1), (columns,)) * np.asarray(beta, held.dtype)
            replace_input(
                node, 2, add_initializer(owner(node), f"{c.name}_row", np.ascontiguousarray(row))
            )
        return
    node.resize_inputs(2)
    _add_after(node, c, beta)


def _as_matmul(
    node: ir.Node, a: ir.Value, b: ir.Value, c: ir.Value | None, alpha: float, beta: float
) -> None:
    found = before(node, "MatMul", [a, b], "product")
    if alpha != 1:
        found = before(node, "Mul", [found, _scalar(node, a, "alpha", alpha)], "alpha")
    if c is not None:
        added = c if beta == 1 else before(node, "Mul", [c, _scalar(node, a, "beta", beta)], "beta")
        found = before(node, "Add", [found, added], "sum")
    replace_with(node, found)


def _transposed(node: ir.Node, value: ir.Value, tag: str, layouts: Layouts) -> ir.Value:
    if is_constant(value):
        return layouts.of(node, value, "turned", _turn)
    return before(node, "Transpose", [value], tag, {"perm": [1, 0]})


def _turn(matrix: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(matrix.T)


def _add_after(node: ir.Node, c: ir.Value, beta: float) -> None:
    """Let an Add of its own do what Gemm does with anything but a bias."""
    old = node.outputs[0]
    product = ir.node("Gemm", list(node.inputs), dict(node.attributes), name=node.name)
    owner(node).insert_before(node, [product])
    product.outputs[0].name, product.outputs[0].type = f"{node.name}_product", old.type
    product.outputs[0].shape = old.shape
    added = c if beta == 1 else before(node, "Mul", [c, _scalar(node, c, "beta", beta)], "beta")
    replace_with(node, before(node, "Add", [product.outputs[0], added], "sum"))


def _float(node: ir.Node, name: str) -> float:
    return node.attributes[name].as_float() if name in node.attributes else 1.0


def _flag(node: ir.Node, name: str) -> bool:
    return name in node.attributes and node.attributes[name].as_int() == 1


def _columns(node: ir.Node, weight: ir.Value) -> int | None:
    if weight.const_value is None or len(weight.const_value.shape) != 2:
        return None
    return int(weight.const_value.shape.numpy()[0 if _flag(node, "transB") else 1])


def _scalar(node: ir.Node, like: ir.Value, tag: str, number: float) -> ir.Value:
    dtype = like.dtype.numpy() if like.dtype is not None else np.float32
    return add_initializer(owner(node), f"{node.name}_{tag}", np.asarray(number, dtype))


def matrix_on_the_right(node: ir.Node, layouts: Layouts) -> None:
    """Bring a MatMul with one constant to ``x @ W``, W a matrix, or a stack of matrices where it is one."""
    left, right = node.inputs[0], node.inputs[1]
    if left is None or right is None or is_constant(left) == is_constant(right):
        return
    x, held = (right, left) if is_constant(left) else (left, right)
    rank = len(x.shape) if x.shape is not None else None
    shape = held.const_value.shape.numpy() if held.const_value is not None else ()
    if rank is None or len(shape) < 2:
        return
    if len(shape) > 2 and rank >= len(shape) and all(n == 1 for n in shape[:-2]):
        matrix = tuple(shape[-2:])
        held = layouts.of(node, held, "matrix", lambda array: array.reshape(matrix))
        node.replace_input_with(0 if x is right else 1, held)
        shape = matrix
    if x is right and len(shape) == 2:
        _from_the_left(node, held, x, rank, layouts)


def _from_the_left(node: ir.Node, held: ir.Value, x: ir.Value, rank: int, layouts: Layouts) -> None:
    """``W @ x`` is the swap of ``swap(x) @ swap(W)``."""
    turned = layouts.of(node, held, "turned", _turn)
    if rank == 1:
        node.replace_input_with(0, x)
        node.replace_input_with(1, turned)
        return
    perm = {"perm": swap_last(rank)}
    inner = before(node, "Transpose", [x], "swap_in", perm)
    assert x.shape is not None
    inner.shape = ir.Shape([x.shape[axis] for axis in perm["perm"]])
    product = ir.node("MatMul", [inner, turned], name=node.name)
    product.meta[LEFT] = held.const_value
    owner(node).insert_before(node, [product])
    result = product.outputs[0]
    result.name, result.type = f"{node.name}_swapped", node.outputs[0].type
    node.name = f"{node.name}_replaced"
    replace_with(node, before(node, "Transpose", [result], "swap_out", perm))


def restore_left(product: ir.Node, tensor: ir.TensorProtocol, register: ir.Graph) -> None:
    """Write a product with its constant on the left again, without the swaps around it."""
    inner = product.inputs[0].producer() if product.inputs[0] is not None else None
    uses = tuple(product.outputs[0].uses())
    if (
        inner is None
        or inner.op_type != "Transpose"
        or len(uses) != 1
        or uses[0][0].op_type != "Transpose"
    ):
        return
    last = uses[0][0]
    turned = product.inputs[1]
    held = _held(register, tensor, turned)
    made = ir.node("MatMul", [held, inner.inputs[0]], name=product.name)
    owner(last).insert_before(last, [made])
    result, old = made.outputs[0], last.outputs[0]
    name = old.name
    result.type, result.shape = old.type, old.shape
    old.replace_all_uses_with(result, replace_graph_outputs=True)
    old.name, result.name = f"{name}_swapped_back", name
    owner(last).remove(last, safe=True)
    owner(product).remove(product, safe=True)
    if not inner.outputs[0].uses():
        owner(inner).remove(inner, safe=True)
    if turned is not None and turned.name is not None and not turned.uses():
        held_by = turned.name
        del register.initializers[held_by]
        held.name = held_by


def _held(graph: ir.Graph, tensor: ir.TensorProtocol, turned: ir.Value | None) -> ir.Value:
    for value in graph.initializers.values():
        if value.const_value is tensor:
            return value
    name = f"{turned.name if turned is not None else 'left'}_left"
    value = ir.Value(
        name=name,
        type=ir.TensorType(tensor.dtype),
        shape=ir.Shape(tensor.shape.numpy()),
        const_value=tensor,
    )
    graph.register_initializer(value)
    return value
