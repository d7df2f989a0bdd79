"""Codes of less than eight bits, packed into bytes."""

from __future__ import annotations

from typing import Any, Literal

from array_api_compat import array_namespace, device

from octavo.core.errors import SchemeError

Array = Any
Order = Literal["low", "high"]


def pack(codes: Array, bits: int, order: Order = "low") -> Array:
    """Pack the last axis into bytes as one stream of bits.

    ``low`` puts the first code into the lowest bits, as ONNX stores int4, uint4, int2 and uint2 and as MatMulNBits takes its
    weights; ``high`` puts it into the highest (the order of the paper formats of fp4 pairs). Widths that do not divide
    eight (3, 5, 6, 7) run on across byte borders.

    Args:
        codes: Signed or unsigned integers; only the lowest ``bits`` bits of each count. Shape (..., n).
        bits: 1 to 8.
        order: Which code comes first in a byte.

    Returns:
        uint8, shape (..., ceil(n * bits / 8)); the last byte is filled up with zeros.
    """
    xp = array_namespace(codes)
    _check(bits)
    n = codes.shape[-1]
    if 8 % bits == 0:
        return _bytes_of_whole_codes(xp, codes, bits, order)
    low = xp.astype(codes, xp.int32) & (2**bits - 1)
    if bits in (3, 6) and order == "low":  # whole codes in whole bytes every 24 bits
        per = 24 // bits
        parts = xp.reshape(_pad(low, -n % per), (*low.shape[:-1], -1, per))
        word = parts[..., 0]
        for i in range(1, per):
            word = word | (parts[..., i] << (bits * i))
        octets = xp.stack(
            [xp.astype((word >> shift) & 255, xp.uint8) for shift in (0, 8, 16)], axis=-1
        )
        return xp.reshape(octets, (*low.shape[:-1], -1))[..., : -(-n * bits // 8)]
    stream = (low[..., None] >> _steps(xp, bits, 1, order, codes)) & 1
    stream = _pad(xp.reshape(stream, (*codes.shape[:-1], n * bits)), -(n * bits) % 8)
    octets = xp.reshape(stream, (*stream.shape[:-1], -1, 8))
    return xp.astype(xp.sum(octets << _steps(xp, 8, 1, order, codes), axis=-1), xp.uint8)


def _bytes_of_whole_codes(xp: Any, codes: Array, bits: int, order: Order) -> Array:
    """Pack codes whose width divides eight, byte by byte: nothing wider than the codes is made on the way."""
    per = 8 // bits
    low = xp.astype(codes, xp.uint8) & (2**bits - 1)
    low = _pad(low, -codes.shape[-1] % per)
    parts = xp.reshape(low, (*low.shape[:-1], -1, per))
    packed = xp.zeros(parts.shape[:-1], dtype=xp.uint8, device=device(codes))
    for place in range(per):
        shift = bits * (place if order == "low" else per - 1 - place)
        packed = packed | (parts[..., place] << shift)
    return packed


def unpack(
    packed: Array, bits: int, count: int, *, signed: bool = False, order: Order = "low"
) -> Array:
    """Undo :func:`pack`.

    Args:
        packed: uint8, shape (..., bytes).
        bits: 1 to 8.
        count: Length of the last axis before packing.
        signed: Whether the codes' highest bit is a sign.
        order: As it was packed.

    Returns:
        int8 or uint8, shape (..., count).
    """
    xp = array_namespace(packed)
    _check(bits)
    if bits in (3, 6) and order == "low":
        codes = _of_words(xp, packed, bits)[..., :count]
    elif 8 % bits == 0:
        octets = xp.astype(packed, xp.int32)[..., None]
        parts = (octets >> _steps(xp, 8 // bits, bits, order, packed)) & (2**bits - 1)
        codes = xp.reshape(parts, (*packed.shape[:-1], -1))[..., :count]
    else:
        octets = xp.astype(packed, xp.int32)[..., None]
        stream = xp.reshape(
            (octets >> _steps(xp, 8, 1, order, packed)) & 1, (*packed.shape[:-1], -1)
        )
        stream = xp.reshape(stream[..., : count * bits], (*packed.shape[:-1], count, bits))
        codes = xp.sum(stream << _steps(xp, bits, 1, order, packed), axis=-1)
    if not signed:
        return xp.astype(codes, xp.uint8)
    return xp.astype(xp.where(codes >= 2 ** (bits - 1), codes - 2**bits, codes), xp.int8)


def _of_words(xp: Any, packed: Array, bits: int) -> Array:
    """Return codes of 3 or 6 bits out of groups of three bytes, each of which holds whole ones."""
    octets = xp.astype(_pad(packed, -packed.shape[-1] % 3), xp.int32)
    octets = xp.reshape(octets, (*packed.shape[:-1], -1, 3))
    word = octets[..., 0] | (octets[..., 1] << 8) | (octets[..., 2] << 16)
    codes = xp.stack([(word >> (bits * i)) & (2**bits - 1) for i in range(24 // bits)], axis=-1)
    return xp.reshape(codes, (*packed.shape[:-1], -1))


def _steps(xp: Any, count: int, bits: int, order: Order, like: Array) -> Array:
    steps = xp.arange(count, dtype=xp.int32, device=device(like)) * bits
    return steps if order == "low" else xp.flip(steps)


def _pad(x: Array, width: int) -> Array:
    if not width:
        return x
    xp = array_namespace(x)
    return xp.concat(
        [x, xp.zeros((*x.shape[:-1], width), dtype=x.dtype, device=device(x))], axis=-1
    )


def _check(bits: int) -> None:
    if not 1 <= bits <= 8:
        raise SchemeError(f"codes of {bits} bits cannot be packed into bytes; 1 to 8 can")
