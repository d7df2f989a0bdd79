"""Conversion between types, the narrow floats and integers of ml_dtypes included."""

from __future__ import annotations

from typing import Any

import numpy as np

from .registry import operator

_OWN_SATURATION = ("float4_e2m1fn", "float6_e2m3fn", "float6_e3m2fn", "float8_e8m0fnu")
INTEGER_RANGES = {"int2": (-2, 1), "uint2": (0, 3), "int4": (-8, 7), "uint4": (0, 15)}


def dtype_of(name: str) -> np.dtype[Any]:
    """Return a dtype by name; names that NumPy does not know come from ml_dtypes."""
    try:
        return np.dtype(name)
    except TypeError:
        import ml_dtypes

        found: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
        return found


def integer_range_of(dtype: np.dtype[Any]) -> tuple[int, int] | None:
    """Return the range of an integer dtype, or None for floats."""
    if dtype.name in INTEGER_RANGES:
        return INTEGER_RANGES[dtype.name]
    if dtype.kind in "iu":
        info = np.iinfo(dtype)
        return int(info.min), int(info.max)
    return None


def plain(x: np.ndarray) -> np.ndarray:
    """Return float32 for types that NumPy has from elsewhere (bfloat16), else ``x`` itself.

    Array functions ask for NumPy's own types.
    """
    return x if x.dtype.isbuiltin == 1 else x.astype(np.float32)


def to_float(x: np.ndarray) -> np.ndarray:
    """Return float32 of any numeric type (two steps where NumPy has no direct way)."""
    return x.astype(np.float32)


def convert(
    x: np.ndarray, dtype: np.dtype[Any], saturate: bool = True, round_mode: str = "up"
) -> np.ndarray:
    """Convert as the ONNX operator Cast does: 8-bit floats saturate or overflow, narrow integers keep their low bits."""
    if x.dtype == dtype:
        return x
    if dtype.name.startswith("float8") and dtype.name not in _OWN_SATURATION:
        return _to_float8(x, dtype, saturate)
    if dtype.name == "float8_e8m0fnu":
        return _to_e8m0(x.astype(np.float32), dtype, saturate, round_mode)
    if dtype.name in INTEGER_RANGES:
        bits = int(dtype.name[-1])
        whole = (
            x.astype(np.float32).astype(np.int32)
            if x.dtype.kind not in "iub"
            else x.astype(np.int32)
        )
        low = whole & (2**bits - 1)
        if not dtype.name.startswith("u"):
            low = np.where(low >= 2 ** (bits - 1), low - 2**bits, low)
        return np.asarray(low.astype(np.int8).astype(dtype))
    if x.dtype.name in INTEGER_RANGES:
        return (
            x.astype(np.int8).astype(dtype)
            if not x.dtype.name.startswith("u")
            else x.astype(np.uint8).astype(dtype)
        )
    with np.errstate(over="ignore", invalid="ignore"):
        return x.astype(dtype)


def _to_float8(x: np.ndarray, dtype: np.dtype[Any], saturate: bool) -> np.ndarray:
    import ml_dtypes

    wide = x.astype(np.float32)
    if not saturate:
        with np.errstate(over="ignore", invalid="ignore"):
            return wide.astype(dtype)
    info: Any = ml_dtypes.finfo
    largest = float(info(dtype).max)
    return (
        np.where(np.isnan(wide), wide, np.clip(wide, -largest, largest))
        .astype(np.float32)
        .astype(dtype)
    )


def _to_e8m0(x: np.ndarray, dtype: np.dtype[Any], saturate: bool, round_mode: str) -> np.ndarray:
    """Powers of two from 2**-127 to 2**127, one byte, 255 for NaN. Source: the ONNX technical note on float8."""
    bits = np.abs(x).astype(np.float32).view(np.uint32)
    exponent = (bits >> 23).astype(np.int32)
    fraction = bits & 0x7FFFFF
    if round_mode == "up":
        # Below 2**-127 there is nothing to round up from: the smallest power holds.
        more = (fraction > 0) & ~((exponent == 0) & (fraction <= 0x400000))
    elif round_mode == "nearest":
        more = fraction >= 0x400000
    else:
        more = np.zeros_like(fraction, dtype=bool)
    raised = exponent + more
    raised = np.where(raised > 254, 254 if saturate else 255, raised)
    raised = np.where(
        np.isnan(x) | (~np.isfinite(x) & (not saturate)),
        255,
        np.where(np.isinf(x) & saturate, 254, raised),
    )
    return raised.astype(np.uint8).view(dtype)


@operator("Cast")
def cast(x: np.ndarray, *, to: str, saturate: int = 1, round_mode: str = "up") -> Any:
    """Convert to another type. ``to`` is a dtype name (the reader translates ONNX's numbers)."""
    return convert(x, dtype_of(to), bool(saturate), round_mode)


@operator("CastLike")
def cast_like(x: np.ndarray, like: np.ndarray, *, saturate: int = 1, round_mode: str = "up") -> Any:
    """Convert to the type of another array."""
    return convert(x, like.dtype, bool(saturate), round_mode)
