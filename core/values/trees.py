"""Nested containers of arrays and plain values, as models take them: walked and rebuilt in one
place."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from octavo.core.errors import DataError

PLAIN = (type(None), bool, int, float, complex, str, bytes)
"""Types of values beside arrays that a model may take; their subclasses (enumerations)
count too."""

DEPTH = 64
"""How deep containers may lie in each other; what is deeper most likely holds itself."""


def is_array(value: object) -> bool:
    """True for NumPy arrays, tensors and whatever else has a shape and a dtype."""
    return hasattr(value, "shape") and hasattr(value, "dtype")


def is_container(value: object) -> bool:
    """True for mappings, lists, tuples (named ones too) and instances of dataclasses."""
    return isinstance(value, (Mapping, list, tuple)) or _is_record(value)


def children(value: Any) -> list[tuple[str, Any]]:
    """Return what a container holds, each with the step that leads to it: ``.key``, ``[0]``, ``[(1,
    2)]``."""
    if isinstance(value, Mapping):
        # By keys(): a BatchEncoding of transformers iterates over other things.
        return [(_step(key), value[key]) for key in value.keys()]  # noqa: SIM118
    if isinstance(value, (list, tuple)):
        names = getattr(value, "_fields", None)
        if names is not None and len(names) == len(value):
            steps = [f".{name}" for name in names]
        else:
            steps = [f"[{index}]" for index in range(len(value))]
        return list(zip(steps, value, strict=True))
    if _is_record(value):
        return [(f".{name}", getattr(value, name)) for name in _fields(value)]
    return []


def leaves(value: Any, path: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Yield (path, leaf) of a tree in order: ``b.x.a``, ``b.l[0]``. Containers that hold nothing
    yield nothing.

    Raises:
        DataError: If containers are nested without end.
    """
    if not is_container(value):
        yield path, value
        return
    if depth == DEPTH:
        raise DataError(
            f"{path[:60]}...: containers are nested more than {DEPTH} deep; does one hold itself?"
        )
    for step, child in children(value):
        yield from leaves(child, path + step, depth + 1)


def mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """Return a tree of the same containers with every leaf changed; a container without a changed
    leaf is kept as it is."""
    if not is_container(value):
        return change(value)
    old = [child for _, child in children(value)]
    new = [mapped(child, change) for child in old]
    if all(a is b for a, b in zip(old, new, strict=True)):
        return value
    return _rebuilt(value, new)


def _rebuilt(value: Any, items: list[Any]) -> Any:
    if isinstance(value, Mapping):
        table = dict(zip(value.keys(), items, strict=True))
        if type(value) is dict:
            return table
        try:
            # A copy keeps what a class of mappings carries beside its items (the encodings of a
            # tokenizer, a default).
            twin: Any = copy.copy(value)
            for key, item in table.items():
                twin[key] = item
        except TypeError:  # a mapping that cannot be written to
            return table
        return twin
    if isinstance(value, (list, tuple)):
        if hasattr(value, "_fields"):
            return type(value)(*items)
        return type(value)(items)
    twin = copy.copy(value)
    for name, item in zip(_fields(value), items, strict=True):
        # Frozen ones too, and without __post_init__.
        object.__setattr__(twin, name, item)
    return twin


def _is_record(value: object) -> bool:
    return (
        dataclasses.is_dataclass(value)
        and not isinstance(value, type)
        and not is_array(value)
    )


def _fields(value: Any) -> list[str]:
    return [
        field.name for field in dataclasses.fields(value) if hasattr(value, field.name)
    ]


def _step(key: object) -> str:
    return f".{key}" if isinstance(key, str) else f"[{key!r}]"


__all__ = ["DEPTH", "PLAIN", "children", "is_array", "is_container", "leaves", "mapped"]
