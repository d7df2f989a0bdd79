"""Subclasses of torch's layers, recognised by what their forward computes."""

from __future__ import annotations

import torch
from torch import nn

from octavo.adapters.pytorch.modules.shared_copy import skeleton

Tensor = torch.Tensor
_LAYERS: tuple[type[nn.Module], ...] = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Embedding,
    nn.EmbeddingBag,
    nn.LSTM,
    nn.GRU,
    nn.RNN,
    nn.MultiheadAttention,
)
_COMPUTES = ("__call__", "forward", "_conv_forward", "forward_impl")
_SMALL = (5, 7)
"""Outputs and inputs of the layer on which a linear layer's forward is tried."""
_ERRORS = (
    RuntimeError,
    TypeError,
    ValueError,
    AttributeError,
    IndexError,
    AssertionError,
)


def as_plain_layers(root: nn.Module) -> nn.Module:
    """Let modules be torch's own layers where their class computes the same; return the skeleton.

    Args:
        root: A skeleton; changed in place.
    """
    for module in root.modules():
        base = next((kind for kind in _LAYERS if isinstance(module, kind)), None)
        if base is None or type(module) is base:
            continue
        if _inherits(type(module), base) or _is_linear(module, base):
            module.__class__ = base
    return root


def _inherits(cls: type, base: type) -> bool:
    """Return whether a class takes all that computes from its base."""
    own = [getattr(cls, name, None) for name in _COMPUTES]
    inherited = [getattr(base, name, None) for name in _COMPUTES]
    return all(a is b for a, b in zip(own, inherited, strict=True))


def _is_linear(module: nn.Module, base: type) -> bool:
    """Return whether a linear layer computes x W^T + b: it is run on small weights."""
    if base is not nn.Linear or module._buffers or module._modules:
        return False
    own = set()
    for name, held in module._parameters.items():
        if held is not None:
            own.add(name)
    if own not in ({"weight"}, {"weight", "bias"}):
        return False
    outputs, inputs = _SMALL
    generator = torch.Generator().manual_seed(0)
    small = {"weight": torch.randn(outputs, inputs, generator=generator)}
    if "bias" in own:
        small["bias"] = torch.randn(outputs, generator=generator)
    twin = _small_twin(module, small)
    x = torch.randn(2, 3, inputs, generator=generator)
    with torch.no_grad():
        try:
            y = twin(x)
        except _ERRORS:
            return False
    expected = nn.functional.linear(x, small["weight"], small.get("bias"))
    return isinstance(y, Tensor) and _agree(y, expected)


def _agree(y: Tensor, expected: Tensor) -> bool:
    if y.shape != expected.shape or y.dtype != expected.dtype:
        return False
    return torch.allclose(y, expected, rtol=1e-4, atol=1e-5)


def _small_twin(module: nn.Module, parameters: dict[str, Tensor]) -> nn.Module:
    """Return a skeleton of a linear layer with small parameters, without hooks."""
    twin = skeleton(module)
    for name, value in parameters.items():
        twin._parameters[name] = nn.Parameter(value, requires_grad=False)
    outputs, inputs = _SMALL
    # Forwards may reshape by what the layer says of itself.
    twin.__dict__.update(out_features=outputs, in_features=inputs)
    twin._forward_hooks.clear()
    twin._forward_pre_hooks.clear()
    return twin
