"""Masked softmax without a test for NaN on every score.

PyTorch's exporter guards rows whose every score is masked with -inf: ``Where(IsNaN(p), 0, p)`` over all scores, which takes
longer than the quantized products beside it. The same function, one row at a time: scores are masked with the lowest finite
number, and the attention's result is multiplied by 0 in rows that are masked throughout.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from octavo.adapters.onnx.prepare.constants import add_initializer, constant

_LOWEST = np.float32(np.finfo(np.float32).min)


def simplify_masked_softmax(graph: ir.Graph) -> int:
    """Rewrite every guarded softmax of a graph; return how many were found."""
    made: dict[ir.Value, tuple[ir.Value, ir.Value]] = {}
    found = 0
    for node in list(graph):
        if node.op_type == "Where" and node.domain == "" and _rewrite(graph, node, made):
            found += 1
    return found


def _rewrite(
    graph: ir.Graph, where: ir.Node, made: dict[ir.Value, tuple[ir.Value, ir.Value]]
) -> bool:
    test, replacement, probabilities = where.inputs[0], where.inputs[1], where.inputs[2]
    is_nan = test.producer() if test is not None else None
    softmax = probabilities.producer() if probabilities is not None else None
    if (
        is_nan is None
        or softmax is None
        or is_nan.op_type != "IsNaN"
        or softmax.op_type != "Softmax"
        or is_nan.inputs[0] is not probabilities
    ):
        return False
    zero = constant(replacement)
    if zero is None or np.any(zero != 0) or _axis(softmax) != -1:
        return False
    if probabilities is None or len(tuple(probabilities.uses())) != 2:
        return False
    masked = softmax.inputs[0].producer() if softmax.inputs[0] is not None else None
    product = _sole_product(where.outputs[0])
    if (
        masked is None
        or masked.op_type != "Add"
        or len(masked.outputs[0].uses()) != 1
        or product is None
    ):
        return False
    index = next((i for i, v in enumerate(masked.inputs) if _hides(v) is not None), None)
    if index is None:
        return False
    mask = masked.inputs[index]
    assert mask is not None
    if not _hides(mask):  # finite masks leave no row without a finite score, so no NaN either
        where.outputs[0].replace_all_uses_with(probabilities)
        return True
    if mask not in made:
        made[mask] = _finite_mask(graph, mask)
    finite, keep = made[mask]
    masked.replace_input_with(index, finite)
    where.outputs[0].replace_all_uses_with(probabilities)
    result = product.outputs[0]
    cleared = ir.node("Mul", [result, keep], name=f"{product.name}_masked_rows")
    output = cleared.outputs[0]
    output.name, output.type, output.shape = f"{result.name}_cleared", result.type, result.shape
    graph.insert_after(product, [cleared])
    result.replace_all_uses_with(output)
    cleared.replace_input_with(0, result)
    return True


def _axis(softmax: ir.Node) -> int:
    axis = softmax.attributes["axis"].as_int() if "axis" in softmax.attributes else -1
    shape = softmax.inputs[0].shape if softmax.inputs[0] is not None else None
    return -1 if shape is not None and axis == len(shape) - 1 else axis


def _sole_product(value: ir.Value) -> ir.Node | None:
    uses = tuple(value.uses())
    if len(uses) != 1 or value.is_graph_output():
        return None
    node, index = uses[0]
    return (
        node
        if node.op_type == "MatMul" and index == 0 and not node.outputs[0].is_graph_output()
        else None
    )


def _hides(value: ir.Value | None) -> bool | None:
    """Whether a mask made of a condition and two constants holds -inf; None if the value is no such mask."""
    node = value.producer() if value is not None else None
    if node is None or value is None or value.dtype != ir.DataType.FLOAT:
        return None
    if node.op_type in ("Expand", "Unsqueeze", "Reshape", "Slice"):
        return _hides(node.inputs[0])
    if node.op_type != "Where":
        return None
    held = [a for v in node.inputs[1:3] if (a := constant(v)) is not None and a.size == 1]
    if len(held) < 2 or any(np.isnan(a).any() or np.isposinf(a).any() for a in held):
        return None
    return any(bool(np.isneginf(a).any()) for a in held)


def _finite_mask(graph: ir.Graph, mask: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Return the mask with finite numbers, and 1 for rows in which anything counts, 0 for the others."""
    name, producer = mask.name, mask.producer()
    assert producer is not None
    lowest = add_initializer(graph, "lowest_score", np.asarray(_LOWEST))
    finite = ir.node("Max", [mask, lowest], name=f"{name}_finite")
    best = ir.node(
        "ReduceMax",
        [finite.outputs[0], add_initializer(graph, "last_axis", np.array([-1], np.int64))],
        {"keepdims": 1},
        name=f"{name}_best",
    )
    if graph.opset_imports.get("", 0) < 18:
        best = ir.node(
            "ReduceMax", [finite.outputs[0]], {"axes": [-1], "keepdims": 1}, name=f"{name}_best"
        )
    counts = ir.node("Greater", [best.outputs[0], lowest], name=f"{name}_counts")
    keep = ir.node(
        "Cast", [counts.outputs[0]], {"to": ir.DataType.FLOAT.value}, name=f"{name}_rows"
    )
    for node, tag, dtype in (
        (finite, "finite", ir.DataType.FLOAT),
        (best, "best", ir.DataType.FLOAT),
        (counts, "counts", ir.DataType.BOOL),
        (keep, "rows", ir.DataType.FLOAT),
    ):
        node.outputs[0].name, node.outputs[0].type = f"{name}_{tag}", ir.TensorType(dtype)
    graph.insert_after(producer, [finite, best, counts, keep])
    return finite.outputs[0], keep.outputs[0]
