"""Look-ups in a constant along any axis, as look-ups of rows of a matrix."""

from __future__ import annotations

from math import prod

import numpy as np
from onnx_ir import Node, Value

from octavo.adapters.onnx.prepare.constants import add_initializer, is_constant
from octavo.adapters.onnx.prepare.patterns import FLOATS, int_of, rank_of
from octavo.adapters.onnx.prepare.scopes import owner

from .layouts import Layouts, before, replace_with


def rows_of_table(node: Node, layouts: Layouts) -> None:
    """Write a Gather on a floating constant as one along the first axis of a matrix.

    The rest is a Reshape and a Transpose.
    """
    table = node.inputs[0]
    indices = node.inputs[1]
    rank = rank_of(indices)
    if table is None or rank is None or is_constant(indices):
        return
    shape = _shape_of(table)
    axes = len(shape)
    if axes < 2 or 0 in shape:
        return
    # It may be counted from the end.
    axis = int_of(node, "axis", 0) % axes
    if axis == 0 and axes == 2:
        return  # it is one already
    rest = shape[:axis] + shape[axis + 1 :]
    matrix = _matrix(node, table, axis, layouts)
    along_rows = {"axis": 0}
    value = before(node, "Gather", [matrix, indices], "rows", along_rows)
    if len(rest) > 1:
        value = _with_axes(node, value, rank, rest)
    if axis:
        order = _indices_in_place(rank, axis, len(rest))
        in_place = {"perm": order}
        value = before(node, "Transpose", [value], "in_place", in_place)
    replace_with(node, value)


def _with_axes(node: Node, value: Value, rank: int, rest: list[int]) -> Value:
    """Give rows that were looked up the axes that the table has beside the one looked up in."""
    # 0 stands for the length that an axis has already.
    unchanged = [0] * rank
    lengths = np.array(unchanged + rest, np.int64)
    graph = owner(node)
    wanted = add_initializer(graph, f"{node.name}_shape", lengths)
    return before(node, "Reshape", [value, wanted], "rest")


def _shape_of(table: Value) -> list[int]:
    """Return the shape of a floating constant; empty for anything else."""
    if not is_constant(table) or table.dtype not in FLOATS:
        return []
    held = table.const_value
    assert held is not None
    lengths = held.shape.numpy()
    return list(map(int, lengths))


def _indices_in_place(rank: int, axis: int, rest: int) -> list[int]:
    """Return the permutation that puts the axes of the indices where the table's axis stood."""
    total = rank + rest
    indices = list(range(rank))
    others = list(range(rank, total))
    return others[:axis] + indices + others[axis:]


def _matrix(node: Node, table: Value, axis: int, layouts: Layouts) -> Value:
    """Return a table as a matrix whose rows go along an axis."""

    def as_rows(array: np.ndarray) -> np.ndarray:
        moved = np.moveaxis(array, axis, 0)
        first = np.ascontiguousarray(moved)
        rows, *rest = first.shape
        width = prod(rest)
        return first.reshape(rows, width)

    return layouts.of(node, table, f"rows_of_axis_{axis}", as_rows)
