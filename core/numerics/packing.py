"""Codes of less than eight bits, packed into bytes."""

from __future__ import annotations

from typing import Any, Literal

from array_api_compat import array_namespace, device

from octavo.core.errors import SchemeError

Array = Any
Order = Literal["low", "high"]


def pack(codes: Array, bits: int, order: Order = "low") -> Array:
    """Pack the last axis into bytes as one stream of bits.

    ``low`` puts the first code into the lowest bits, as ONNX stores int4, uint4, int2 and uint2 and
    as MatMulNBits takes its weights; ``high`` puts it into the highest (the order of the paper
    formats of fp4 pairs). Widths that do not divide eight (3, 5, 6, 7) run on across byte borders.

    Args:
        codes: Signed or unsigned integers; only the lowest ``bits`` bits of each count. Shape
            (..., n).
        bits: 1 to 8.
        order: Which code comes first in a byte.

    Returns:
        uint8, shape (..., ceil(n * bits / 8)); the last byte is filled up with zeros.

    Raises:
        SchemeError: If codes of so many bits do not fit a byte.
    """
    xp = array_namespace(codes)
    _check(bits)
    if 8 % bits == 0:
        return _bytes_of_whole_codes(xp, codes, bits, order)
    low = xp.astype(codes, xp.int32) & (2**bits - 1)
    if _fills_three_bytes(bits, order):
        return _bytes_of_words(xp, low, bits)
    return _bytes_of_stream(xp, low, bits, order)


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

    Raises:
        SchemeError: If codes of so many bits do not fit a byte.
    """
    xp = array_namespace(packed)
    _check(bits)
    if _fills_three_bytes(bits, order):
        codes = _codes_of_words(xp, packed, bits)[..., :count]
    elif 8 % bits == 0:
        codes = _whole_codes_of_bytes(xp, packed, bits, order)[..., :count]
    else:
        codes = _codes_of_stream(xp, packed, bits, count, order)
    if not signed:
        return xp.astype(codes, xp.uint8)
    is_negative = codes >= 2 ** (bits - 1)
    # Two's complement: a code whose highest bit is set stands for one that is 2**bits less.
    numbers = xp.where(is_negative, codes - 2**bits, codes)
    return xp.astype(numbers, xp.int8)


_CHUNK = 2**20
"""Codes that are packed or unpacked at a time: the arithmetic is wider than the codes."""


def pack_stream(codes: Array, bits: int) -> Array:
    """Pack all codes of an array, in C order, as one stream of bits: only its last byte may be
    filled up.

    Args:
        codes: As :func:`pack` takes them, any shape.
        bits: 1 to 8.

    Returns:
        uint8, flat.
    """
    xp = array_namespace(codes)
    flat = xp.reshape(codes, (-1,))
    starts = range(0, flat.shape[0], _CHUNK)
    parts = [pack(flat[start : start + _CHUNK], bits) for start in starts]
    return xp.concat(parts) if parts else pack(flat, bits)


def unpack_stream(
    packed: Array, bits: int, count: int, *, signed: bool = False
) -> Array:
    """Undo :func:`pack_stream`: return int8 or uint8 codes, flat.

    Args:
        packed: uint8, flat.
        bits: 1 to 8.
        count: How many codes there are.
        signed: Whether the codes' highest bit is a sign.
    """
    xp = array_namespace(packed)
    if not count:
        return unpack(packed, bits, 0, signed=signed)
    # A chunk of codes fills whole bytes: its length is a multiple of eight.
    step = _CHUNK * bits // 8
    parts = []
    for start in range(0, packed.shape[0], step):
        own = packed[start : start + step]
        parts.append(unpack(own, bits, min(_CHUNK, count), signed=signed))
        count -= _CHUNK
    return xp.concat(parts)


def _fills_three_bytes(bits: int, order: Order) -> bool:
    """True if three bytes hold whole codes though one does not."""
    return bits in (3, 6) and order == "low"


# Widths that divide eight: whole codes in each byte


def _bytes_of_whole_codes(xp: Any, codes: Array, bits: int, order: Order) -> Array:
    """Pack byte by byte: nothing wider than the codes is made on the way."""
    per_byte = 8 // bits
    mask = 2**bits - 1
    low_bits = xp.astype(codes, xp.uint8) & mask
    parts = _in_rows(low_bits, per_byte)
    shape = parts.shape[:-1]
    packed = xp.zeros(shape, dtype=xp.uint8, device=device(codes))
    for place in range(per_byte):
        shift = bits * place
        if order == "high":
            shift = 8 - bits - shift
        packed = packed | (parts[..., place] << shift)
    return packed


def _whole_codes_of_bytes(xp: Any, packed: Array, bits: int, order: Order) -> Array:
    octets = xp.astype(packed, xp.int32)
    per_byte = 8 // bits
    mask = 2**bits - 1
    shifts = _steps(xp, per_byte, bits, order, packed)
    shifted = octets[..., None] >> shifts
    return _flattened(shifted & mask)


# Three and six bits: whole codes in each word of 24 bits


def _bytes_of_words(xp: Any, codes: Array, bits: int) -> Array:
    per_word = 24 // bits
    parts = _in_rows(codes, per_word)
    word = parts[..., 0]
    for place in range(1, per_word):
        shift = bits * place
        word = word | (parts[..., place] << shift)
    octets = []
    for shift in (0, 8, 16):
        octet = (word >> shift) & 255
        octets.append(xp.astype(octet, xp.uint8))
    packed = _flattened(xp.stack(octets, axis=-1))
    # The last word may hold whole bytes of filling alone.
    filled_bits = codes.shape[-1] * bits
    needed = -(-filled_bits // 8)
    return packed[..., :needed]


def _codes_of_words(xp: Any, packed: Array, bits: int) -> Array:
    threes = _in_rows(packed, 3)
    octets = xp.astype(threes, xp.int32)
    middle = octets[..., 1] << 8
    high = octets[..., 2] << 16
    word = octets[..., 0] | middle | high
    mask = 2**bits - 1
    codes = [(word >> shift) & mask for shift in range(0, 24, bits)]
    return _flattened(xp.stack(codes, axis=-1))


# Any width: bit by bit


def _bytes_of_stream(xp: Any, codes: Array, bits: int, order: Order) -> Array:
    single_bits = _single_bits(xp, codes, bits, order)
    by_octet = _in_rows(_flattened(single_bits), 8)
    octets = _joined(xp, by_octet, order)
    return xp.astype(octets, xp.uint8)


def _codes_of_stream(
    xp: Any, packed: Array, bits: int, count: int, order: Order
) -> Array:
    octets = xp.astype(packed, xp.int32)
    single_bits = _single_bits(xp, octets, 8, order)
    stream = _flattened(single_bits)[..., : count * bits]
    shape = (*packed.shape[:-1], count, bits)
    by_code = xp.reshape(stream, shape)
    return _joined(xp, by_code, order)


def _single_bits(xp: Any, numbers: Array, bits: int, order: Order) -> Array:
    """Return the bits of each number along a new last axis."""
    shifts = _steps(xp, bits, 1, order, numbers)
    shifted = numbers[..., None] >> shifts
    return shifted & 1


def _joined(xp: Any, single_bits: Array, order: Order) -> Array:
    """Return the numbers whose bits lie along the last axis."""
    bits = single_bits.shape[-1]
    places = single_bits << _steps(xp, bits, 1, order, single_bits)
    return xp.sum(places, axis=-1)


def _steps(xp: Any, count: int, bits: int, order: Order, like: Array) -> Array:
    """Return by how many bits each of ``count`` places is shifted."""
    steps = xp.arange(count, dtype=xp.int32, device=device(like)) * bits
    if order == "low":
        return steps
    return xp.flip(steps)


def _in_rows(x: Array, width: int) -> Array:
    """Return the last axis in rows of ``width``; the last one is filled up with zeros."""
    xp = array_namespace(x)
    *leading, length = x.shape
    missing = -length % width
    if missing:
        shape = (*leading, missing)
        zeros = xp.zeros(shape, dtype=x.dtype, device=device(x))
        x = xp.concat([x, zeros], axis=-1)
    rows = (length + missing) // width
    return xp.reshape(x, (*leading, rows, width))


def _flattened(x: Array) -> Array:
    """Return the last two axes as one."""
    xp = array_namespace(x)
    *leading, rows, width = x.shape
    return xp.reshape(x, (*leading, rows * width))


def _check(bits: int) -> None:
    if not 1 <= bits <= 8:
        raise SchemeError(
            f"codes of {bits} bits cannot be packed into bytes; 1 to 8 can"
        )
