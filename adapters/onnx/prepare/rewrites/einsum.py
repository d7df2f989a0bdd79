"""Einsum with a constant as transpositions, reshapes and one MatMul: a linear op like any other.

``bsd,dhk->bshk``: letters of x that go on come first, those that are summed over last; the constant
becomes a matrix with the summed letters as rows and its own as columns. ONNX Runtime carries Einsum
out in the same way, so nothing is lost where it stays float.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from onnx_ir import Node, Value

from octavo.adapters.onnx.prepare.constants import add_initializer, is_constant
from octavo.adapters.onnx.prepare.patterns import rank_of
from octavo.adapters.onnx.prepare.scopes import owner

from .layouts import Layouts, before, replace_with

_KEPT = 0
"""In the shape of a Reshape: the length that an axis has already."""


@dataclass(frozen=True)
class _Terms:
    """The letters of an activation, of a constant, and of their result, an ellipsis written out."""

    x: Sequence[str]
    weight: Sequence[str]
    result: Sequence[str]

    @property
    def summed(self) -> list[str]:
        """Letters of both that are summed over."""
        return [n for n in self.x if n in self.weight and n not in self.result]

    @property
    def stacked(self) -> list[str]:
        """Letters of both that go on: those of a stack of matrices."""
        return [n for n in self.x if n in self.weight and n in self.result]

    @property
    def kept(self) -> list[str]:
        """Letters of the activation alone: the rows of the result."""
        return [n for n in self.x if n not in self.weight]

    @property
    def columns(self) -> list[str]:
        """Letters of the constant alone."""
        return [n for n in self.weight if n not in self.x]

    def lengths_of(self, letters: Sequence[str], lengths: Sequence[int]) -> list[int]:
        """Return how long the axes of the constant with these letters are."""
        return [lengths[self.weight.index(n)] for n in letters]

    def are_a_product(self) -> bool:
        """True where a MatMul computes the result."""
        for letters in (self.x, self.weight, self.result):
            if len(set(letters)) != len(letters):
                return False  # a diagonal
        goes_on = {*self.stacked, *self.kept, *self.columns}
        if not self.summed or goes_on != set(self.result):
            return False  # no product, or a sum over one side alone
        # A stack of matrices takes one axis of rows and one that is summed.
        return not self.stacked or len(self.kept) == len(self.summed) == 1


def product_from_einsum(node: Node, layouts: Layouts) -> None:
    """Write an Einsum of an activation and a constant as a product, where it is one."""
    if len(node.inputs) != 2 or "equation" not in node.attributes:
        return
    left, right = node.inputs
    if left is None or right is None or is_constant(left) == is_constant(right):
        return
    equation = node.attributes["equation"].as_string()
    letters = _letters(equation, left, right)
    if letters is None:
        return
    of_left, of_right, result = letters
    if is_constant(left):
        x = right
        weight = left
        terms = _Terms(of_right, of_left, result)
    else:
        x = left
        weight = right
        terms = _Terms(of_left, of_right, result)
    if not terms.are_a_product():
        return
    assert weight.const_value is not None
    lengths = weight.const_value.shape.numpy()
    matrices = _as_matrices(node, weight, terms, layouts)
    rows = _as_rows(node, x, terms, lengths)
    product = before(node, "MatMul", [rows, matrices], "product")
    replace_with(node, _as_result(node, product, terms, lengths))


def _as_rows(node: Node, x: Value, terms: _Terms, lengths: Sequence[int]) -> Value:
    """Bring the activation into the form (stacked, kept, summed as one axis)."""
    stacked = terms.stacked
    kept = terms.kept
    summed = terms.summed
    value = _turned(node, x, terms.x, stacked + kept + summed, "in")
    if len(summed) == 1:
        return value
    # There are no stacked letters here: a stack has one summed letter.
    width = prod(terms.lengths_of(summed, lengths))
    unchanged = [_KEPT] * len(kept)
    return _reshaped(node, value, [*unchanged, width], "rows")


def _as_result(
    node: Node, product: Value, terms: _Terms, lengths: Sequence[int]
) -> Value:
    """Bring the product (stacked, kept, columns as one axis) into the order of the result."""
    written = terms.stacked + terms.kept
    value = product
    if len(terms.columns) != 1:
        columns = terms.lengths_of(terms.columns, lengths)
        unchanged = [_KEPT] * len(written)
        value = _reshaped(node, value, unchanged + columns, "columns")
    return _turned(node, value, written + terms.columns, terms.result, "out")


def _as_matrices(node: Node, weight: Value, terms: _Terms, layouts: Layouts) -> Value:
    """Return the constant with its summed letters as rows and its own as columns."""
    stacked = terms.stacked
    summed = terms.summed
    columns = terms.columns
    order = [terms.weight.index(n) for n in (*stacked, *summed, *columns)]
    first_row = len(stacked)
    first_column = first_row + len(summed)

    def change(array: np.ndarray) -> np.ndarray:
        turned = np.ascontiguousarray(array.transpose(order))
        lengths = turned.shape
        rows = prod(lengths[first_row:first_column])
        width = prod(lengths[first_column:])
        return turned.reshape(*lengths[:first_row], rows, width)

    axes = "".join(map(str, order))
    return layouts.of(node, weight, f"rows_{axes}_{len(summed)}", change)


def _letters(
    equation: str, left: Value, right: Value
) -> tuple[list[str], list[str], list[str]] | None:
    """Return the letters of both inputs and of the result.

    An ellipsis of known rank is written out; None where that is unknown.
    """
    inputs, arrow, result = equation.replace(" ", "").partition("->")
    parts = inputs.split(",")
    if len(parts) != 2:
        return None
    written: list[list[str]] = []
    spread = ""
    for part, value in zip(parts, (left, right), strict=True):
        rank = rank_of(value)
        if rank is None:
            return None
        if "..." in part:
            missing = rank - len(part.replace("...", ""))
            # Digits, which no equation has as letters.
            spread = "".join(chr(ord("0") + i) for i in range(missing))
            part = part.replace("...", spread)
        if len(part) != rank:
            return None
        written.append(list(part))
    if not arrow:
        result = _implied_result(inputs, spread)
    of_left, of_right = written
    return of_left, of_right, list(result.replace("...", spread))


def _implied_result(inputs: str, spread: str) -> str:
    """Without an arrow the result has the letters that occur once, in the alphabet's order."""
    once = [c for c in inputs if c.isalpha() and inputs.count(c) == 1]
    return spread + "".join(sorted(once))


def _turned(
    node: Node, value: Value, has: Sequence[str], wants: Sequence[str], tag: str
) -> Value:
    if list(has) == list(wants):
        return value
    perm = [has.index(letter) for letter in wants]
    return before(node, "Transpose", [value], f"turn_{tag}", {"perm": perm})


def _reshaped(node: Node, value: Value, shape: Sequence[int], tag: str) -> Value:
    wanted = np.array(shape, np.int64)
    held = add_initializer(owner(node), f"{node.name}_{tag}_shape", wanted)
    return before(node, "Reshape", [value, held], tag)
