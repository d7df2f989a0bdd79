"""A quantized tensor: codes, scales, and the way back to float."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

from .affine import Array, QuantParams, is_integer
from .codec import decode

_SCALE_BYTES = {"float16": 2, "bfloat16": 2, "uint8": 1, "fp8_e4m3fn": 1, "e8m0": 1}


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class QuantizedTensor:
    """Codes of a weight with their parameters. Identity is equality, so that adapters can cache what they pack.

    Attributes:
        codes: int8 (signed types up to 8 bits), uint8 (unsigned, code books and floating-point bit patterns), int16 or
            uint16, or float16/bfloat16 numbers; unpacked, in the weight's own shape. See :mod:`octavo.core.numerics.codec`.
        params: Scale, zero point, spec, channel axis.
        extra: The second level of two-level scales: ``scale_codes`` (uint8, the shape of the scales), ``scale_scale`` and
            ``scale_offset`` (float32). ``params.scale`` always holds the scales that they amount to.
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
        return decode(self.codes, self.params)

    @property
    def nbytes(self) -> int:
        """Bytes when packed at the spec's bit width, scales (in their own format) and zero points (in the codes') included."""
        spec = self.params.spec
        scales = prod(self.params.scale.shape)
        if spec.dtype in ("float16", "bfloat16"):
            return 2 * prod(self.shape)
        second = 0
        if self.extra:
            second = 4 * sum(prod(self.extra[k].shape) for k in ("scale_scale", "scale_offset") if k in self.extra)
        width = 1 if spec.dtype.startswith(("mx", "nvfp")) else _SCALE_BYTES.get(spec.scale_dtype or "float32", 4)
        zero_points = 0 if spec.symmetric or not is_integer(spec) else scales * spec.bits / 8
        return int(-(-prod(self.shape) * spec.bits // 8) + width * scales + second + zero_points)
