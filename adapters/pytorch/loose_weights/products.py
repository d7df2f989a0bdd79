"""Matrix products by a weight, whichever way they are written, as calls of a linear layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from .forms import Form
from .refs import Ref

Tensor = torch.Tensor
Labels = tuple[Any, ...]
"""One hashable name for each axis; axes of equal names are one."""
Arrange = Callable[[Any], Any]
_DOTS = "..."


@dataclass(frozen=True)
class Use:
    """A call as that of a layer.

    Attributes:
        form: What the layer must be.
        x: What the layer is given, before :attr:`before`.
        before: Arranges it.
        after: Arranges the layer's result.
        index: For a layer of many matrices: the one that is called.
    """

    form: Form
    x: Any
    before: Arrange | None = None
    after: Arrange | None = None
    index: int | None = None

    def run(self, layer: Arrange) -> Any:
        """Return the call's result."""
        x = self.x
        if self.before is not None:
            x = self.before(x)
        y = layer(x)
        return y if self.after is None else self.after(y)


@dataclass(frozen=True)
class _Sorted:
    """The names of the axes of a product's operands, by what becomes of them.

    Attributes:
        batch: Of the weight: every index has a product of its own.
        summed: Of the weight: summed over.
        free: Of the weight: the result's alone.
        rest: Of the value: the result's alone.
    """

    batch: Labels
    summed: Labels
    free: Labels
    rest: Labels


def rank(value: Any) -> int | None:
    """Return how many axes a value has; None where that is not known.

    It is not while a graph is traced.
    """
    return value.dim() if isinstance(value, Tensor) else None


def product(x: Any, of_x: Labels, weight: Ref, of_weight: Labels, result: Labels) -> Use | None:
    """Return a sum of products as a layer's call; None where it is none of one layer.

    Args:
        x: A value.
        of_x: The names of its axes.
        weight: The weight.
        of_weight: The names of its axes.
        result: The names of the result's axes, in order.
    """
    names = _sorted(of_x, weight, of_weight, result)
    if names is None or (weight.picked is not None and names.batch):
        return None
    axis = dict(zip(of_weight, weight.axes, strict=True))
    batch = _found(axis, names.batch)
    index = None
    if weight.picked is not None:
        picked_axis, index = weight.picked
        batch = (picked_axis,)
    return Use(
        form=Form(
            "product",
            batch=batch,
            free=_found(axis, names.free),
            summed=_found(axis, names.summed),
        ),
        x=x,
        before=_before(names, of_x),
        after=_after(names, result, weight, of_weight),
        index=index,
    )


def _found(table: Mapping[Any, int], names: Labels) -> tuple[int, ...]:
    return tuple(table[name] for name in names)


def _sorted(of_x: Labels, weight: Ref, of_weight: Labels, result: Labels) -> _Sorted | None:
    """Sort the names; None where a name stands twice, or some axis is neither summed nor kept."""
    for names in (of_x, of_weight, result):
        if len(set(names)) != len(names):
            return None
    axis = dict(zip(of_weight, weight.axes, strict=True))
    batch: list[Any] = []
    summed: list[Any] = []
    free: list[Any] = []
    for name in sorted(of_weight, key=axis.__getitem__):
        if name not in of_x:
            free.append(name)
        elif name in result:
            batch.append(name)
        else:
            summed.append(name)
    rest = [name for name in of_x if name not in axis]
    kept = [*batch, *rest, *free]
    if not summed or not free or set(kept) != set(result):
        return None
    return _Sorted(
        batch=tuple(batch),
        summed=tuple(summed),
        free=tuple(free),
        rest=tuple(rest),
    )


def _before(names: _Sorted, of_x: Labels) -> Arrange:
    """Return what lays a value out as (batch, *rest, summed)."""
    wanted = (*names.batch, *names.rest, *names.summed)
    order = tuple(of_x.index(name) for name in wanted)
    is_ordered = list(order) == sorted(order)
    batches = len(names.batch)
    summed = len(names.summed)

    def before(value: Any) -> Any:
        if not is_ordered:
            value = value.permute(order)
        if summed > 1:
            value = value.flatten(-summed)
        if batches > 1:
            value = value.flatten(0, batches - 1)
        return value

    return before


def _after(names: _Sorted, result: Labels, weight: Ref, of_weight: Labels) -> Arrange:
    """Return what lays a layer's result out as the call's."""
    size = dict(zip(of_weight, weight.shape, strict=True))
    batches = _found(size, names.batch)
    free = _found(size, names.free)
    made = (*names.batch, *names.rest, *names.free)
    order = tuple(made.index(name) for name in result)
    is_ordered = list(order) == sorted(order)

    def after(value: Any) -> Any:
        if len(batches) > 1:
            value = value.unflatten(0, batches)
        if len(free) > 1:
            value = value.unflatten(-1, free)
        return value if is_ordered else value.permute(order)

    return after


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
    if not isinstance(weight, Ref) or isinstance(x, Ref):
        return None
    if len(weight.shape) != 2:
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
    lead = [("w", i) for i in range(len(weight.shape) - 2)]
    of_weight: Labels = (*lead, "n", "k") if weight_first else (*lead, "k", "n")
    if count == 1:
        return product(x, ("k",), weight, of_weight, (*lead, "n"))
    outer: list[Any] = [("x", i) for i in range(count - 2)]
    shared = min(len(lead), len(outer))
    for i in range(1, shared + 1):
        axis = -2 - i
        # An axis that is broadcast is no batch of matrices.
        if x.shape[axis] != weight.shape[axis]:
            return None
        outer[-i] = lead[-i]
    missing = max(0, len(lead) - len(outer))
    longest = [*lead[:missing], *outer]
    if weight_first:
        of_x: Labels = (*outer, "k", "r")
        result: Labels = (*longest, "n", "r")
    else:
        of_x = (*outer, "r", "k")
        result = (*longest, "r", "n")
    return product(x, of_x, weight, of_weight, result)


def einsum(args: Sequence[Any]) -> Use | None:
    """Return ``torch.einsum`` of a value and a weight as a layer's call."""
    equation = args[0].replace(" ", "")
    operands = list(args[1:])
    # They may be given as one list.
    if len(operands) == 1 and isinstance(operands[0], list | tuple):
        operands = list(operands[0])
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
    if _DOTS in of_weight or (_DOTS in of_x) != (_DOTS in out):
        return None
    more: Labels = ()
    if _DOTS in of_x:
        count = rank(x)
        if count is None:
            return None
        named = len(of_x) - len(_DOTS)
        more = tuple((_DOTS, i) for i in range(count - named))
    names = _labels(of_x, more)
    result = _labels(out, more)
    return product(x, names, weight, tuple(of_weight), result)


def _labels(term: str, more: Labels) -> Labels:
    """Return the labels of a term of an equation; an ellipsis stands for ``more``."""
    before, dots, after = term.partition(_DOTS)
    if not dots:
        return tuple(term)
    return (*before, *more, *after)


def tensordot(a: Any, b: Any, dims: Any = 2, out: Any = None) -> Use | None:
    """Return ``torch.tensordot`` of a value and a weight as a layer's call."""
    weight_last = isinstance(b, Ref)
    x, weight = (a, b) if weight_last else (b, a)
    count = rank(x)
    if count is None or not isinstance(weight, Ref) or out is not None:
        return None
    rank_a, rank_b = count, len(weight.shape)
    if not weight_last:
        rank_a, rank_b = rank_b, rank_a
    summed = _summed_axes(dims, rank_a)
    if summed is None:
        return None
    of_a: list[Any] = [("a", i) for i in range(rank_a)]
    of_b: list[Any] = [("b", i) for i in range(rank_b)]
    for i, j in zip(*summed, strict=True):
        of_b[j] = of_a[i]
    met = set(of_a) & set(of_b)
    result = tuple(name for name in (*of_a, *of_b) if name not in met)
    if weight_last:
        return product(x, tuple(of_a), weight, tuple(of_b), result)
    return product(x, tuple(of_b), weight, tuple(of_a), result)


def _summed_axes(dims: Any, first_rank: int) -> tuple[list[int], list[int]] | None:
    """Return which axes of the first and of the second operand are summed over, pair by pair."""
    if isinstance(dims, int):
        # The last of the one, the first of the other.
        start = first_rank - dims
        return list(range(start, first_rank)), list(range(dims))
    if not isinstance(dims, list | tuple) or len(dims) != 2:
        return None
    first, second = dims
    return _listed(first), _listed(second)


def _listed(axes: Any) -> list[int]:
    return list(axes) if isinstance(axes, list | tuple) else [axes]
