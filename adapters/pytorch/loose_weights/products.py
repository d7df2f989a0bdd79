"""Sums of products of a value and a weight as calls of a linear layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .forms import Form
from .refs import Ref

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


def product(
    x: Any, of_x: Labels, weight: Ref, of_weight: Labels, result: Labels
) -> Use | None:
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


def _sorted(
    of_x: Labels, weight: Ref, of_weight: Labels, result: Labels
) -> _Sorted | None:
    """Sort the names; None where a name stands twice, or some axis is neither summed nor kept."""
    for names in (of_x, of_weight, result):
        if len(set(names)) != len(names):
            return None
    axis = dict(zip(of_weight, weight.axes, strict=True))
    batch: list[Any] = []
    summed: list[Any] = []
    free: list[Any] = []
    # In the order of the parameter's own axes, so that one form has one name for all spellings.
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
