"""The codes of an activation: their parameters, and making them once for all that read one value."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from math import isfinite, nan
from typing import Any

import torch
from torch import nn

from octavo.adapters.pytorch.kernels import onednn
from octavo.core.numerics.affine import QuantParams, integer_range

from .differentiable import needs_gradient

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

    def __init__(self, scale: float, zero_point: int, low: int = 0, high: int = 255) -> None:
        self.scale, self.zero_point, self.low, self.high = scale, zero_point, low, high

    @classmethod
    def of(cls, params: QuantParams) -> Activation:
        """Return the uint8 form of per-tensor parameters; signed ones are shifted by 128."""
        low, high = integer_range(params.spec)
        shift = 128 if low < 0 else 0
        return cls(float(params.scale), int(params.zero_point) + shift, low + shift, high + shift)

    @classmethod
    def around(cls, x: Tensor, symmetric: bool) -> Activation:
        """Return parameters whose range is that of ``x``; their scale is NaN where ``x`` is not finite."""
        low, high = (float(v) for v in torch.aminmax(x)) if x.numel() else (0.0, 0.0)
        if not (isfinite(low) and isfinite(high)):
            return cls(
                nan, 128
            )  # no range holds them: results are NaN, as sums over them are in float
        if symmetric:
            return cls(max(-low, high) / 127 or 1.0, 128, 1, 255)
        low, high = min(low, 0.0), max(high, 0.0)
        scale = (high - low) / 255 or 1.0
        return cls(scale, min(255, max(0, round(-low / scale))))

    def key(self) -> tuple[float, int, int, int]:
        """Return what makes two of them equal."""
        return (self.scale, self.zero_point, self.low, self.high)

    def quantize(self, x: Tensor, factors: Tensor | None = None) -> Tensor:
        """Return the codes of ``x``."""
        return onednn.quantize_u8(x, self.scale, self.zero_point, self.low, self.high, factors)


class Quantize(nn.Module):
    """Float values -> uint8 codes; shared by all layers that read one value alike.

    Args:
        activation: The codes' parameters.

    Attributes:
        few: So few elements are passed on as they are: all readers quantize and multiply them in one kernel.
    """

    def __init__(self, activation: Activation) -> None:
        super().__init__()
        self.activation = activation
        self.few = 0

    def forward(self, x: Tensor) -> Tensor:
        """Return the codes of ``x``, or ``x``."""
        if needs_gradient(x):
            return x  # its readers quantize it alike, each with a gradient
        portable = torch.compiler.is_compiling() and onednn.is_portable()
        if (
            not portable
            and x.numel() <= self.few
            and x.dtype == torch.float32
            and x.device.type == "cpu"
        ):
            return x
        return self.activation.quantize(x)


class Memo:
    """Remembers what was made of one tensor, for the layers that read it one after the other (query, key, value).

    Args:
        readers: How many layers read it; after the last one the result is let go.
    """

    def __init__(self, readers: int) -> None:
        self.readers = readers
        self._entry: tuple[weakref.ref[Tensor], int, Any, list[int]] | None = None

    def get(self, x: Tensor, make: Callable[[Tensor], Any]) -> Any:
        """Return ``make(x)``, made once for one state of one tensor object."""
        if torch.compiler.is_compiling() or x.is_inference():
            return make(x)  # no version to tell that x was changed in place
        entry = self._entry
        if entry is not None and entry[0]() is x and entry[1] == x._version:
            entry[3][0] -= 1
            if entry[3][0] <= 0:
                self._entry = None
            return entry[2]
        made = make(x)
        self._entry = (weakref.ref(x), x._version, made, [self.readers - 1])
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        return (Memo, (self.readers,))
