"""What layers that hold a weight in few bits have in common.

It is the weight as others read it, and what a cast of the model does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from octavo.adapters.pytorch.loose_weights.place import Place
from octavo.adapters.pytorch.loose_weights.weight_tensor import LooseWeight

Tensor = torch.Tensor


class Coded(nn.Module):
    """A layer with its weight in few bits.

    Attributes:
        weight_shape: Shape of the float layer's weight.
        dtype: Type of the layer's result, and of its weight as others see it.
    """

    weight_shape: tuple[int, ...] = ()
    dtype: torch.dtype

    def decoded_weight(self) -> Tensor:
        """Return the weight as float numbers, in the float layer's shape and type."""
        raise NotImplementedError

    @property
    def weight(self) -> Tensor:
        """The weight as models read it.

        Shape, type and device are there at once, its numbers are decoded when they are needed.
        """
        if torch.compiler.is_compiling():
            return self.decoded_weight()
        return LooseWeight(Place(self, "weight", self.weight_shape, {}))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Move the layer, and let a cast change the type of its result.

        Scales and tables stay as precise as they are.
        """

        def moved(tensor: Tensor) -> Tensor:
            new = fn(tensor)
            is_cast = tensor.is_floating_point() and new.dtype != tensor.dtype
            return tensor.to(new.device) if is_cast else new

        super()._apply(moved, recurse)  # type: ignore[no-untyped-call]
        # What the function does to types is seen on a tensor without elements.
        probe = torch.empty(0, dtype=self.dtype)
        self.dtype = fn(probe).dtype
        return self


def scaled(codes: Tensor, scale: Tensor, axis: int) -> Tensor:
    """Return float32 numbers of codes with one scale, or one for each index along an axis."""
    if scale.numel() > 1:
        shape = [1] * codes.ndim
        shape[axis] = -1
        scale = scale.reshape(shape)
    return codes.float() * scale
