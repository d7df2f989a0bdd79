"""References to modules outside of the tables of children: attributes, plain containers, bound
methods and closures."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from types import CellType, FunctionType, MethodType
from typing import Any

import torch
from torch import nn

_Table = Mapping[int, nn.Module]
"""Identity of a module -> what replaces it."""
_Found = Iterator[tuple[str, nn.Module]]
"""Name of a place -> the module there."""
_PLAIN = (list, tuple, dict)
_BARE = frozenset(
    {int, float, str, bool, type(None), OrderedDict, set, torch.dtype, torch.Size}
)
"""Most attributes of modules are of these types, and none leads to a module that a
forward calls."""
_DEPTH = 5
"""Containers and closures may hold themselves."""
_MACHINERY = frozenset(nn.Module().__dict__)
"""What every module keeps for itself: tables of hooks and the like."""
_TABLES = ("_parameters", "_buffers", "_modules")


def mapped(value: Any, table: _Table, depth: int = 0) -> Any:
    """Return a value that refers to the modules of ``table`` in place of others; the value itself
    where it refers to none.

    Args:
        value: A module; a list, tuple or dictionary that holds some, at any depth; a method or
            function that is bound to one, partial over one or closes over one; or what has a method
            ``rebound(table)``, which returns the same over other modules. Any other value is
            returned as it is.
        table: Identity of a module -> what replaces it.
        depth: Of the value in what was given at first.
    """
    kind = type(value)
    if kind in _BARE or depth > _DEPTH:
        return value
    if isinstance(value, nn.Module):
        return table.get(id(value), value)
    if kind in _PLAIN or _is_named_tuple(value):
        return _container(value, table, depth + 1)
    if kind is MethodType:
        return _method(value, table, depth + 1)
    if kind is FunctionType:
        original = _before_compiling(value)
        if original is not None:
            return mapped(original, table, depth + 1)
        return _function(value, table, depth + 1)
    if kind is partial:
        return _partial(value, table, depth + 1)
    rebound = getattr(kind, "rebound", None)
    if rebound is None:
        return value
    return rebound(value, table)


def _is_named_tuple(value: Any) -> bool:
    return isinstance(value, tuple) and hasattr(value, "_fields")


def _container(value: Any, table: _Table, depth: int) -> Any:
    is_dict = isinstance(value, dict)
    items = list(value.values() if is_dict else value)
    new = [mapped(item, table, depth) for item in items]
    if _are_the_same(items, new):
        return value
    if is_dict:
        return dict(zip(value, new, strict=True))
    if _is_named_tuple(value):
        return type(value)(*new)
    return type(value)(new)


def _method(value: MethodType, table: _Table, depth: int) -> MethodType:
    owner = value.__self__
    function = value.__func__
    new_owner = owner
    if isinstance(owner, nn.Module):
        new_owner = mapped(owner, table)
    new = mapped(function, table, depth)
    if new_owner is owner and new is function:
        return value
    return MethodType(new, new_owner)


def _before_compiling(value: FunctionType) -> Any:
    """Return what torch.compile made a function of, which runs any modules, not only those it was
    compiled with; else None."""
    original = value.__dict__.get("_torchdynamo_orig_callable")
    # torch wraps the methods of its own modules once more; the wrapper goes by their names.
    code = getattr(original, "__code__", None)
    if code is None or not code.co_filename.endswith("external_utils.py"):
        return original
    return getattr(original, "__wrapped__", original)


def _partial(value: partial[Any], table: _Table, depth: int) -> partial[Any]:
    """Return a partial function over other modules: hooks of accelerate are made so."""
    old = [value.func, *value.args, *value.keywords.values()]
    new = [mapped(item, table, depth) for item in old]
    if _are_the_same(old, new):
        return value
    function, *rest = new
    count = len(value.args)
    keywords = dict(zip(value.keywords, rest[count:], strict=True))
    made = partial(function, *rest[:count], **keywords)
    for key, item in value.__dict__.items():
        made.__dict__[key] = mapped(item, table, depth)
    return made


def _function(value: FunctionType, table: _Table, depth: int) -> FunctionType:
    """Return a function whose closure holds other modules: its cells are its own."""
    cells = value.__closure__ or ()
    held = [_content(cell, value) for cell in cells]
    new = [mapped(item, table, depth) for item in held]
    if _are_the_same(held, new):
        return value
    closure = []
    for cell, before, after in zip(cells, held, new, strict=True):
        is_changed = after is not before
        closure.append(CellType(after) if is_changed else cell)
    made = FunctionType(
        value.__code__,
        value.__globals__,
        value.__name__,
        value.__defaults__,
        tuple(closure),
    )
    made.__kwdefaults__ = value.__kwdefaults__
    made.__dict__.update(value.__dict__)
    return made


def _content(cell: CellType, function: FunctionType) -> Any:
    """Return what a cell of a function's closure holds; None for an empty cell.

    None for the function too: one that calls itself closes over itself.
    """
    try:
        held = cell.cell_contents
    except ValueError:
        return None
    return None if held is function else held


def _are_the_same(some: Iterable[Any], others: Iterable[Any]) -> bool:
    return all(a is b for a, b in zip(some, others, strict=True))


def modules_beside(module: nn.Module) -> _Found:
    """Yield modules that a module reaches without having them as children, with names such as
    ``parts[0]``.

    Looked at are its attributes and what its ``forward`` closes over, whether the class or the
    object has it.
    """
    for key, value in module.__dict__.items():
        if key not in _TABLES and key not in _MACHINERY:
            yield from _modules_in(value, key, 0)
    forward = module.forward
    function = getattr(forward, "__func__", forward)
    yield from _modules_in(function, "", 0)


def _modules_in(value: Any, name: str, depth: int) -> _Found:
    if depth > _DEPTH:
        return
    kind = type(value)
    if isinstance(value, nn.Module):
        yield name, value
    elif kind is dict:
        for key, item in value.items():
            place = f"{name}[{_said(key)}]"
            yield from _modules_in(item, place, depth + 1)
    elif kind in (list, tuple) or _is_named_tuple(value):
        for i, item in enumerate(value):
            yield from _modules_in(item, f"{name}[{i}]", depth + 1)
    elif isinstance(value, FunctionType | MethodType):
        function = getattr(value, "__func__", value)
        if isinstance(function, FunctionType):
            yield from _modules_closed_over(function, depth)


def _modules_closed_over(function: FunctionType, depth: int) -> _Found:
    cells = function.__closure__ or ()
    for variable, cell in zip(function.__code__.co_freevars, cells, strict=True):
        if variable != "__class__":  # the cell of super()
            yield from _modules_in(_content(cell, function), variable, depth + 1)


def _said(key: Any) -> str:
    """Return a key as part of a path, in which dots part names."""
    return str(key).replace(".", "_")
