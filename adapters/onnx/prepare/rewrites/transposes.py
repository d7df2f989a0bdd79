"""A swap of the last two axes in one Transpose.

PyTorch's exporter writes it for every attention as Reshape, Transpose, Reshape, with nine nodes more that compute the two
shapes. At batch 1 those take a tenth of a quantized encoder's time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import onnx_ir as ir

from octavo.adapters.onnx.prepare.constants import constant, is_constant, take_over

_Dim = int | str
"""A number, or ``axis 2`` for what the second-to-last axis of a rank-4 value turns out to have."""


def swap_last_axes(graph: ir.Graph) -> int:
    """Rewrite every ``Reshape(Transpose(Reshape(x, [-1, m, n]), [0, 2, 1]), [..., n, m])``; return how many were found."""
    return sum(
        _rewrite(graph, node)
        for node in list(graph)
        if node.op_type == "Reshape" and node.domain == ""
    )


def _rewrite(graph: ir.Graph, last: ir.Node) -> bool:
    swap = _producer(last, "Transpose")
    first = (
        _producer(swap, "Reshape") if swap is not None and _permutation(swap) == [0, 2, 1] else None
    )
    source = first.inputs[0] if first is not None else None
    if first is None or source is None or source.shape is None or len(source.shape) < 3:
        return False
    own = _own(source)
    flat, full = _dims(first.inputs[1], source), _dims(last.inputs[1], source)
    if (
        flat is None
        or full is None
        or len(flat) != 3
        or flat[1:] != own[-2:]
        or full != [*own[:-2], own[-1], own[-2]]
    ):
        return False
    leading = [d for d in own[:-2] if isinstance(d, int)]
    if flat[0] != -1 and (len(leading) < len(own) - 2 or flat[0] != math.prod(leading)):
        return False
    order = [*range(len(own) - 2), len(own) - 1, len(own) - 2]
    before = source.producer()
    if (
        before is not None
        and before.op_type == "Transpose"
        and before.domain == ""
        and (inner := _permutation(before)) is not None
    ):
        source, order = before.inputs[0], [inner[i] for i in order]
    node = ir.node("Transpose", [source], {"perm": order}, name=f"{last.name}_swap")
    graph.insert_before(last, [node])
    take_over(node.outputs[0], last.outputs[0])
    graph.remove(last, safe=True)
    return True


def _producer(node: ir.Node, op_type: str) -> ir.Node | None:
    found = node.inputs[0].producer() if node.inputs[0] is not None else None
    return found if found is not None and found.op_type == op_type and found.domain == "" else None


def _permutation(node: ir.Node) -> list[int] | None:
    return list(node.attributes["perm"].as_ints()) if "perm" in node.attributes else None


def _own(value: ir.Value) -> list[_Dim]:
    assert value.shape is not None
    return [d if isinstance(d, int) else f"axis {i}" for i, d in enumerate(value.shape)]


def _dims(shape: ir.Value | None, of: ir.Value) -> list[_Dim] | None:
    """Return what a vector of dimensions is made of; None if anything but constants and dimensions of ``of`` is in it."""
    held = constant(shape)
    if held is not None:
        return [int(d) for d in held.ravel()]
    node = shape.producer() if shape is not None else None
    if node is None or node.domain != "":
        return None
    if node.op_type == "Shape":
        return (
            _sliced(_own(of), _number(node, "start", 0), _number(node, "end", None))
            if node.inputs[0] is of
            else None
        )
    if node.op_type == "Concat":
        parts = [_dims(v, of) for v in node.inputs]
        return (
            [d for part in parts if part is not None for d in part] if None not in parts else None
        )
    if node.op_type == "Slice":
        rest = node.inputs[1:]
        numbers = [
            int(a.reshape(-1)[0])
            for v in rest
            if is_constant(v) and (a := constant(v)) is not None and a.size == 1
        ]
        found = _dims(node.inputs[0], of)
        if found is None or len(numbers) != len(rest) or numbers[2:] not in ([], [0], [0, 1]):
            return None
        return _sliced(found, numbers[0], numbers[1])
    return None


def _number(node: ir.Node, name: str, default: int | None) -> int | None:
    return node.attributes[name].as_int() if name in node.attributes else default


def _sliced(dims: Sequence[_Dim], start: int | None, end: int | None) -> list[_Dim]:
    return list(dims[start:end])
