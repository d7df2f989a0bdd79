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
from .packing import pack_stream, unpack_stream


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
        offset = 2 ** (bits - 1) if signed else 0
        fields = {
            "params": tensor.params,
            "extra": tensor.extra,
            "repair": tensor.repair,
            "packed": pack_stream(codes + offset if offset else codes, bits),
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
        flat = unpack_stream(self.packed, bits, prod(self._shape))
        codes = xp.reshape(flat, self._shape)
        return xp.astype(codes, xp.int8) - 2 ** (bits - 1) if self._signed else codes

    @property
    def shape(self) -> tuple[int, ...]:
        """The weight's shape."""
        return self._shape


def compact(tensor: QuantizedTensor) -> QuantizedTensor:
    """Return the tensor with codes of 2, 3, 4 or 6 bits packed.

    Others, which would take long to unpack, stay as they are.
    """
    return PackedTensor(tensor) if tensor.params.spec.bits in (2, 3, 4, 6) else tensor
