"""Look-ups in a constant along any axis, as look-ups of rows of a matrix."""

from __future__ import annotations

from math import prod

import numpy as np
import onnx_ir as ir

from octavo.adapters.onnx.prepare.constants import add_initializer, is_constant
from octavo.adapters.onnx.prepare.scopes import owner

from .layouts import Layouts, before, replace_with

_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)


def rows_of_table(node: ir.Node, layouts: Layouts) -> None:
    """Write a Gather on a floating constant as one along the first axis of a matrix; the rest is a Reshape and a Transpose."""
    table, indices = node.inputs[0], node.inputs[1]
    if (
        table is None
        or indices is None
        or not is_constant(table)
        or is_constant(indices)
        or table.dtype not in _FLOATS
    ):
        return
    assert table.const_value is not None
    shape = tuple(int(n) for n in table.const_value.shape.numpy())
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
    axis %= max(1, len(shape))
    if len(shape) < 2 or (axis == 0 and len(shape) == 2) or indices.shape is None or 0 in shape:
        return
    order = [axis, *(i for i in range(len(shape)) if i != axis)]
    rest = [shape[i] for i in order[1:]]
    rank = len(indices.shape)
    tag = f"rows_of_axis_{axis}"
    matrix = layouts.of(
        node,
        table,
        tag,
        lambda array: np.ascontiguousarray(array.transpose(order)).reshape(shape[axis], prod(rest)),
    )
    value = before(node, "Gather", [matrix, indices], "rows", {"axis": 0})
    if len(rest) > 1:
        wanted = add_initializer(
            owner(node), f"{node.name}_shape", np.array([*[0] * rank, *rest], np.int64)
        )
        value = before(node, "Reshape", [value, wanted], "rest")
    if axis:
        # The axes of the indices stand where the table's axis stood.
        perm = [*range(rank, rank + axis), *range(rank), *range(rank + axis, rank + len(rest))]
        value = before(node, "Transpose", [value], "in_place", {"perm": perm})
    replace_with(node, value)
