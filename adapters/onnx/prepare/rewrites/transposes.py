"""A swap of the last two axes in one Transpose.

PyTorch's exporter writes it for every attention as Reshape, Transpose, Reshape, with nine nodes
more that compute the two shapes. At batch 1 those take a tenth of a quantized encoder's time.
"""

from __future__ import annotations

import math

import onnx_ir as ir
from onnx_ir import Graph, Node, Value

from octavo.adapters.onnx.prepare.constants import constant, take_over
from octavo.adapters.onnx.prepare.patterns import (
    int_of,
    ints_of,
    is_standard,
    producer_at,
    producer_of,
    rank_of,
)

from .layouts import swap_last

_Dim = int | str
"""A number, or ``axis 2`` for what the second-to-last axis of a rank-4 value turns out to have."""

_END = 2**31
"""Where a slice ends that goes on to the last axis."""


def swap_last_axes(graph: Graph) -> int:
    """Rewrite every ``Reshape(Transpose(Reshape(x, [-1, m, n]), [0, 2, 1]), [..., n, m])``.

    Returns:
        How many were found.
    """
    found = 0
    for node in list(graph):
        if not is_standard(node, "Reshape"):
            continue
        source = _swapped(node)
        if source is not None:
            _rewrite(graph, node, source)
            found += 1
    return found


def _swapped(last: Node) -> Value | None:
    """Return the value of which a Reshape completes the swap of the last two axes."""
    swap = producer_at(last, 0)
    if not is_standard(swap, "Transpose"):
        return None
    if ints_of(swap, "perm") != [0, 2, 1]:
        return None
    first = producer_at(swap, 0)
    if not is_standard(first, "Reshape"):
        return None
    source = first.inputs[0]
    rank = rank_of(source)
    if source is None or rank is None or rank < 3:
        return None
    flat = _dims(first.inputs[1], source)
    full = _dims(last.inputs[1], source)
    own = _own_dims(source)
    *leading, rows, columns = own
    if full != [*leading, columns, rows]:
        return None
    if flat is None or flat[1:] != [rows, columns]:
        return None
    if not _is_product(flat[0], leading):
        return None
    return source


def _is_product(length: _Dim, leading: list[_Dim]) -> bool:
    """True if all axes before the last two are one of this length; -1 stands for what is left."""
    if length == -1:
        return True
    numbers = [d for d in leading if isinstance(d, int)]
    return len(numbers) == len(leading) and length == math.prod(numbers)


def _rewrite(graph: Graph, last: Node, source: Value) -> None:
    rank = rank_of(source)
    assert rank is not None
    read: Value | None = source
    order = swap_last(rank)
    before = producer_of(source)
    inner = None
    if is_standard(before, "Transpose"):
        inner = ints_of(before, "perm")
    if before is not None and inner is not None:
        # Two permutations, one after the other, are one.
        read = before.inputs[0]
        order = [inner[axis] for axis in order]
    perm = {"perm": order}
    node = ir.node("Transpose", [read], perm, name=f"{last.name}_swap")
    graph.insert_before(last, [node])
    take_over(node.outputs[0], last.outputs[0])
    graph.remove(last, safe=True)


def _own_dims(value: Value) -> list[_Dim]:
    assert value.shape is not None
    return [d if isinstance(d, int) else f"axis {i}" for i, d in enumerate(value.shape)]


def _dims(shape: Value | None, of: Value) -> list[_Dim] | None:
    """Return what a vector of dimensions is made of.

    None if anything but constants and dimensions of ``of`` is in it.
    """
    held = constant(shape)
    if held is not None:
        return [int(d) for d in held.ravel()]
    node = producer_of(shape)
    if is_standard(node, "Shape"):
        return _shape_dims(node, of)
    if is_standard(node, "Concat"):
        return _concatenated_dims(node, of)
    if is_standard(node, "Slice"):
        return _sliced_dims(node, of)
    return None


def _shape_dims(node: Node, of: Value) -> list[_Dim] | None:
    if node.inputs[0] is not of:
        return None
    start = int_of(node, "start", 0)
    end = int_of(node, "end", _END)
    return _own_dims(of)[start:end]


def _concatenated_dims(node: Node, of: Value) -> list[_Dim] | None:
    joined: list[_Dim] = []
    for value in node.inputs:
        part = _dims(value, of)
        if part is None:
            return None
        joined += part
    return joined


def _sliced_dims(node: Node, of: Value) -> list[_Dim] | None:
    """Return a slice of dimensions; None for one along another axis, or with steps."""
    numbers = []
    for value in node.inputs[1:]:
        array = constant(value)
        if array is None or array.size != 1:
            return None
        numbers.append(int(array.reshape(-1)[0]))
    start, end, *axis_and_step = numbers
    found = _dims(node.inputs[0], of)
    if found is None or axis_and_step not in ([], [0], [0, 1]):
        return None
    return found[start:end]
