"""Layers computed in a narrower float type."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from octavo.adapters.pytorch.kernels.autocast import result_dtype
from octavo.adapters.pytorch.kernels.posts import post

from .low_bit_layer import Coded

Tensor = torch.Tensor


class Cast(Coded):
    """A layer computed in bfloat16 or float16; its neighbours keep their own type.

    Args:
        layer: The layer with weights of that type.
        dtype: Of the result.
        then: Activation function applied to the result.
        adds: The second argument is added to the result; else it is the layer's own (offsets of
            bags, an output size).
    """

    def __init__(
        self,
        layer: nn.Module,
        dtype: torch.dtype,
        then: str = "",
        *,
        adds: bool = False,
    ) -> None:
        super().__init__()
        self.adds = adds
        self.layer = layer
        self.dtype = dtype
        self.then = then

    def decoded_weight(self) -> Tensor:
        """Return the weight in the type of the result."""
        weight = self.layer.weight
        assert isinstance(weight, Tensor)
        return weight.detach().to(self.dtype)

    def forward(self, input: Tensor, *others: Any, **named: Any) -> Tensor:
        """Return the layer's output."""
        x = input  # torch.nn's name: a layer alone may be called by it
        weight = self.layer.weight
        assert isinstance(weight, Tensor)
        own = () if self.adds else others
        if x.is_floating_point():
            x = x.to(weight.dtype)
        y = self.layer(x, *own, **named)
        # Autocast leaves the results of tables alone.
        if isinstance(self.layer, nn.Embedding | nn.EmbeddingBag):
            y = y.to(self.dtype)
        else:
            y = y.to(result_dtype(self.dtype, y.device))
        if self.adds:
            y = y + others[0]
        return post(self.then, y)
