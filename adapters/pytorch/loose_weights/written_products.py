"""The ways in which products by a weight are written, each as a call of a linear layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from .forms import Form
from .products import Labels, Use, product
from .refs import Ref

Tensor = torch.Tensor
_DOTS = "..."
_Pairs = tuple[list[int], list[int]]


def rank(value: Any) -> int | None:
    """Return how many axes a value has; None where that is not known.

    It is not while a graph is traced.
    """
    return value.dim() if isinstance(value, Tensor) else None


def _plain(x: Any, weight: Ref) -> Use:
    """Return the product of the last axis of ``x`` and a weight (inputs, outputs).

    The rank of ``x`` need not be known.
    """
    summed, free = weight.axes
    batch: tuple[int, ...] = ()
    index = None
    if weight.picked is not None:
        axis, index = weight.picked
        batch = (axis,)
    form = Form("product", batch, (free,), (summed,))
    return Use(form, x, index=index)


def linear(x: Any, weight: Any, bias: Any = None) -> Use | None:
    """Return ``F.linear`` as a layer's call."""
    if not isinstance(weight, Ref) or len(weight.shape) != 2:
        return None
    if isinstance(x, Ref):
        return None
    use = _plain(x, weight.turned())
    if bias is None:
        return use
    return replace(use, after=lambda y: y + bias)


def matmul(left: Any, right: Any) -> Use | None:
    """Return ``left @ right`` as a layer's call."""
    if isinstance(left, Ref):
        # A product of two weights is no layer's call.
        if isinstance(right, Ref):
            return None
        return _batched(right, left, weight_first=True)
    if not isinstance(right, Ref):
        return None
    if len(right.shape) == 2:
        return _plain(left, right)
    return _batched(left, right, weight_first=False)


def _batched(x: Any, weight: Ref, *, weight_first: bool) -> Use | None:
    """Return a product whose leading axes are aligned from the right, as ``torch.matmul`` does.

    ``k`` is summed over, ``n`` the weight's own and ``r`` the value's.
    """
    count = rank(x)
    if count is None or len(weight.shape) < 2:
        return None
    lead = _labelled("w", len(weight.shape) - 2)
    of_weight: Labels = (*lead, "k", "n")
    if weight_first:
        of_weight = (*lead, "n", "k")
    if count == 1:
        return product(x, ("k",), weight, of_weight, (*lead, "n"))
    outer = _outer(x, weight, lead)
    if outer is None:
        return None
    missing = max(0, len(lead) - len(outer))
    longest = [*lead[:missing], *outer]
    if weight_first:
        of_x: Labels = (*outer, "k", "r")
        result: Labels = (*longest, "n", "r")
    else:
        of_x = (*outer, "r", "k")
        result = (*longest, "r", "n")
    return product(x, of_x, weight, of_weight, result)


def _outer(x: Any, weight: Ref, lead: Sequence[Any]) -> list[Any] | None:
    """Return the names of a value's leading axes; None where one of them is broadcast.

    Args:
        x: The value.
        weight: The weight.
        lead: The names of its leading axes.
    """
    outer = _labelled("x", x.dim() - 2)
    shared = min(len(lead), len(outer))
    for i in range(1, shared + 1):
        axis = -2 - i
        if x.shape[axis] != weight.shape[axis]:
            return None
        outer[-i] = lead[-i]
    return outer


def einsum(args: Sequence[Any]) -> Use | None:
    """Return ``torch.einsum`` of a value and a weight as a layer's call."""
    equation = args[0].replace(" ", "")
    operands = _operands(args)
    terms, arrow, out = equation.partition("->")
    sides = terms.split(",", 1)
    if not arrow or len(operands) != 2 or len(sides) != 2:
        return None
    weight_first = isinstance(operands[0], Ref)
    if weight_first == isinstance(operands[1], Ref):
        return None
    if weight_first:
        operands.reverse()
        sides.reverse()
    x, weight = operands
    of_x, of_weight = sides
    more = _more(x, of_x, of_weight, out)
    if more is None:
        return None
    names = _labels(of_x, more)
    result = _labels(out, more)
    return product(x, names, weight, tuple(of_weight), result)


def _operands(args: Sequence[Any]) -> list[Any]:
    """Return what stands behind an equation; it may be given as one list."""
    operands = list(args[1:])
    if len(operands) != 1:
        return operands
    alone = operands[0]
    return list(alone) if isinstance(alone, list | tuple) else operands


def _more(x: Any, of_x: str, of_weight: str, out: str) -> Labels | None:
    """Return the names of the axes for which an equation has dots.

    None where that cannot be known.
    """
    has_dots = _DOTS in of_x
    if _DOTS in of_weight or has_dots != (_DOTS in out):
        return None
    if not has_dots:
        return ()
    count = rank(x)
    if count is None:
        return None
    named = len(of_x) - len(_DOTS)
    return tuple(_labelled(_DOTS, count - named))


def _labels(term: str, more: Labels) -> Labels:
    """Return the labels of a term of an equation; an ellipsis stands for ``more``."""
    before, dots, after = term.partition(_DOTS)
    if not dots:
        return tuple(term)
    return (*before, *more, *after)


def tensordot(a: Any, b: Any, dims: Any = 2, out: Any = None) -> Use | None:
    """Return ``torch.tensordot`` of a value and a weight as a layer's call."""
    if out is not None:
        return None
    rank_a = _rank_of(a)
    rank_b = _rank_of(b)
    if rank_a is None or rank_b is None or isinstance(a, Ref) == isinstance(b, Ref):
        return None
    of_a = _labelled("a", rank_a)
    of_b = _labelled("b", rank_b)
    summed = _summed_axes(dims, rank_a)
    if summed is None:
        return None
    for i, j in zip(*summed, strict=True):
        of_b[j] = of_a[i]
    met = set(of_a) & set(of_b)
    every = (*of_a, *of_b)
    result = tuple(name for name in every if name not in met)
    if isinstance(b, Ref):
        return product(a, tuple(of_a), b, tuple(of_b), result)
    return product(b, tuple(of_b), a, tuple(of_a), result)


def _rank_of(operand: Any) -> int | None:
    if isinstance(operand, Ref):
        return len(operand.shape)
    return rank(operand)


def _summed_axes(dims: Any, first_rank: int) -> _Pairs | None:
    """Return which axes of the first and of the second operand are summed over, pair by pair."""
    if isinstance(dims, int):
        # The last of the one, the first of the other.
        start = first_rank - dims
        last = range(start, first_rank)
        return list(last), list(range(dims))
    if not isinstance(dims, list | tuple) or len(dims) != 2:
        return None
    first, second = dims
    return _listed(first), _listed(second)


def _listed(axes: Any) -> list[int]:
    if isinstance(axes, list | tuple):
        return list(axes)
    return [axes]


def _labelled(side: str, count: int) -> list[Any]:
    """Return names for so many axes of one operand."""
    return [(side, i) for i in range(count)]
