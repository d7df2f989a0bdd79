"""What a linear layer does to its input first: the channel maps that no layer before it could take
in."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from octavo.adapters.pytorch.capture.layers import Layer
from octavo.adapters.pytorch.capture.links import InputMaps, Own
from octavo.core.numerics.channels import Steps

Tensor = torch.Tensor


def multipliers(own: Own) -> Tensor | None:
    """Return float32 (inputs,) where a multiplication is all: layers take that into their
    quantization. Else None."""
    if len(own) != 1:
        return None
    alone = own[0]
    if alone.carries != {"scale"} or alone.scale is None:
        return None
    inverse: Tensor = 1 / alone.scale
    return inverse


class Online:
    """A forward hook that changes the channels of a layer's input.

    Args:
        own: The maps, in order.
        weight: The layer's weight.
        axis: Of its output channels.
    """

    def __init__(self, own: Own, weight: Tensor, axis: int) -> None:
        like = weight.detach().float()
        inputs = weight.shape[1 - axis]
        self._steps = [change.steps(inputs, like) for change in own]

    def __call__(
        self, module: nn.Module, args: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        """Return the arguments, the first one changed."""
        x = args[0]
        y = x.float()
        for steps in self._steps:
            y = _changed(y, steps)
        return (y.to(x.dtype), *args[1:])


def _changed(x: Tensor, steps: Steps) -> Tensor:
    device = x.device
    if steps.shift is not None:
        x = x - steps.shift.to(device)
    if steps.factor is not None:
        x = x * steps.factor.to(device)
    if steps.left is None or steps.right is None:
        return x
    left = steps.left.to(device)
    right = steps.right.to(device)
    count, width = left.shape[0], right.shape[0]
    y = x.reshape(-1, width) @ right
    if count > 1:
        y = left @ y.view(-1, count, width)
    turned: Tensor = y.reshape(x.shape)
    return turned


def install(root: nn.Module, layers: Mapping[str, Layer], factors: InputMaps) -> None:
    """Let the float layers of a skeleton change their input, before any other hook of theirs."""
    for name, own in factors.items():
        layer = layers[name]
        module = root.get_submodule(layer.path)
        weight = module.weight
        described = layer.op.weight
        assert isinstance(weight, Tensor)
        assert described is not None
        hook = Online(own, weight, described.channel_axis)
        module.register_forward_pre_hook(hook, prepend=True)
