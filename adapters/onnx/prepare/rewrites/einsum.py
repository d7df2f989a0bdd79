"""Einsum with a constant as transpositions, reshapes and one MatMul, so that its weight is one of a linear op.

``bsd,dhk->bshk``: letters of x that go on come first, those that are summed over last; the constant becomes a matrix with
the summed letters as rows and its own as columns. ONNX Runtime carries Einsum out in the same way, so nothing is lost
where it stays float.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
import onnx_ir as ir

from octavo.adapters.onnx.prepare.constants import add_initializer, is_constant
from octavo.adapters.onnx.prepare.scopes import owner

from .layouts import Layouts, before, replace_with


def product_from_einsum(node: ir.Node, layouts: Layouts) -> None:
    """Write an Einsum of an activation and a constant as a product, where no letter counts both and goes on."""
    if len(node.inputs) != 2 or "equation" not in node.attributes:
        return
    left, right = node.inputs
    if left is None or right is None or is_constant(left) == is_constant(right):
        return
    terms = _terms(node.attributes["equation"].as_string(), left, right)
    if terms is None:
        return
    x, weight = (right, left) if is_constant(left) else (left, right)
    of_x, of_w, result = (terms[1], terms[0], terms[2]) if is_constant(left) else terms
    if any(len(set(term)) != len(term) for term in (of_x, of_w, result)):
        return  # a diagonal
    summed = [letter for letter in of_x if letter in of_w and letter not in result]
    stacked = [letter for letter in of_x if letter in of_w and letter in result]
    kept = [letter for letter in of_x if letter not in of_w]
    columns = [letter for letter in of_w if letter not in of_x]
    if not summed or set(kept) | set(columns) | set(stacked) != set(result):
        return  # no product, or a sum over one side alone
    if stacked and not len(kept) == len(summed) == 1:
        return  # a stack of matrices takes one axis of rows and one that is summed
    assert weight.const_value is not None
    sizes = dict(zip(of_w, weight.const_value.shape.numpy(), strict=True))
    order = [of_w.index(letter) for letter in (*stacked, *summed, *columns)]
    rows, width = prod(sizes[n] for n in summed), prod(sizes[n] for n in columns)
    shape = [*(sizes[n] for n in stacked), rows, width]
    tag = "rows_" + "".join(map(str, order)) + f"_{len(summed)}"
    matrix = layouts.of(
        node, weight, tag, lambda a: np.ascontiguousarray(a.transpose(order)).reshape(shape)
    )
    value = _turned(node, x, of_x, [*stacked, *kept, *summed], "in")
    if len(summed) > 1:
        value = _reshaped(node, value, [*[0] * len(kept), rows], "rows")
    value = before(node, "MatMul", [value, matrix], "product")
    if len(columns) != 1:
        value = _reshaped(
            node,
            value,
            [*[0] * (len(stacked) + len(kept)), *(sizes[n] for n in columns)],
            "columns",
        )
    value = _turned(node, value, [*stacked, *kept, *columns], result, "out")
    if value.producer() is None:
        return
    replace_with(node, value)


def _terms(
    equation: str, left: ir.Value, right: ir.Value
) -> tuple[list[str], list[str], list[str]] | None:
    """Return the letters of both inputs and of the result, an ellipsis of known rank written out; None where that is unknown."""
    inputs, arrow, result = equation.replace(" ", "").partition("->")
    parts = inputs.split(",")
    if len(parts) != 2:
        return None
    letters: list[list[str]] = []
    spread = ""
    for part, value in zip(parts, (left, right), strict=True):
        if value.shape is None:
            return None
        missing = len(value.shape) - len(part.replace("...", ""))
        if "..." in part:
            spread = "".join(chr(ord("0") + i) for i in range(missing))
            part = part.replace("...", spread)
        if len(part) != len(value.shape):
            return None
        letters.append(list(part))
    if not arrow:
        once = sorted(c for c in inputs if c.isalpha() and inputs.count(c) == 1)
        result = "..." * bool(spread) + "".join(once)
    return letters[0], letters[1], list(result.replace("...", spread))


def _turned(
    node: ir.Node, value: ir.Value, has: Sequence[str], wants: Sequence[str], tag: str
) -> ir.Value:
    if list(has) == list(wants):
        return value
    perm = [list(has).index(letter) for letter in wants]
    return before(node, "Transpose", [value], f"turn_{tag}", {"perm": perm})


def _reshaped(node: ir.Node, value: ir.Value, shape: Sequence[int], tag: str) -> ir.Value:
    """Reshape; 0 stands for the length that an axis has already."""
    held = add_initializer(owner(node), f"{node.name}_{tag}_shape", np.array(shape, np.int64))
    return before(node, "Reshape", [value, held], tag)
