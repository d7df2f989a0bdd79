"""A quantized tensor: codes, scales, and the way back to float."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from array_api_compat import array_namespace

from .affine import Array, QuantParams, dequantize, integer_range


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class QuantizedTensor:
    """Codes of a weight with their parameters. Identity is equality, so that adapters can cache what they pack.

    Attributes:
        codes: int8 (signed types up to 8 bits), uint8 (unsigned, and code books such as nf4) or int16; unpacked,
            in the weight's own shape.
        params: Scale, zero point, spec, channel axis.
        extra: What some formats add (a second-level scale, a code book), by name.
    """

    codes: Array
    params: QuantParams
    extra: dict[str, Any] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The weight's shape."""
        return tuple(self.codes.shape)

    def dequantize(self) -> Array:
        """Return the float32 array that the codes stand for."""
        return dequantize(self.codes, self.params)

    @property
    def nbytes(self) -> int:
        """Bytes when packed at the spec's bit width, scales included (float32) and zero points at the same width."""
        spec = self.params.spec
        count = 1
        for d in self.shape:
            count *= d
        scales = 1
        for d in self.params.scale.shape:
            scales *= d
        zero_points = 0 if spec.symmetric else scales * spec.bits / 8
        return int(-(-count * spec.bits // 8) + 4 * scales + zero_points)


def narrow(codes: Array, params: QuantParams) -> Array:
    """Return int32 codes in the narrowest of int8, uint8 and int16 that holds the spec's range."""
    xp = array_namespace(codes)
    low, high = integer_range(params.spec)
    if low >= 0:
        return xp.astype(codes, xp.uint8 if high < 256 else xp.uint16)
    return xp.astype(codes, xp.int8 if high < 128 else xp.int16)
