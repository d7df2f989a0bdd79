"""Normalisations with a gain for each channel, known by what they compute."""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from torch import nn

from octavo.adapters.pytorch.modules.shared_copy import set_tensor, skeleton

Tensor = torch.Tensor
Gain = Literal["", "weight", "offset"]
_NOT_OVER_THE_LAST_AXIS = (
    nn.modules.batchnorm._BatchNorm,
    nn.GroupNorm,
    nn.modules.instancenorm._InstanceNorm,
)


def is_norm(module: nn.Module) -> bool:
    """True for a normalisation over the last axis with a gain for each channel, established by
    running it."""
    return gain_of(module) != ""


def gain_of(module: nn.Module) -> Gain:
    """Return how a normalisation's gain depends on its weight.

    Known by its behaviour and not by its class, because every language model brings a class of its
    own.

    Returns:
        ``weight``, ``offset`` (1 + weight), or empty if it is no such normalisation.
    """
    weight = getattr(module, "weight", None) if _may_be_norm(module) else None
    if (
        not isinstance(weight, nn.Parameter)
        or weight.ndim != 1
        or not weight.is_floating_point()
    ):
        return ""
    with torch.no_grad():
        try:
            return _gain_by_trial(module, weight.detach())
        except (RuntimeError, TypeError, ValueError):
            return ""


def _gain_by_trial(module: nn.Module, gain: Tensor) -> Gain:
    """Return which change of the weight divides each channel of the result by a factor
    of its own."""
    channels = gain.numel()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, channels, generator=generator).to(gain)
    factors = (torch.rand(channels, generator=generator) + 0.5).to(gain)
    expected = module(x) / factors
    if not isinstance(expected, Tensor) or expected.shape != x.shape:
        return ""
    # Wide enough for weights of 16 bits.
    is_near = partial(torch.allclose, other=expected, rtol=1e-2, atol=1e-3)
    if is_near(_rescaled(module, x, gain / factors, factors)):
        return "weight"
    offset = (1 + gain) / factors - 1
    return "offset" if is_near(_rescaled(module, x, offset, factors)) else ""


def _may_be_norm(module: nn.Module) -> bool:
    if not type(module).__name__.endswith("Norm") or isinstance(
        module, _NOT_OVER_THE_LAST_AXIS
    ):
        return False
    has_children = next(module.children(), None) is not None
    own = {name for name, _ in module.named_parameters(recurse=False)}
    return not has_children and own <= {"weight", "bias"}


def _rescaled(module: nn.Module, x: Tensor, weight: Tensor, factors: Tensor) -> Tensor:
    """Return what a normalisation gives with another weight and its bias divided by the factors."""
    twin = skeleton(module)
    set_tensor(twin, "weight", weight)
    bias = getattr(module, "bias", None)
    if bias is not None:
        set_tensor(twin, "bias", bias.detach() / factors)
    result: Tensor = twin(x)
    return result
