"""Conversion between types, the narrow floats and integers of ml_dtypes included."""

from __future__ import annotations

from typing import Any

import numpy as np

from octavo.adapters.numpy.graph import Array

from .registry import operator

DType = np.dtype[Any]

INTEGER_RANGES = {"int2": (-2, 1), "uint2": (0, 3), "int4": (-8, 7), "uint4": (0, 15)}
"""Integers of ml_dtypes that NumPy's iinfo does not know: smallest and largest."""


def dtype_of(name: str) -> DType:
    """Return a dtype by name; names that NumPy does not know come from ml_dtypes."""
    try:
        return np.dtype(name)
    except TypeError:
        # Imported only here: models of plain types need NumPy alone.
        import ml_dtypes

        found: DType = np.dtype(getattr(ml_dtypes, name))
        return found


def integer_range_of(dtype: DType) -> tuple[int, int] | None:
    """Return the range of an integer dtype, or None for floats."""
    if dtype.name in INTEGER_RANGES:
        return INTEGER_RANGES[dtype.name]
    if dtype.kind in "iu":
        info = np.iinfo(dtype)
        return int(info.min), int(info.max)
    return None


def plain(x: Array) -> Array:
    """Return float32 for types that NumPy has from elsewhere (bfloat16), else ``x`` itself.

    Array functions ask for NumPy's own types.
    """
    return x if x.dtype.isbuiltin == 1 else x.astype(np.float32)


def convert(
    x: Array, dtype: DType, saturate: bool = True, round_mode: str = "up"
) -> Array:
    """Convert as ONNX Cast does.

    8-bit floats saturate or overflow, narrow integers keep their low bits.
    """
    if x.dtype == dtype:
        return x
    if dtype.name == "float8_e8m0fnu":
        return _to_e8m0(x.astype(np.float32), dtype, saturate, round_mode)
    if dtype.name.startswith("float8"):
        return _to_float8(x, dtype, saturate)
    if dtype.name in INTEGER_RANGES:
        return _to_narrow_integer(x, dtype)
    if x.dtype.name in INTEGER_RANGES:
        # ml_dtypes converts its narrow integers to whole bytes, and not to every other type.
        byte = np.uint8 if x.dtype.name.startswith("u") else np.int8
        return x.astype(byte).astype(dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        return x.astype(dtype)


def _to_narrow_integer(x: Array, dtype: DType) -> Array:
    codes = 2 ** int(dtype.name[-1])
    wide = x if x.dtype.kind in "iub" else x.astype(np.float32)
    low = wide.astype(np.int32) & (codes - 1)
    if not dtype.name.startswith("u"):
        # Two's complement: the upper half of the codes are the negative numbers.
        is_negative = low >= codes // 2
        low = np.where(is_negative, low - codes, low)
    return np.asarray(low.astype(np.int8).astype(dtype))


def _to_float8(x: Array, dtype: DType, saturate: bool) -> Array:
    import ml_dtypes

    wide = x.astype(np.float32)
    if not saturate:
        with np.errstate(over="ignore", invalid="ignore"):
            return wide.astype(dtype)
    info: Any = ml_dtypes.finfo
    largest = float(info(dtype).max)
    # A clipped NaN stays NaN.
    clipped = np.clip(wide, np.float32(-largest), np.float32(largest))
    return clipped.astype(dtype)


_E8M0_NAN = 255
_E8M0_LARGEST = 254
_HALF_FRACTION = 0x400000  # of the 23 fraction bits of a float32


def _to_e8m0(x: Array, dtype: DType, saturate: bool, round_mode: str) -> Array:
    """Powers of two from 2**-127 to 2**127, one byte, 255 for NaN.

    Source: the ONNX technical note on float8.
    """
    bits = np.abs(x).astype(np.float32).view(np.uint32)
    exponent = (bits >> 23).astype(np.int32)
    fraction = bits & 0x7FFFFF
    if round_mode == "up":
        # Below 2**-127 there is nothing to round up from: the smallest power holds.
        is_smallest = (exponent == 0) & (fraction <= _HALF_FRACTION)
        more = (fraction > 0) & ~is_smallest
    elif round_mode == "nearest":
        more = fraction >= _HALF_FRACTION
    else:
        more = np.zeros_like(fraction, dtype=bool)
    code = exponent + more
    overflow = _E8M0_LARGEST if saturate else _E8M0_NAN
    code = np.where(code > _E8M0_LARGEST, overflow, code)
    code = np.where(np.isinf(x), overflow, code)
    code = np.where(np.isnan(x), _E8M0_NAN, code)
    return code.astype(np.uint8).view(dtype)


@operator("Cast")
def cast(x: Array, *, to: str, saturate: int = 1, round_mode: str = "up") -> Any:
    """ONNX Cast: convert to the type named ``to`` (the reader translates ONNX's numbers)."""
    return convert(x, dtype_of(to), bool(saturate), round_mode)


@operator("CastLike")
def cast_like(
    x: Array, like: Array, *, saturate: int = 1, round_mode: str = "up"
) -> Any:
    """ONNX CastLike: convert to the type of another array."""
    return convert(x, like.dtype, bool(saturate), round_mode)
