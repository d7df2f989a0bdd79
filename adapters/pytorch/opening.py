"""Modules and files as skeletons that octavo sees."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from octavo.adapters.pytorch.modules.exported import is_exported, recovered
from octavo.adapters.pytorch.modules.shared_copy import (
    named_tensors,
    set_submodule,
    set_tensor,
    skeleton,
)
from octavo.core.errors import ModelError, UnsafeFile


def open_root(model: nn.Module, device: torch.device | None = None) -> nn.Module:
    """Return a skeleton of a model, out of what it is wrapped in, with its tensors on ``device``.

    Args:
        model: The model; not changed.
        device: None leaves the tensors where they are.

    Raises:
        ModelError: If a tensor holds no data.
    """
    root = skeleton(model)
    for path, module in list(root.named_modules()):
        if not isinstance(module, fx.GraphModule) or not is_exported(module):
            continue
        if path:
            set_submodule(root, path, recovered(module))
        else:
            root = recovered(module)
    for name, tensor in named_tensors(root).items():
        if tensor.is_meta:
            raise ModelError(
                f"tensor {name!r} is on the meta device and holds no numbers; "
                "load the checkpoint first"
            )
        if device is not None and tensor.device != device:
            set_tensor(root, name, tensor.detach().to(device))
    return root


def read_model(source: Any, *, trust: bool) -> nn.Module:
    """Read a module from a file, without running code that a stranger put into it.

    Args:
        source: The file's path.
        trust: Whether code of the file's author may run.

    Raises:
        ModelError: If the file holds tensors only, or is damaged.
        UnsafeFile: If it is a pickle, or a ``.pt2`` that was not declared trustworthy.
    """
    if not isinstance(source, str) and not hasattr(source, "__fspath__"):
        raise ModelError(
            f"the torch backend opens nn.Module objects, not {type(source).__name__}"
        )
    path = Path(source)
    if not path.is_file():
        raise ModelError(f"there is no file {str(path)!r}")
    if path.suffix == ".pt2":
        return _read_program(path, trust=trust)
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UnsafeFile(
            f"{path.name} is damaged, or a pickle that would run code when it is read: "
            "build the module yourself, load a state_dict (torch.load(..., weights_only=True)) "
            f"into it, and pass the module ({str(error).splitlines()[0]})"
        ) from error
    kind = "a state_dict" if isinstance(found, Mapping) else type(found).__name__
    raise ModelError(
        f"{path.name} holds {kind} and no architecture: load it into a module and pass the module"
    )


def _read_program(path: Path, *, trust: bool) -> nn.Module:
    if not trust:
        raise UnsafeFile(
            f"reading {path.name} may run code of its author; if you trust it, "
            "set trust = true in the torch backend's settings"
        )
    program: nn.Module = torch.export.load(str(path)).module()
    return program
