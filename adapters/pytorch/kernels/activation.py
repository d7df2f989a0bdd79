"""The codes of an activation: scale and zero point, and making codes with them."""

from __future__ import annotations

from math import isfinite, nan

import torch

from octavo.core.numerics.affine import QuantParams, integer_range

from .rounding import quantize_u8

Tensor = torch.Tensor


class Activation:
    """Scale and zero point of uint8 codes, as plain numbers.

    Attributes:
        scale: The scale.
        zero_point: In uint8 terms: a signed scheme's is shifted by 128.
        low: Smallest code.
        high: Largest code.
    """

    __slots__ = ("high", "low", "scale", "zero_point")

    def __init__(
        self, scale: float, zero_point: int, low: int = 0, high: int = 255
    ) -> None:
        self.scale = scale
        self.zero_point = zero_point
        self.low = low
        self.high = high

    @classmethod
    def of(cls, params: QuantParams) -> Activation:
        """Return the uint8 form of per-tensor parameters; signed ones are shifted by 128."""
        low, high = integer_range(params.spec)
        shift = 128 if low < 0 else 0
        return cls(
            float(params.scale),
            int(params.zero_point) + shift,
            low + shift,
            high + shift,
        )

    @classmethod
    def around(cls, x: Tensor, symmetric: bool) -> Activation:
        """Return parameters whose range is that of ``x``.

        Their scale is NaN where ``x`` is not finite.
        """
        low = high = 0.0
        if x.numel():
            low, high = (float(v) for v in torch.aminmax(x))
        if not (isfinite(low) and isfinite(high)):
            # No range holds them: results are NaN, as sums over them are in float.
            return cls(nan, 128)
        if symmetric:
            return cls(max(-low, high) / 127 or 1.0, 128, 1, 255)
        # Zero has a code of its own: padding and ReLU put it in.
        low = min(low, 0.0)
        high = max(high, 0.0)
        scale = (high - low) / 255 or 1.0
        zero_point = round(-low / scale)
        return cls(scale, min(255, max(0, zero_point)))

    def key(self) -> tuple[float, int, int, int]:
        """Return what makes two of them equal."""
        return (self.scale, self.zero_point, self.low, self.high)

    def quantize(self, x: Tensor, factors: Tensor | None = None) -> Tensor:
        """Return the codes of ``x``."""
        return quantize_u8(x, self.scale, self.zero_point, self.low, self.high, factors)
