"""What a linear layer does to its input first: the channel maps that no layer before it could take in."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from octavo.adapters.pytorch.capture.layers import Layer
from octavo.adapters.pytorch.capture.links import Factors, Own
from octavo.core.numerics.channels import Steps

Tensor = torch.Tensor


def multipliers(own: Own) -> Tensor | None:
    """Return float32 (inputs,) where a multiplication is all: layers take that into their quantization. Else None."""
    only = own[0] if len(own) == 1 and own[0].carries == {"scale"} else None
    return None if only is None or only.scale is None else 1 / only.scale


class Online:
    """A forward hook that changes the channels of a layer's input."""

    def __init__(self, own: Own, weight: Tensor, axis: int) -> None:
        like = weight.detach().float()
        self._steps = [change.steps(weight.shape[1 - axis], like) for change in own]

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return the arguments, the first one changed."""
        x = args[0]
        y = x.float()
        for steps in self._steps:
            y = _changed(y, steps)
        return (y.to(x.dtype), *args[1:])


def _changed(x: Tensor, steps: Steps) -> Tensor:
    shift, factor, left, right = (
        None if t is None else t.to(x.device)
        for t in (steps.shift, steps.factor, steps.left, steps.right)
    )
    x = x if shift is None else x - shift
    x = x if factor is None else x * factor
    if left is None or right is None:
        return x
    y = x.reshape(-1, right.shape[0]) @ right
    if left.shape[0] > 1:
        y = left @ y.view(-1, left.shape[0], right.shape[0])
    turned: Tensor = y.reshape(x.shape)
    return turned


def install(root: nn.Module, layers: Mapping[str, Layer], factors: Factors) -> None:
    """Let the float layers of a skeleton change their input, before any other hook of theirs."""
    for name, own in factors.items():
        layer = layers[name]
        module = root.get_submodule(layer.path)
        weight = module.weight
        assert isinstance(weight, Tensor)
        assert layer.op.weight is not None
        module.register_forward_pre_hook(
            Online(own, weight, layer.op.weight.channel_axis), prepend=True
        )
