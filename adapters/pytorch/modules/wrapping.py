"""What people wrap modules in: taken off where the module inside computes the same, refused where
there is none inside."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from octavo.core.errors import ModelError

_HOLDERS = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)


def inside(module: nn.Module) -> nn.Module:
    """Return the module in a wrapper that changes how it runs and not what it computes:
    ``torch.compile``, data parallel.

    The result is no such wrapper itself, however many lie in each other.
    """
    while True:
        if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            module = module.module
        elif "_orig_mod" in module._modules and _is_called(module, "OptimizedModule"):
            module = module._orig_mod  # type: ignore[assignment]
        else:
            return module


def opened(source: Any) -> nn.Module:
    """Return the module of anything that the backend's card claims, out of what it is wrapped in.

    Raises:
        ModelError: If no module with a forward in Python lies in it; the message holds the remedy.
    """
    if isinstance(source, torch.export.ExportedProgram):
        program: nn.Module = source.module()
        return program
    model = inside(source)
    if isinstance(model, torch.jit.ScriptModule):
        raise ModelError(
            f"a {type(model).__name__} of torch.jit runs in an interpreter of its own, in which "
            "no layer can be replaced; "
            "pass the Python module that it was made of, quantize that, and script or trace nothing"
        )
    if _is_called(model, "FullyShardedDataParallel") or _is_called(model, "FSDPModule"):
        raise ModelError(
            "a fully sharded module holds a part of each tensor in each process; gather it "
            "(torch.distributed.checkpoint.state_dict.get_model_state_dict), load that into the "
            "plain module, and pass this"
        )
    if isinstance(model, _HOLDERS):
        raise ModelError(
            f"an nn.{type(model).__name__} holds modules and has no forward; pass the module that "
            "calls them"
        )
    if type(model).forward is nn.Module.forward and "forward" not in model.__dict__:
        raise ModelError(
            f"{type(model).__name__} defines no forward; pass the module that is called"
        )
    return model


def opaque_twin(module: nn.Module) -> nn.Module | None:
    """Return a module of torch.jit in eval mode: itself, or a copy that shares nothing where it is
    in another. None for any other."""
    if not isinstance(module, torch.jit.ScriptModule):
        return None
    # A shallow copy's children are the original's, and would change their mode with it.
    return (
        copy.deepcopy(module).eval()
        if any(m.training for m in module.modules())
        else module
    )


def bare_hooks(twin: nn.Module) -> None:
    """Take off accelerate's hooks that move tensors between devices, in a skeleton whose tensors
    are all there.

    They stand in the way of replacing a layer. Other hooks of accelerate change what a module
    computes, and stay.
    """
    hook, old = twin.__dict__.get("_hf_hook"), twin.__dict__.get("_old_forward")
    if (
        hook is None
        or old is None
        or not _only_moves(hook)
        or any(p.is_meta for p in twin.parameters(recurse=False))
    ):
        return
    del (
        twin.__dict__["_hf_hook"],
        twin.__dict__["_old_forward"],
        twin.__dict__["forward"],
    )
    # The forward that was there before may be an object's own too.
    if getattr(old, "__func__", None) is not type(twin).forward:
        twin.__dict__["forward"] = old


def _only_moves(hook: Any) -> bool:
    kind = type(hook)
    if not kind.__module__.startswith("accelerate."):
        return False
    if kind.__name__ == "SequentialHook":
        return all(map(_only_moves, hook.hooks))
    return kind.__name__ in ("AlignDevicesHook", "CpuOffload", "UserCpuOffloadHook")


def _is_called(module: nn.Module, name: str) -> bool:
    """True if a class of that name is among a module's; asking for the class itself would import
    it."""
    return any(cls.__name__ == name for cls in type(module).__mro__)
