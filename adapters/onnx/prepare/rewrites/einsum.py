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

Letters = Sequence[str]

_ELLIPSIS = "..."

_KEPT = 0
"""In the shape of a Reshape: the length that an axis has already."""


@dataclass(frozen=True)
class _Terms:
    """The letters of an activation, of a constant, and of their result, an ellipsis written out."""

    x: Letters
    weight: Letters
    result: Letters

    @property
    def shared(self) -> list[str]:
        """Letters of both."""
        return [n for n in self.x if n in self.weight]

    @property
    def summed(self) -> list[str]:
        """Letters of both that are summed over."""
        return [n for n in self.shared if n not in self.result]

    @property
    def stacked(self) -> list[str]:
        """Letters of both that go on: those of a stack of matrices."""
        return [n for n in self.shared if n in self.result]

    @property
    def kept(self) -> list[str]:
        """Letters of the activation alone: the rows of the result."""
        return [n for n in self.x if n not in self.weight]

    @property
    def columns(self) -> list[str]:
        """Letters of the constant alone."""
        return [n for n in self.weight if n not in self.x]

    def axes_of(self, letters: Letters) -> list[int]:
        """Return which axes of the constant have these letters."""
        return [self.weight.index(n) for n in letters]

    def lengths_of(self, letters: Letters, lengths: Sequence[int]) -> list[int]:
        """Return how long the axes of the constant with these letters are."""
        axes = self.axes_of(letters)
        return [lengths[axis] for axis in axes]

    def are_a_product(self) -> bool:
        """True where a MatMul computes the result."""
        for letters in (self.x, self.weight, self.result):
            different = set(letters)
            if len(different) != len(letters):
                return False  # a diagonal
        if not self.summed:
            return False
        goes_on = {*self.stacked, *self.kept, *self.columns}
        if goes_on != set(self.result):
            return False  # a sum over one side alone
        if not self.stacked:
            return True
        # A stack of matrices takes one axis of rows and one that is summed.
        return len(self.kept) == len(self.summed) == 1


def product_from_einsum(node: Node, layouts: Layouts) -> None:
    """Write an Einsum of an activation and a constant as a product, where it is one."""
    if len(node.inputs) != 2:
        return
    left, right = node.inputs
    attribute = node.attributes.get("equation")
    if left is None or right is None or attribute is None:
        return
    is_left_constant = is_constant(left)
    if is_left_constant == is_constant(right):
        return
    equation = attribute.as_string()
    letters = _letters(equation, left, right)
    if letters is None:
        return
    of_left, of_right, result = letters
    if is_left_constant:
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
    found = _as_result(node, product, terms, lengths)
    replace_with(node, found)


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
    order = terms.axes_of(stacked + summed + columns)
    first_row = len(stacked)
    first_column = first_row + len(summed)

    def change(array: np.ndarray) -> np.ndarray:
        ordered = array.transpose(order)
        turned = np.ascontiguousarray(ordered)
        lengths = turned.shape
        stack = lengths[:first_row]
        rows = prod(lengths[first_row:first_column])
        width = prod(lengths[first_column:])
        return turned.reshape(*stack, rows, width)

    axes = "".join(map(str, order))
    return layouts.of(node, weight, f"rows_{axes}_{len(summed)}", change)


def _letters(
    equation: str, left: Value, right: Value
) -> tuple[list[str], list[str], list[str]] | None:
    """Return the letters of both inputs and of the result.

    An ellipsis of known rank is written out; None where that is unknown.
    """
    compact = equation.replace(" ", "")
    inputs, arrow, result = compact.partition("->")
    parts = inputs.split(",")
    if len(parts) != 2:
        return None
    written: list[list[str]] = []
    spread = ""
    for part, value in zip(parts, (left, right), strict=True):
        rank = rank_of(value)
        if rank is None:
            return None
        if _ELLIPSIS in part:
            spread = _spread(part, rank)
        whole = part.replace(_ELLIPSIS, spread)
        if len(whole) != rank:
            return None
        written.append(list(whole))
    if not arrow:
        result = _implied_result(inputs, spread)
    of_left, of_right = written
    of_result = result.replace(_ELLIPSIS, spread)
    return of_left, of_right, list(of_result)


def _spread(part: str, rank: int) -> str:
    """Return the letters that an ellipsis stands for in an input of some rank."""
    named = part.replace(_ELLIPSIS, "")
    missing = rank - len(named)
    # Digits, which no equation has as letters.
    zero = ord("0")
    return "".join(chr(zero + i) for i in range(missing))


def _implied_result(inputs: str, spread: str) -> str:
    """Without an arrow the result has the letters that occur once, in the alphabet's order."""
    letters = filter(str.isalpha, inputs)
    once = [letter for letter in letters if inputs.count(letter) == 1]
    ordered = "".join(sorted(once))
    return spread + ordered


def _turned(node: Node, value: Value, has: Letters, wants: Letters, tag: str) -> Value:
    if list(has) == list(wants):
        return value
    order = [has.index(letter) for letter in wants]
    attributes = {"perm": order}
    return before(node, "Transpose", [value], f"turn_{tag}", attributes)


def _reshaped(node: Node, value: Value, shape: Sequence[int], tag: str) -> Value:
    graph = owner(node)
    wanted = np.array(shape, np.int64)
    held = add_initializer(graph, f"{node.name}_{tag}_shape", wanted)
    return before(node, "Reshape", [value, held], tag)
