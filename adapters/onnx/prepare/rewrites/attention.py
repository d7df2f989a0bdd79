"""Masked softmax without a test for NaN on every score.

PyTorch's exporter guards rows whose every score is masked with -inf: ``Where(IsNaN(p), 0, p)`` over
all scores, which takes longer than the quantized products beside it. The same function, one row at
a time: scores are masked with the lowest finite number, and the attention's result is multiplied by
0 in rows that are masked throughout.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir import DataType, Graph, Node, Value

from octavo.adapters.onnx.prepare.constants import add_initializer, constant
from octavo.adapters.onnx.prepare.patterns import (
    int_of,
    is_standard,
    only_use,
    producer_at,
    producer_of,
    rank_of,
)

_LOWEST = np.float32(np.finfo(np.float32).min)
_MASK_MOVERS = ("Expand", "Unsqueeze", "Reshape", "Slice")
_Made = dict[Value, tuple[Value, Value]]


@dataclass(frozen=True)
class _Guarded:
    """A softmax over masked scores, guarded against NaN.

    Attributes:
        where: The guard.
        probabilities: What it guards.
        masked: The Add that masks the scores.
        index: Which of its inputs is the mask.
        product: The MatMul that alone reads the guarded probabilities.
    """

    where: Node
    probabilities: Value
    masked: Node
    index: int
    product: Node

    @property
    def mask(self) -> Value:
        mask = self.masked.inputs[self.index]
        assert mask is not None
        return mask


def simplify_masked_softmax(graph: Graph) -> int:
    """Rewrite every guarded softmax of a graph; return how many were found."""
    made: _Made = {}
    found = 0
    for node in list(graph):
        if not is_standard(node, "Where"):
            continue
        guarded = _match(node)
        if guarded is not None:
            _rewrite(graph, guarded, made)
            found += 1
    return found


def _match(where: Node) -> _Guarded | None:
    test, replacement, probabilities = where.inputs[:3]
    is_nan = producer_of(test)
    softmax = producer_of(probabilities)
    if probabilities is None or is_nan is None or softmax is None:
        return None
    if is_nan.op_type != "IsNaN" or is_nan.inputs[0] is not probabilities:
        return None
    if softmax.op_type != "Softmax" or not _is_over_last_axis(softmax):
        return None
    zero = constant(replacement)
    if zero is None or np.any(zero != 0):
        return None
    # The test and the guard read the probabilities; nobody else may.
    if len(probabilities.uses()) != 2:
        return None
    masked = producer_at(softmax, 0)
    product = _sole_product(where.outputs[0])
    if masked is None or masked.op_type != "Add" or product is None:
        return None
    index = _mask_index(masked)
    if index is None or len(masked.outputs[0].uses()) != 1:
        return None
    return _Guarded(where, probabilities, masked, index, product)


def _mask_index(masked: Node) -> int | None:
    for index, value in enumerate(masked.inputs):
        if _hides(value) is not None:
            return index
    return None


def _rewrite(graph: Graph, found: _Guarded, made: _Made) -> None:
    mask = found.mask
    found.where.outputs[0].replace_all_uses_with(found.probabilities)
    # Finite masks leave no row without a finite score, so no NaN either.
    if not _hides(mask):
        return
    if mask not in made:
        made[mask] = _finite_mask(graph, mask)
    finite, keep = made[mask]
    found.masked.replace_input_with(found.index, finite)
    _clear_rows(graph, found.product, keep)


def _clear_rows(graph: Graph, product: Node, keep: Value) -> None:
    """Multiply what a product writes by 1, or by 0 in rows that are masked throughout."""
    result = product.outputs[0]
    cleared = ir.node("Mul", [result, keep], name=f"{product.name}_masked_rows")
    output = cleared.outputs[0]
    output.name = f"{result.name}_cleared"
    output.type = result.type
    output.shape = result.shape
    graph.insert_after(product, [cleared])
    result.replace_all_uses_with(output)
    cleared.replace_input_with(0, result)


def _is_over_last_axis(softmax: Node) -> bool:
    axis = int_of(softmax, "axis", -1)
    if axis == -1:
        return True
    rank = rank_of(softmax.inputs[0])
    return rank is not None and axis == rank - 1


def _sole_product(value: Value) -> Node | None:
    use = only_use(value)
    if use is None:
        return None
    node, index = use
    if node.op_type != "MatMul" or index != 0:
        return None
    if node.outputs[0].is_graph_output():
        return None
    return node


def _hides(value: Value | None) -> bool | None:
    """Whether a mask made of a condition and two constants holds -inf; None if it is no mask."""
    node = producer_of(value)
    if node is None or value is None or value.dtype != DataType.FLOAT:
        return None
    if node.op_type in _MASK_MOVERS:
        return _hides(node.inputs[0])
    if node.op_type != "Where":
        return None
    hides = False
    for choice in node.inputs[1:3]:
        array = constant(choice)
        if array is None or array.size != 1:
            return None
        if np.isnan(array).any() or np.isposinf(array).any():
            return None
        hides |= bool(np.isneginf(array).any())
    return hides


def _finite_mask(graph: Graph, mask: Value) -> tuple[Value, Value]:
    """Return the mask with finite numbers, and 1 for rows in which anything counts, else 0."""
    producer = mask.producer()
    assert producer is not None
    name = mask.name
    lowest = add_initializer(graph, "lowest_score", np.asarray(_LOWEST))
    nodes: list[Node] = []

    def add(
        op_type: str,
        inputs: list[Value],
        tag: str,
        attributes: Mapping[str, Any] | None = None,
        dtype: DataType = DataType.FLOAT,
    ) -> Value:
        node = ir.node(op_type, inputs, attributes, name=f"{name}_{tag}")
        result = node.outputs[0]
        result.name = f"{name}_{tag}"
        result.type = ir.TensorType(dtype)
        nodes.append(node)
        return result

    finite = add("Max", [mask, lowest], "finite")
    if graph.opset_imports.get("", 0) < 18:
        best = add("ReduceMax", [finite], "best", {"axes": [-1], "keepdims": 1})
    else:
        # From opset 18 on the axes are an input.
        last = np.array([-1], np.int64)
        axes = add_initializer(graph, "last_axis", last)
        best = add("ReduceMax", [finite, axes], "best", {"keepdims": 1})
    counts = add("Greater", [best, lowest], "counts", dtype=DataType.BOOL)
    keep = add("Cast", [counts], "rows", {"to": DataType.FLOAT.value})
    graph.insert_after(producer, nodes)
    return finite, keep
