"""Layers whose input has codes of another width than the 8-bit kernels take: it is rounded to its
grid, and what is multiplied is float. The numbers are the scheme's; nothing runs faster."""

from __future__ import annotations

import torch

from octavo.core.numerics.affine import (
    QuantParams,
    affine_params,
    integer_range,
    steps,
)
from octavo.core.numerics.ranges import token_params
from octavo.core.values.scheme import OpScheme, QuantSpec

from .low_bit_layer import Coded

Tensor = torch.Tensor


def is_simulated(scheme: OpScheme) -> bool:
    """True for products whose input has no kernel: its codes do not fill a byte, or are wider."""
    source = scheme.input
    return (
        scheme.mode in ("static", "dynamic") and source is not None and source.bits != 8
    )


class Simulated(Coded):
    """A layer with a stored weight whose input is rounded to its grid first.

    Args:
        layer: The layer; its arithmetic is float.
        dtype: Of the result.
        spec: Of the input.
        given: Scale and zero point of the input; None finds them for each input.
        factors: float32 (inputs,): the input is multiplied by it first, or None.
        transposed: The weight is stored as (inputs, outputs).
    """

    scale: Tensor | None
    zero: Tensor | None
    factors: Tensor | None

    def __init__(
        self,
        layer: Coded,
        dtype: torch.dtype,
        spec: QuantSpec,
        given: QuantParams | None,
        factors: Tensor | None = None,
        *,
        transposed: bool = False,
    ) -> None:
        super().__init__()
        self.layer = layer
        self.dtype = dtype
        self.spec = spec
        self.transposed = transposed
        self.register_buffer("scale", None if given is None else given.scale)
        self.register_buffer("zero", None if given is None else given.zero_point)
        self.register_buffer("factors", factors)

    def decoded_weight(self) -> Tensor:
        """Return the weight as float numbers, with what its input is multiplied by first."""
        weight = self.layer.decoded_weight()
        if self.factors is None:
            return weight
        factors = self.factors[:, None] if self.transposed else self.factors
        return weight * factors.to(weight.dtype)

    def forward(self, input: Tensor, *others: Tensor) -> Tensor:
        """Return the layer's output."""
        x = input  # torch.nn's name: a layer alone may be called by it
        values = x.float()
        if self.factors is not None:
            values = values * self.factors
        rounded = self.rounded(values)
        y: Tensor = self.layer(rounded.to(x.dtype), *others)
        return y

    def rounded(self, x: Tensor) -> Tensor:
        """Return values on the input's grid.

        A gradient passes straight through inside the range (Bengio et al. 2013, arXiv:1308.3432).
        """
        scale, zero = self._range(x.detach())
        on_grid: Tensor = steps(x.detach(), scale, zero, self.spec) * scale
        if not (x.requires_grad and torch.is_grad_enabled()):
            return on_grid
        low, high = integer_range(self.spec)
        kept: Tensor = x.clamp((low - zero) * scale, (high - zero) * scale)
        return kept + (on_grid - kept).detach()

    def _range(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.scale is not None and self.zero is not None:
            return self.scale, self.zero
        if self.spec.granularity == "token":
            params = token_params(x, self.spec)
        else:
            params = affine_params(x.amin(), x.amax(), self.spec)
        return params.scale, params.zero_point

    def extra_repr(self) -> str:
        """Return how its input is rounded."""
        mode = "dynamic" if self.scale is None else "static"
        return f"input {self.spec} {mode}, simulated"
