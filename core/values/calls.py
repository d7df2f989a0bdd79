"""What one call of a model takes: arguments in order and by name, whose values are trees of arrays
and plain values."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from octavo.core.errors import DataError, nearest

from .trees import PLAIN, is_array, is_container, leaves, mapped


class Call:
    """Arguments of one call, in order and by name: ``Call(x, mask=mask)``.

    Needed only where a batch has both, or where a single mapping, list or tuple is itself the
    argument: ``Call(images)``.

    Args:
        *args: In call order.
        **kwargs: By name.
    """

    __slots__ = ("args", "kwargs")

    def __init__(self, /, *args: Any, **kwargs: Any) -> None:
        self.args = args
        self.kwargs: Mapping[str, Any] = kwargs

    def __repr__(self) -> str:
        given = [*map(_shown, self.args), *(f"{k}={_shown(v)}" for k, v in self.kwargs.items())]
        return f"Call({', '.join(given)})"


Batch: TypeAlias = Mapping[str, Any] | tuple[Any, ...] | Call
"""One batch of model inputs: by name, in call order, or both. Values are trees of arrays and plain
values."""


def parts(batch: Batch) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    """Return what goes in order, and what goes by name."""
    if isinstance(batch, Call):
        return batch.args, batch.kwargs
    if isinstance(batch, Mapping):
        return (), batch
    return batch, {}


def plainest(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Batch:
    """Return a tuple or a mapping where one of them says it all; else a :class:`Call`."""
    if not kwargs:
        return tuple(args)
    return Call(*args, **kwargs) if args else dict(kwargs)


def named(batch: Batch, names: Sequence[str]) -> list[tuple[str, Any]]:
    """Return (input name, value) pairs of a batch, in its order.

    Args:
        batch: One batch.
        names: What the model takes, in call order; empty where that is unknown.

    Raises:
        DataError: If a name is not an input of the model.
    """
    args, kwargs = parts(batch)
    for name in kwargs:
        if names and name not in names:
            raise DataError(f"{name!r} is not an input of the model{nearest(str(name), names)}")
    ordered = [
        (names[i] if i < len(names) else f"input {i}", value) for i, value in enumerate(args)
    ]
    return [*ordered, *kwargs.items()]


def named_leaves(batch: Batch, names: Sequence[str] = ()) -> Iterator[tuple[str, Any]]:
    """Yield (path, leaf) of all values of a batch: ``x``, ``b.mask``, ``b.boxes[0]``."""
    args, kwargs = parts(batch)
    for index, value in enumerate(args):
        yield from leaves(value, names[index] if index < len(names) else f"input {index}")
    for name, value in kwargs.items():
        yield from leaves(value, str(name))


def arrays_in(batch: Batch) -> list[Any]:
    """Return the arrays of a batch in order."""
    return [leaf for _, leaf in named_leaves(batch) if is_array(leaf)]


def changed(batch: Batch, change: Callable[[Any], Any]) -> Batch:
    """Return a batch of the same form with every leaf changed."""
    args, kwargs = parts(batch)
    return plainest(
        [mapped(v, change) for v in args], {k: mapped(v, change) for k, v in kwargs.items()}
    )


def flat(batch: Batch, names: Sequence[str]) -> Mapping[str, Any] | tuple[Any, ...]:
    """Return a batch for a model whose inputs are single arrays: trees as their arrays in order, or
    by path.

    Plain values beyond the model's inputs are left out: where a graph was made from code, they are
    constants in it.

    Args:
        batch: One batch.
        names: The model's inputs, in call order.
    """
    args, kwargs = parts(batch)
    if all(is_array(v) for v in (*args, *kwargs.values())):
        ordered, by_name = list(args), dict(kwargs)
    else:
        ordered = [leaf for v in args for leaf in _spread(v)]
        by_name = {path: leaf for k, v in kwargs.items() for path, leaf in _spread_named(str(k), v)}
        if len(ordered) > len(names):
            ordered = [v for v in ordered if not isinstance(v, PLAIN)]
        by_name = {k: v for k, v in by_name.items() if k in names or not isinstance(v, PLAIN)}
    if not by_name:
        return tuple(ordered)
    return {**dict(named(tuple(ordered), names)), **by_name}


def _spread(value: Any) -> list[Any]:
    return [leaf for _, leaf in _spread_named("", value)]


def _spread_named(name: str, value: Any) -> list[tuple[str, Any]]:
    """Return the arrays of a tree; a list of numbers is one array to be."""
    if is_container(value):
        found = [(path, leaf) for path, leaf in leaves(value, name) if is_array(leaf)]
        return found or [(name, value)]
    return [] if value is None else [(name, value)]


def shown(batch: Batch, names: Sequence[str] = ()) -> str:
    """Return a batch in words: shapes and dtypes of arrays, types of other values."""
    return (
        ", ".join(f"{path} {_shown(leaf)}" for path, leaf in named_leaves(batch, names))
        or "nothing"
    )


def _shown(value: Any) -> str:
    if is_array(value):
        return f"{str(value.dtype).removeprefix('torch.')}{tuple(int(d) for d in value.shape)}"
    return (
        repr(value) if isinstance(value, PLAIN) and len(repr(value)) < 30 else type(value).__name__
    )


__all__ = [
    "Batch",
    "Call",
    "arrays_in",
    "changed",
    "flat",
    "named",
    "named_leaves",
    "parts",
    "plainest",
    "shown",
]
