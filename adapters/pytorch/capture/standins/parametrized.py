"""Weights that are computed from others before each call.

They are those of weight norms, spectral norms, pruning masks and parametrizations. In eval mode
they are constants, so a skeleton holds what they amount to. The model that was given is never
touched.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

Tensor = torch.Tensor

_SOURCES = ("_orig", "_mask", "_g", "_v", "_u")
"""What the tensors are called that such hooks compute a weight from: its name, and one of these."""


def fold_parametrized(root: nn.Module) -> nn.Module:
    """Give modules whose weights are computed plain ones with the same values; return the skeleton.

    Both ways of torch are known: modules with ``parametrizations``, and forward pre-hooks that set
    an attribute that they name (``weight_norm``, ``spectral_norm``, ``prune`` of
    ``torch.nn.utils``, and hooks of the same make).

    Args:
        root: A skeleton; changed in place.
    """
    for module in list(root.modules()):
        if parametrize.is_parametrized(module):
            _fold_parametrizations(module)
        _fold_hooks(module)
    return root


def _fold_parametrizations(module: nn.Module) -> None:
    held = module._modules.pop("parametrizations")
    assert isinstance(held, nn.ModuleDict)
    values: dict[str, Tensor] = {}
    with torch.no_grad():
        for name, chain in held.items():
            values[name] = chain()
    # ``register_parametrization`` puts a class of its own making between an object and its class.
    module.__class__ = type(module).__bases__[0]
    for name, value in values.items():
        chain = held[name]
        original = getattr(chain, "original", None)
        if original is None:
            # Of several tensors that one is computed from, the first tells what it is.
            original = chain.original0
        is_trained = isinstance(original, nn.Parameter)
        _put(module, name, value, trained=is_trained)


def _fold_hooks(module: nn.Module) -> None:
    hooks = list(module._forward_pre_hooks.items())
    # Of two hooks the later one may have made what the first one reads.
    for key, hook in reversed(hooks):
        name = _computed_by(hook, module)
        if not name:
            continue
        module._forward_pre_hooks.pop(key)
        module._forward_pre_hooks_with_kwargs.pop(key, None)
        if isinstance(module, nn.RNNBase):
            module.__dict__["_flat_weights"] = list(module._flat_weights)
        with torch.no_grad():
            hook(module, ())
        value = module.__dict__.pop(name)
        for suffix in _SOURCES:
            module._parameters.pop(f"{name}{suffix}", None)
            module._buffers.pop(f"{name}{suffix}", None)
        _put(module, name, value, trained=True)


def _computed_by(hook: Any, module: nn.Module) -> str:
    """Return the name of the tensor that a hook computes; empty for any other hook."""
    name = getattr(hook, "name", None) or getattr(hook, "_tensor_name", None)
    if not isinstance(name, str):
        return ""
    if name in module._parameters or name in module._buffers:
        return ""
    computed = module.__dict__.get(name)
    return name if isinstance(computed, Tensor) else ""


def _put(module: nn.Module, name: str, value: Tensor, *, trained: bool) -> None:
    plain = value.detach()
    if trained:
        is_float = value.is_floating_point()
        module._parameters[name] = nn.Parameter(plain, requires_grad=is_float)
    else:
        module._buffers[name] = plain
    if isinstance(module, nn.RNNBase):
        names = module._flat_weights_names
        module.__dict__["_flat_weights"] = [getattr(module, n, None) for n in names]
