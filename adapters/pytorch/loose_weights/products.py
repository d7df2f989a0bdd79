"""Matrix products by a weight, whichever way they are written, as calls of a linear layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .forms import Form
from .refs import Ref

Tensor = torch.Tensor
Labels = tuple[Any, ...]
"""One hashable name for each axis; axes of equal names are one."""
Arrange = Callable[[Any], Any]


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
    batch = tuple(axis[n] for n in names.batch)
    index = None
    if weight.picked is not None:
        picked_axis, index = weight.picked
        batch = (picked_axis,)
    free = tuple(axis[n] for n in names.free)
    summed = tuple(axis[n] for n in names.summed)
    form = Form("product", batch, free, summed)
    before = _before(names, of_x)
    after = _after(names, result, weight, of_weight)
    return Use(form, x, before, after, index)


def _sorted(of_x: Labels, weight: Ref, of_weight: Labels, result: Labels) -> _Sorted | None:
    """Sort the names; None where a name stands twice, or some axis is neither summed nor kept."""
    if any(len(set(names)) != len(names) for names in (of_x, of_weight, result)):
        return None
    axis = dict(zip(of_weight, weight.axes, strict=True))
    batch: list[Any] = []
    summed: list[Any] = []
    free: list[Any] = []
    for name in sorted(of_weight, key=axis.__getitem__):
        in_result = name in result
        if name in of_x:
            (batch if in_result else summed).append(name)
        elif in_result:
            free.append(name)
        else:
            return None
    rest = [n for n in of_x if n not in axis]
    if not summed or not free or not set(rest) <= set(result):
        return None
    if len(result) != len(batch) + len(rest) + len(free):
        return None
    return _Sorted(tuple(batch), tuple(summed), tuple(free), tuple(rest))


def _before(names: _Sorted, of_x: Labels) -> Arrange:
    """Return what lays a value out as (batch, *rest, summed)."""
    wanted = (*names.batch, *names.rest, *names.summed)
    order = tuple(of_x.index(n) for n in wanted)
    is_ordered = order == tuple(range(len(order)))
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
    batches = tuple(size[n] for n in names.batch)
    free = tuple(size[n] for n in names.free)
    made = (*names.batch, *names.rest, *names.free)
    order = tuple(made.index(n) for n in result)
    is_ordered = order == tuple(range(len(order)))

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
    if weight.picked is None:
        return Use(Form("product", (), (free,), (summed,)), x)
    axis, index = weight.picked
    return Use(Form("product", (axis,), (free,), (summed,)), x, index=index)


def linear(x: Any, weight: Any, bias: Any = None) -> Use | None:
    """Return ``F.linear`` as a layer's call."""
    if not isinstance(weight, Ref) or isinstance(x, Ref) or len(weight.shape) != 2:
        return None
    use = _plain(x, weight.turned())
    if bias is None:
        return use
    return Use(use.form, x, None, lambda y: y + bias, use.index)


def matmul(left: Any, right: Any) -> Use | None:
    """Return ``left @ right`` as a layer's call."""
    if isinstance(left, Ref):
        return None if isinstance(right, Ref) else _batched(right, left, weight_first=True)
    if not isinstance(right, Ref):
        return None
    if len(right.shape) == 2:
        return _plain(left, right)
    return _batched(left, right, weight_first=False)


def _batched(x: Any, weight: Ref, *, weight_first: bool) -> Use | None:
    """Return a product whose leading axes are aligned from the right, as ``torch.matmul`` does."""
    count = rank(x)
    if count is None or len(weight.shape) < 2:
        return None
    lead = [("w", i) for i in range(len(weight.shape) - 2)]
    of_weight: Labels = (*lead, "n", "k") if weight_first else (*lead, "k", "n")
    if count == 1:
        return product(x, ("k",), weight, of_weight, (*lead, "n"))
    outer: list[Any] = [("x", i) for i in range(count - 2)]
    for i in range(1, min(len(lead), len(outer)) + 1):
        # An axis that is broadcast is no batch of matrices.
        if x.shape[-2 - i] != weight.shape[-2 - i]:
            return None
        outer[-i] = lead[-i]
    more = max(0, len(lead) - len(outer))
    longest = [*lead[:more], *outer]
    if weight_first:
        return product(x, (*outer, "k", "r"), weight, of_weight, (*longest, "n", "r"))
    return product(x, (*outer, "r", "k"), weight, of_weight, (*longest, "r", "n"))


def einsum(args: Sequence[Any]) -> Use | None:
    """Return ``torch.einsum`` of a value and a weight as a layer's call."""
    operands = list(args[1:])
    if len(operands) == 1 and isinstance(operands[0], list | tuple):
        operands = list(operands[0])
    if sum(isinstance(o, Ref) for o in operands) != 1 or len(operands) != 2:
        return None
    terms, arrow, out = args[0].replace(" ", "").partition("->")
    first, comma, second = terms.partition(",")
    if not arrow or not comma:
        return None
    if isinstance(operands[1], Ref):
        x, weight = operands
        of_x, of_weight = first, second
    else:
        weight, x = operands
        of_weight, of_x = first, second
    if "..." in of_weight or ("..." in of_x) != ("..." in out):
        return None
    more: Labels = ()
    if "..." in of_x:
        count = rank(x)
        if count is None:
            return None
        named = len(of_x) - len("...")
        more = tuple(("...", i) for i in range(count - named))
    return product(x, _labels(of_x, more), weight, tuple(of_weight), _labels(out, more))


def _labels(term: str, more: Labels) -> Labels:
    """Return the labels of a term of an equation; an ellipsis stands for ``more``."""
    before, dots, after = term.partition("...")
    return (*before, *more, *after) if dots else tuple(term)


def tensordot(a: Any, b: Any, dims: Any = 2, out: Any = None) -> Use | None:
    """Return ``torch.tensordot`` of a value and a weight as a layer's call."""
    place = 1 if isinstance(b, Ref) else 0
    x, weight = (a, b) if place else (b, a)
    count = rank(x)
    if count is None or not isinstance(weight, Ref) or out is not None:
        return None
    ranks = [count, count]
    ranks[place] = len(weight.shape)
    summed = _summed_pairs(dims, ranks[0])
    if summed is None:
        return None
    names: list[list[Any]] = []
    for side, axes in enumerate(ranks):
        names.append([(side, i) for i in range(axes)])
    for i, j in zip(*summed, strict=True):
        names[1][j] = names[0][i]
    met = set(names[0]) & set(names[1])
    result = tuple(n for n in (*names[0], *names[1]) if n not in met)
    return product(x, tuple(names[1 - place]), weight, tuple(names[place]), result)


def _summed_pairs(dims: Any, first_rank: int) -> list[list[int]] | None:
    """Return which axes of the first and of the second operand are summed over, pair by pair."""
    if isinstance(dims, int):
        return [list(range(first_rank - dims, first_rank)), list(range(dims))]
    if not isinstance(dims, list | tuple) or len(dims) != 2:
        return None
    return [list(d) if isinstance(d, list | tuple) else [d] for d in dims]
