"""A quantized tensor: codes, scales, and the way back to float."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

from array_api_compat import array_namespace

from octavo.core.values.sizes import stored_bytes

from .affine import Array, QuantParams
from .codec import decode
from .low_rank import Repair
from .packing import pack, unpack


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class QuantizedTensor:
    """Codes of a weight with their parameters.

    Identity is equality, so that adapters can cache what they pack.

    Attributes:
        codes: int8 (signed types up to 8 bits), uint8 (unsigned, code books and floating-point bit
            patterns), int16 or uint16, or float16/bfloat16 numbers; unpacked, in the weight's own
            shape. See :mod:`octavo.core.numerics.codec`.
        params: Scale, zero point, spec, channel axis.
        extra: The second level of two-level scales: ``scale_codes`` (uint8, the shape of the
            scales), ``scale_scale`` and ``scale_offset`` (float32). ``params.scale`` always holds
            the scales that they amount to.
        repair: What is added to the numbers that the codes stand for; None for nothing.
    """

    codes: Array
    params: QuantParams
    extra: dict[str, Any] | None = None
    repair: Repair | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The weight's shape."""
        return tuple(self.codes.shape)

    def dequantize(self) -> Array:
        """Return the float32 array that the codes stand for, with the repair."""
        numbers = decode(self.codes, self.params)
        if self.repair is None:
            return numbers
        return numbers + self.repair.whole(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes when packed at the spec's bit width.

        Scales (in their own format), zero points (in the codes') and the repair are included.
        """
        repair = self.repair.nbytes if self.repair is not None else 0
        return stored_bytes(self.params.spec, self.shape, self.params.axis) + repair


_CHUNK = 2**20
"""Codes that are packed or unpacked at a time: the arithmetic is wider than the codes."""


class PackedTensor(QuantizedTensor):
    """A quantized tensor that keeps its codes in two, three, four or six bits each.

    It unpacks them whenever they are asked for.

    Args:
        tensor: Codes of 2, 3, 4 or 6 bits.

    Attributes:
        packed: uint8, flat: the flattened codes less the smallest one of their type, the first one
            in the lowest bits.
    """

    __slots__ = ("_shape", "_signed", "packed")
    packed: Array
    _shape: tuple[int, ...]
    _signed: bool

    def __init__(self, tensor: QuantizedTensor) -> None:
        bits = tensor.params.spec.bits
        codes = tensor.codes
        xp = array_namespace(codes)
        signed = codes.dtype == xp.int8
        flat = xp.reshape(codes, (-1,))
        offset = 2 ** (bits - 1) if signed else 0
        starts = range(0, flat.shape[0], _CHUNK)
        parts = [pack(flat[start : start + _CHUNK] + offset, bits) for start in starts]
        fields = {
            "params": tensor.params,
            "extra": tensor.extra,
            "repair": tensor.repair,
            "packed": xp.concat(parts) if parts else pack(flat, bits),
            "_shape": tensor.shape,
            "_signed": signed,
        }
        for name, value in fields.items():
            # The class is frozen.
            object.__setattr__(self, name, value)

    def __reduce__(self) -> tuple[Any, ...]:
        whole = QuantizedTensor(self.codes, self.params, self.extra, self.repair)
        return PackedTensor, (whole,)

    @property
    def codes(self) -> Array:
        """The codes, unpacked for the caller alone."""
        bits = self.params.spec.bits
        xp = array_namespace(self.packed)
        codes = xp.reshape(self._flat_codes(bits), self._shape)
        return xp.astype(codes, xp.int8) - 2 ** (bits - 1) if self._signed else codes

    def _flat_codes(self, bits: int) -> Array:
        xp = array_namespace(self.packed)
        left = prod(self._shape)
        if not left:
            return unpack(self.packed, bits, 0)
        # A chunk of codes fills whole bytes: its length is a multiple of eight.
        step = _CHUNK * bits // 8
        parts = []
        for start in range(0, self.packed.shape[0], step):
            count = min(_CHUNK, left)
            parts.append(unpack(self.packed[start : start + step], bits, count))
            left -= count
        return xp.concat(parts)

    @property
    def shape(self) -> tuple[int, ...]:
        """The weight's shape."""
        return self._shape


def compact(tensor: QuantizedTensor) -> QuantizedTensor:
    """Return the tensor with codes of 2, 3, 4 or 6 bits packed.

    Others, which would take long to unpack, stay as they are.
    """
    return PackedTensor(tensor) if tensor.params.spec.bits in (2, 3, 4, 6) else tensor
