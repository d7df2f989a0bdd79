"""An integer product with a low-rank repair of its weight beside it, in float."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from octavo.adapters.pytorch.kernels.posts import post
from octavo.core.numerics.low_rank import Repair

from .int8 import Int8Linear
from .low_bit_layer import Coded

Tensor = torch.Tensor


class RepairedInt8Linear(Coded):
    """y = then(x_q W_q^T + b + (x A^T) B^T): the codes in integers, the factors in float.

    Its result is float, also where the layer behind it takes codes: that makes them itself.

    Args:
        inner: The product of codes, without an activation function and with a float result.
        repair: B and A.
        then: Activation function applied to the sum.
    """

    left: Tensor
    right: Tensor

    def __init__(self, inner: Int8Linear, repair: Repair, then: str) -> None:
        super().__init__()
        self.inner = inner
        self.register_buffer("left", repair.left)
        self.register_buffer("right", repair.right)
        self.dtype = inner.dtype
        self.then = then

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        super()._apply(*args, **kwargs)
        self.dtype = self.inner.dtype
        return self

    def decoded_weight(self) -> Tensor:
        """Return the weight as float numbers, with what its input is multiplied by first."""
        repair = self.left.float() @ self.right.float()
        factors: Any = self.inner.factors
        if factors is not None:
            repair = repair * factors
        if self.inner.transposed:
            repair = repair.t()
        return self.inner.decoded_weight() + repair.to(self.dtype)

    def forward(self, input: Tensor) -> Tensor:
        """Return the layer's output for float values, or uint8 codes of its static input."""
        x = input  # torch.nn's name: a layer alone may be called by it
        y: Tensor = self.inner(x)
        low = nn.functional.linear(self._values(x, y.dtype), self.right.to(y.dtype))
        y = y + nn.functional.linear(low, self.left.to(y.dtype))
        return post(self.then, y)

    def _values(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the numbers that the factors multiply."""
        source = self.inner.source
        if x.dtype == torch.uint8 and source is not None:
            # Whoever made codes took in what the input is multiplied by.
            return (x.to(dtype) - source.zero_point) * source.scale
        factors: Any = self.inner.factors
        return x.to(dtype) if factors is None else x.to(dtype) * factors.to(dtype)
