"""Uniform affine quantization: q = clip(round(x / scale) + zero_point, qmin, qmax); x' = scale * (q - zero_point).

Source: ONNX operator specification, QuantizeLinear-25 and DequantizeLinear-25; rounding is to nearest, ties to even.
Functions take and return arrays of one array-API namespace.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from ..errors import SchemeError
from ..scheme import QuantSpec

Array = Any  # an array of any array-API namespace; the standard has no common base class


@dataclass(frozen=True, slots=True)
class QuantParams:
    """Scale and zero point of one tensor.

    Attributes:
        scale: float32; shape () for ``tensor``, (channels,) for ``channel``, (channels, groups) for ``group:N``.
        zero_point: int32, the same shape.
        spec: What they belong to.
        axis: Channel axis; None for ``tensor``.
    """

    scale: Array
    zero_point: Array
    spec: QuantSpec
    axis: int | None = None


def integer_range(spec: QuantSpec) -> tuple[int, int]:
    """Return (qmin, qmax) of an integer spec.

    A symmetric signed range leaves its lowest code out ([-127, 127]), so that negation stays exact and
    products of two int8 values cannot reach 2**14, for 8 bits and more; narrower types need each code.

    Raises:
        SchemeError: If the dtype is no integer type.
    """
    name = spec.dtype
    if not name.lstrip("u").startswith("int"):
        raise SchemeError(f"{name!r} is no integer type; affine quantization takes int2 to int16 and uint2 to uint16")
    bits = spec.bits - (1 if spec.reduce_range else 0)
    if name.startswith("u"):
        return 0, 2**bits - 1
    low = -(2 ** (bits - 1))
    return (low + 1 if spec.symmetric and bits >= 7 else low), 2 ** (bits - 1) - 1


def affine_params(low: Array, high: Array, spec: QuantSpec, axis: int | None = None) -> QuantParams:
    """Choose scale and zero point so that [low, high] fills the integer range; zero stays exact.

    Args:
        low: Lower ends, float, any shape.
        high: Upper ends, the same shape.
        spec: Integer dtype and symmetry.
        axis: Channel axis, kept with the result.

    Returns:
        Parameters of the same shape. All-zero ranges get scale 1.
    """
    xp = array_namespace(low, high)
    low, high = xp.astype(low, xp.float32), xp.astype(high, xp.float32)
    zero = xp.zeros_like(low)
    low, high = xp.minimum(low, zero), xp.maximum(high, zero)
    qmin, qmax = integer_range(spec)
    if spec.symmetric:
        middle = 0 if qmin < 0 else (qmin + qmax + 1) // 2
        scale = xp.maximum(-low, high) / (qmax - middle)
        zero_point = xp.full_like(xp.astype(low, xp.int32), middle)
    else:
        scale = (high - low) / (qmax - qmin)
    tiny = float(np.finfo(np.float32).tiny)
    scale = xp.where(scale < tiny, xp.ones_like(scale), scale)
    if not spec.symmetric:
        zero_point = xp.astype(xp.clip(xp.round(qmin - low / scale), qmin, qmax), xp.int32)
    return QuantParams(scale, zero_point, spec, axis)


def _aligned(params: QuantParams, ndim: int) -> tuple[Array, Array]:
    """Reshape scale and zero point so that they broadcast along the channel axis."""
    scale, zero_point = params.scale, params.zero_point
    if params.axis is not None and scale.ndim == 1:
        shape = [1] * ndim
        shape[params.axis] = -1
        xp = array_namespace(scale)
        scale, zero_point = xp.reshape(scale, tuple(shape)), xp.reshape(zero_point, tuple(shape))
    return scale, zero_point


def quantize(x: Array, params: QuantParams) -> Array:
    """Return the codes of ``x``: int32, same shape. ``tensor`` and ``channel`` granularity."""
    xp = array_namespace(x, params.scale)
    scale, zero_point = _aligned(params, x.ndim)
    qmin, qmax = integer_range(params.spec)
    return xp.clip(xp.astype(xp.round(x / scale), xp.int32) + zero_point, qmin, qmax)


def dequantize(codes: Array, params: QuantParams) -> Array:
    """Return scale * (codes - zero_point), float32, same shape."""
    xp = array_namespace(codes, params.scale)
    scale, zero_point = _aligned(params, codes.ndim)
    return scale * xp.astype(xp.astype(codes, xp.int32) - zero_point, xp.float32)
