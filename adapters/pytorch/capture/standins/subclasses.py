"""Subclasses of torch's layers, recognised by what their forward computes."""

from __future__ import annotations

import torch
from torch import nn

from octavo.adapters.pytorch.modules.shared_copy import skeleton

Tensor = torch.Tensor
_LAYERS: tuple[type[nn.Module], ...] = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
    nn.Embedding, nn.EmbeddingBag, nn.LSTM, nn.GRU, nn.RNN, nn.MultiheadAttention,
)  # fmt: skip
_COMPUTES = ("__call__", "forward", "_conv_forward", "forward_impl")
_SMALL = (5, 7)
"""Outputs and inputs of the layer on which a linear layer's forward is tried."""
_ERRORS = (RuntimeError, TypeError, ValueError, AttributeError, IndexError, AssertionError)


def as_plain_layers(root: nn.Module) -> nn.Module:
    """Let modules be torch's own layers where their class computes the same; return the skeleton.

    Args:
        root: A skeleton; changed in place.
    """
    for module in root.modules():
        base = next((kind for kind in _LAYERS if isinstance(module, kind)), None)
        if base is None or type(module) is base:
            continue
        if _inherits(type(module), base) or (base is nn.Linear and _is_linear(module)):
            module.__class__ = base
    return root


def _inherits(cls: type, base: type) -> bool:
    """True for a class that takes all that computes from its base."""
    return all(getattr(cls, name, None) is getattr(base, name, None) for name in _COMPUTES)


def _is_linear(module: nn.Module) -> bool:
    """True for a module that computes x W^T + b, established by running it on small weights."""
    own = {name for name, held in module._parameters.items() if held is not None}
    if not {"weight"} <= own <= {"weight", "bias"} or module._buffers or module._modules:
        return False
    generator = torch.Generator().manual_seed(0)
    twin = skeleton(module)
    weight = torch.randn(*_SMALL, generator=generator)
    bias = torch.randn(_SMALL[0], generator=generator) if "bias" in own else None
    small = {"weight": weight, "bias": bias}
    for name in own:
        value = small[name]
        assert value is not None
        twin._parameters[name] = nn.Parameter(value, requires_grad=False)
    twin.__dict__.update(out_features=_SMALL[0], in_features=_SMALL[1])
    twin._forward_hooks.clear()
    twin._forward_pre_hooks.clear()
    x = torch.randn(2, 3, _SMALL[1], generator=generator)
    with torch.no_grad():
        try:
            y = twin(x)
        except _ERRORS:
            return False
    expected = nn.functional.linear(x, weight, bias)
    same = isinstance(y, Tensor) and y.shape == expected.shape and y.dtype == expected.dtype
    return same and torch.allclose(y, expected, rtol=1e-4, atol=1e-5)
