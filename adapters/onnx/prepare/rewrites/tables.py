"""Look-ups in a constant along any axis, as look-ups of rows of a matrix."""

from __future__ import annotations

from math import prod

import numpy as np
import onnx_ir as ir

from octavo.adapters.onnx.prepare.constants import add_initializer, is_constant
from octavo.adapters.onnx.prepare.patterns import FLOATS, int_of, rank_of
from octavo.adapters.onnx.prepare.scopes import owner

from .layouts import Layouts, before, replace_with


def rows_of_table(node: ir.Node, layouts: Layouts) -> None:
    """Write a Gather on a floating constant as one along the first axis of a matrix.

    The rest is a Reshape and a Transpose.
    """
    table = node.inputs[0]
    indices = node.inputs[1]
    rank = rank_of(indices)
    if table is None or rank is None or is_constant(indices):
        return
    shape = _shape_of(table)
    if len(shape) < 2 or 0 in shape:
        return
    axis = int_of(node, "axis", 0) % len(shape)
    if axis == 0 and len(shape) == 2:
        return  # it is one already
    rest = shape[:axis] + shape[axis + 1 :]
    matrix = _matrix(node, table, axis, layouts)
    value = before(node, "Gather", [matrix, indices], "rows", {"axis": 0})
    if len(rest) > 1:
        # 0 stands for the length that an axis has already.
        lengths = np.array([0] * rank + rest, np.int64)
        wanted = add_initializer(owner(node), f"{node.name}_shape", lengths)
        value = before(node, "Reshape", [value, wanted], "rest")
    if axis:
        order = _indices_in_place(rank, axis, len(rest))
        value = before(node, "Transpose", [value], "in_place", {"perm": order})
    replace_with(node, value)


def _shape_of(table: ir.Value) -> list[int]:
    """Return the shape of a floating constant; empty for anything else."""
    if not is_constant(table) or table.dtype not in FLOATS:
        return []
    assert table.const_value is not None
    return [int(length) for length in table.const_value.shape.numpy()]


def _indices_in_place(rank: int, axis: int, rest: int) -> list[int]:
    """Return the permutation that puts the axes of the indices where the table's axis stood."""
    indices = list(range(rank))
    others = list(range(rank, rank + rest))
    return others[:axis] + indices + others[axis:]


def _matrix(node: ir.Node, table: ir.Value, axis: int, layouts: Layouts) -> ir.Value:
    """Return a table as a matrix whose rows go along an axis."""

    def as_rows(array: np.ndarray) -> np.ndarray:
        first = np.ascontiguousarray(np.moveaxis(array, axis, 0))
        rows, *rest = first.shape
        return first.reshape(rows, prod(rest))

    return layouts.of(node, table, f"rows_of_axis_{axis}", as_rows)
