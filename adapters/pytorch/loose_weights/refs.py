"""Views of a weight, as they stand in a call's arguments in place of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Ref:
    """A view of a parameter that stands in a call's arguments in place of it.

    Attributes:
        shape: Of the view.
        axes: The parameter's axis of each of the view's.
        picked: Axis and index of a parameter's axis of which the view holds one index.
    """

    shape: tuple[int, ...]
    axes: tuple[int, ...]
    picked: tuple[int, int] | None = None

    def permuted(self, order: Sequence[int]) -> Ref:
        """Return a view with its axes in another order."""
        shape = tuple(self.shape[i] for i in order)
        axes = tuple(self.axes[i] for i in order)
        return Ref(shape, axes, self.picked)

    def turned(self, first: int = -2, second: int = -1) -> Ref:
        """Return a view with two axes exchanged."""
        order = list(range(len(self.shape)))
        order[first] = second
        order[second] = first
        return self.permuted(order)

    def row(self, index: int) -> Ref:
        """Return the view of one index of the first axis of a parameter that is seen as it is."""
        # A negative index counts from the end.
        counted = range(self.shape[0])[index]
        return Ref(
            shape=self.shape[1:],
            axes=self.axes[1:],
            picked=(0, counted),
        )


def whole(shape: Sequence[int]) -> Ref:
    """Return the view of all of a parameter, as it is."""
    return Ref(tuple(shape), _in_order(len(shape)))


def is_whole(weight: Any) -> bool:
    """Return whether an argument is a parameter as it is."""
    if not isinstance(weight, Ref) or weight.picked is not None:
        return False
    return weight.axes == _in_order(len(weight.axes))


def _in_order(count: int) -> tuple[int, ...]:
    return tuple(range(count))
