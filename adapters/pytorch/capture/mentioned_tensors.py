"""Which tensors the code of a model's classes speaks of: those that no batch reached may belong to
another branch."""

from __future__ import annotations

import types
from collections.abc import Iterator

from torch import nn

_CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)


def is_referred_to(root: nn.Module, name: str) -> bool:
    """True if every module on the way to a tensor is named in the code of the one that holds it,
    beside where it is made.

    Args:
        root: The model.
        name: Name of a parameter or buffer.
    """
    module = root
    for step in name.split("."):
        if not isinstance(module, _CONTAINERS) and step not in _names(module):
            return False
        module = getattr(module, step, root)
    return True


def _names(module: nn.Module) -> frozenset[str]:
    """Return the attributes that the methods of a module's classes name, without those that make
    it."""
    found: set[str] = set()
    for cls in type(module).__mro__:
        if cls in (nn.Module, object):
            continue
        for key, value in vars(cls).items():
            makes_it = key.startswith("__") or key == "reset_parameters"
            if isinstance(value, types.FunctionType) and not makes_it:
                found.update(_in_code(value.__code__))
    forward = module.__dict__.get("forward")
    code = getattr(getattr(forward, "__func__", forward), "__code__", None)
    if code is not None:
        found.update(_in_code(code))
    return frozenset(found)


def _in_code(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _in_code(constant)
