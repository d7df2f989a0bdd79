"""Modules that a forward calls and that are nobody's children: they stand in plain lists, dictionaries or closures."""

from __future__ import annotations

import torch
from torch import nn

from octavo.adapters.pytorch.modules.module_references import mapped, modules_beside
from octavo.adapters.pytorch.modules.shared_copy import note_references, references, skeleton


def adopt_hidden(root: nn.Module) -> nn.Module:
    """Make children of the modules that others hold beside their children; return the skeleton.

    A child is named after the place where its module stands: ``parts[0]`` for the first of a list ``parts``. The lists,
    dictionaries and closures of the skeleton are its own and hold the children, so that one that is replaced is
    replaced there too. The model that was given keeps its own.

    Args:
        root: A skeleton; changed in place.
    """
    known = {id(module) for module in root.modules()}
    pending = list(root.modules())
    while pending:
        owner = pending.pop()
        found = [(name, held) for name, held in modules_beside(owner) if id(held) not in known]
        twins: dict[int, nn.Module] = {}
        for name, held in found:
            if id(held) in twins or not _is_part(held, root):
                continue
            twin = skeleton(held)
            twins[id(held)] = twin
            owner._modules[name] = twin
            known |= {id(held), *(id(module) for module in twin.modules())}
            pending.extend(twin.modules())
        if twins:
            _hold(owner, twins)
    return root


def _is_part(held: nn.Module, root: nn.Module) -> bool:
    """True for a module with weights of its own that is none that the model itself is a part of."""
    tensors = {id(p) for p in held.parameters()}
    if not tensors or isinstance(held, torch.jit.ScriptModule):
        return False
    own = {id(p) for p in root.parameters()}
    return not own or not own <= tensors


def _hold(owner: nn.Module, twins: dict[int, nn.Module]) -> None:
    """Let what the owner holds lead to the twins of its modules."""
    keys = list(references(owner))
    for key, value in list(owner.__dict__.items()):
        new = mapped(value, twins) if key not in ("_modules", "_parameters", "_buffers") else value
        if new is not value:
            owner.__dict__[key] = new
            keys.append(key)
    if "forward" not in owner.__dict__:
        method = owner.forward
        new = mapped(method, twins)
        if new is not method:
            owner.__dict__["forward"] = new
            keys.append("forward")
    note_references(owner, tuple(dict.fromkeys(keys)))
