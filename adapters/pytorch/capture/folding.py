"""Batch norms in eval mode as part of the layer before them."""

from __future__ import annotations

import torch
from torch import nn

from octavo.adapters.pytorch.modules.kinds import TRANSPOSED, is_transposed_linear
from octavo.core.values.graph import Op

from .layers import Layer

Tensor = torch.Tensor
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_FOLDING = ("conv", "conv_transpose", "linear")
"""Op types that take a batch norm into their weight."""


def is_batch_norm(module: nn.Module) -> bool:
    """True for a batch norm that uses running statistics."""
    return type(module) in _NORMS and module.running_mean is not None


def folds(op: Op, norm: nn.Module, output_shape: tuple[int, ...] | None) -> bool:
    """True if a batch norm that alone reads an op's output can be folded into its weight."""
    if op.type not in _FOLDING or not is_batch_norm(norm):
        return False
    if op.weight is None or op.weight.shared_with:
        return False
    # A linear layer's channels are the last axis, a batch norm's the second.
    if op.type != "linear":
        return True
    return output_shape is not None and len(output_shape) == 2


def channel_gain(norm: nn.Module) -> Tensor:
    """Return what a batch norm multiplies each channel with: float32 (channels,)."""
    assert isinstance(norm, _NORMS)
    assert norm.running_var is not None
    variance = norm.running_var.float()
    gain = torch.rsqrt(variance + norm.eps)
    if norm.weight is None:
        return gain
    return gain * norm.weight.detach().float()


def over_weight(gain: Tensor, module: nn.Module) -> Tensor:
    """Return one number for each output channel in a shape that multiplies the layer's weight."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    if isinstance(module, TRANSPOSED):
        # (inputs, outputs / groups, *kernel): each group's inputs have outputs of their own.
        inputs_of_group = weight.shape[0] // module.groups
        rows = gain.view(module.groups, -1).repeat_interleave(inputs_of_group, 0)
        ones = [1] * (weight.ndim - 2)
        return rows.view(*rows.shape, *ones)
    if is_transposed_linear(module):
        return gain
    ones = [1] * (weight.ndim - 1)
    return gain.reshape(-1, *ones)


def folded(layer: Layer, root: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Return a layer's weight and bias as the op uses them.

    With a batch norm: w' = w * g / sqrt(var + eps) per output channel, b' = beta + (b - mean) * g /
    sqrt(var + eps) (Jacob et al. 2018, arXiv:1712.05877, section 3.2), float32. Else the module's
    own.
    """
    module = root.get_submodule(layer.path)
    weight = module.weight
    bias = getattr(module, "bias", None)
    assert isinstance(weight, Tensor)
    if not layer.norm:
        if bias is not None:
            bias = bias.detach()
        return weight.detach(), bias
    norm = root.get_submodule(layer.norm)
    assert isinstance(norm, _NORMS)
    assert norm.running_mean is not None
    with torch.no_grad():
        gain = channel_gain(norm)
        before = 0.0 if bias is None else bias.float()
        centred = before - norm.running_mean.float()
        if norm.bias is None:
            new = centred * gain
        else:
            new = torch.addcmul(norm.bias.float(), centred, gain)
        return weight.float() * over_weight(gain, module), new
