"""Saved float tensors put back into a module."""

from __future__ import annotations

import torch
from torch import nn

from octavo.adapters.pytorch.modules.shared_copy import (
    add_bias,
    aliases,
    named_tensors,
    set_tensor,
)
from octavo.core.errors import ModelError, nearest

from .saved import Saved


def restore(root: nn.Module, saved: Saved, device: torch.device) -> None:
    """Put the saved float tensors into a skeleton, tied as they were.

    Raises:
        ModelError: If the module is not the one that was saved.
    """
    first, known = aliases(root), named_tensors(root)
    for name, tensor in saved.floats.items():
        own = first.get(name, name)
        there = tensor.to(device)
        if own not in known:
            if _is_made(root, own, there):
                continue
            raise ModelError(
                f"the saved model has a tensor {name!r}, "
                f"which the given module lacks{nearest(name, known)}"
            )
        if known[own].shape != tensor.shape:
            raise ModelError(
                f"tensor {name!r} has shape {tuple(tensor.shape)} in the files "
                f"and {tuple(known[own].shape)} in the given module"
            )
        set_tensor(root, own, there)
    for further, name in saved.tied.items():
        _tie(root, further, name)


def _is_made(root: nn.Module, name: str, tensor: torch.Tensor) -> bool:
    """Put a tensor that was made as the model was seen or rescaled into its place; False if there
    is none."""
    if add_bias(root, name, tensor):
        return True
    # A constant that tracing made of the model's own code is a plain attribute.
    is_constant = isinstance(root.__dict__.get(name), torch.Tensor)
    if is_constant:
        root.__dict__[name] = tensor
    return is_constant


def _tie(root: nn.Module, further: str, name: str) -> None:
    """Let a parameter or buffer be the tensor that another one is."""
    path, _, leaf = further.rpartition(".")
    source_path, _, source_leaf = name.rpartition(".")
    module, source = root.get_submodule(path), root.get_submodule(source_path)
    table = module._parameters if leaf in module._parameters else module._buffers
    table[leaf] = getattr(source, source_leaf)
