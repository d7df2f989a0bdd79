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
        given = [_shown(value) for value in self.args]
        given += [f"{name}={_shown(value)}" for name, value in self.kwargs.items()]
        return f"Call({', '.join(given)})"


Batch: TypeAlias = Mapping[str, Any] | tuple[Any, ...] | Call
"""One batch of model inputs: by name, in call order, or both. Values are trees of arrays and plain
values."""

Named: TypeAlias = tuple[str, Any]
"""(name or path, value)."""


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
    if not args:
        return dict(kwargs)
    return Call(*args, **kwargs)


def named(batch: Batch, names: Sequence[str]) -> list[Named]:
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
            hint = nearest(str(name), names)
            raise DataError(f"{name!r} is not an input of the model{hint}")
    pairs: list[Named] = []
    for index, value in enumerate(args):
        name = _name_of(index, names)
        pairs.append((name, value))
    pairs += kwargs.items()
    return pairs


def _name_of(index: int, names: Sequence[str]) -> str:
    return names[index] if index < len(names) else f"input {index}"


def named_leaves(batch: Batch, names: Sequence[str] = ()) -> Iterator[Named]:
    """Yield (path, leaf) of all values of a batch: ``x``, ``b.mask``, ``b.boxes[0]``."""
    args, kwargs = parts(batch)
    for index, value in enumerate(args):
        yield from leaves(value, _name_of(index, names))
    for name, value in kwargs.items():
        yield from leaves(value, str(name))


def arrays_in(batch: Batch) -> list[Any]:
    """Return the arrays of a batch in order."""
    return [leaf for _, leaf in named_leaves(batch) if is_array(leaf)]


def changed(batch: Batch, change: Callable[[Any], Any]) -> Batch:
    """Return a batch of the same form with every leaf changed."""
    args, kwargs = parts(batch)
    ordered = [mapped(value, change) for value in args]
    by_name = {name: mapped(value, change) for name, value in kwargs.items()}
    return plainest(ordered, by_name)


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
    ordered = list(args)
    by_name = dict(kwargs)
    is_flat = all(is_array(value) for value in (*args, *kwargs.values()))
    if not is_flat:
        ordered = _spread_in_order(args, len(names))
        by_name = _spread_by_name(kwargs, names)
    if not by_name:
        return tuple(ordered)
    first = named(tuple(ordered), names)
    return {**dict(first), **by_name}


def _spread_in_order(args: Sequence[Any], inputs: int) -> list[Any]:
    found: list[Any] = []
    for value in args:
        for _, leaf in _spread("", value):
            found.append(leaf)
    if len(found) <= inputs:
        return found
    return [leaf for leaf in found if not isinstance(leaf, PLAIN)]


def _spread_by_name(kwargs: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in kwargs.items():
        found.update(_spread(str(name), value))
    for path in found.keys() - set(names):
        if isinstance(found[path], PLAIN):
            del found[path]
    return found


def _spread(name: str, value: Any) -> list[Named]:
    """Return the arrays of a tree; a list of numbers is one array to be."""
    if value is None:
        return []
    if not is_container(value):
        return [(name, value)]
    arrays = [(path, leaf) for path, leaf in leaves(value, name) if is_array(leaf)]
    return arrays or [(name, value)]


def shown(batch: Batch, names: Sequence[str] = ()) -> str:
    """Return a batch in words: shapes and dtypes of arrays, types of other values."""
    told = [f"{path} {_shown(leaf)}" for path, leaf in named_leaves(batch, names)]
    return ", ".join(told) or "nothing"


def _shown(value: Any) -> str:
    if is_array(value):
        dtype = str(value.dtype).removeprefix("torch.")
        shape = tuple(int(size) for size in value.shape)
        return f"{dtype}{shape}"
    # Long text would hide what stands beside it.
    if isinstance(value, PLAIN) and len(repr(value)) < 30:
        return repr(value)
    return type(value).__name__


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
