"""Modules that a forward calls and that are nobody's children.

They stand in plain lists, dictionaries or closures.
"""

from __future__ import annotations

import torch
from torch import nn

from octavo.adapters.pytorch.modules.module_references import mapped, modules_beside
from octavo.adapters.pytorch.modules.shared_copy import (
    note_references,
    references,
    skeleton,
)

_CHILDREN = ("_modules", "_parameters", "_buffers")
"""Where torch itself holds what a module has."""


def adopt_hidden(root: nn.Module) -> nn.Module:
    """Make children of the modules that others hold beside their children; return the skeleton.

    A child is named after the place where its module stands: ``parts[0]`` for the first of a list
    ``parts``. The lists, dictionaries and closures of the skeleton are its own and hold the
    children, so that one that is replaced is replaced there too. The model that was given keeps its
    own.

    Args:
        root: A skeleton; changed in place.
    """
    known = {id(module) for module in root.modules()}
    pending = list(root.modules())
    while pending:
        owner = pending.pop()
        twins: dict[int, nn.Module] = {}
        # A list, since the owner changes while it is read.
        for name, held in list(modules_beside(owner)):
            key = id(held)
            if key in known or not _is_part(held, root):
                continue
            twin = skeleton(held)
            twins[key] = twin
            owner._modules[name] = twin
            known.add(key)
            # A twin may hold others beside its children.
            for module in twin.modules():
                known.add(id(module))
                pending.append(module)
        if twins:
            _hold(owner, twins)
    return root


def _is_part(held: nn.Module, root: nn.Module) -> bool:
    """Return whether a module has weights of its own and is none that the model is a part of."""
    tensors = {id(p) for p in held.parameters()}
    if not tensors or isinstance(held, torch.jit.ScriptModule):
        return False
    own = {id(p) for p in root.parameters()}
    return not own or not own <= tensors


def _hold(owner: nn.Module, twins: dict[int, nn.Module]) -> None:
    """Let what the owner holds lead to the twins of its modules."""
    keys = list(references(owner))
    for key, value in list(owner.__dict__.items()):
        if key in _CHILDREN:
            continue
        new = mapped(value, twins)
        if new is not value:
            owner.__dict__[key] = new
            keys.append(key)
    if "forward" not in owner.__dict__:
        method = owner.forward
        new = mapped(method, twins)
        if new is not method:
            owner.__dict__["forward"] = new
            keys.append("forward")
    # In order, each once.
    note_references(owner, tuple(dict.fromkeys(keys)))
