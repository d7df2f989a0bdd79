"""Uniform affine quantization of real numbers to integers and back.

q = clip(round(x / scale) + zero_point, qmin, qmax) and x' = scale * (q - zero_point).

Source: ONNX operator specification, QuantizeLinear-25 and DequantizeLinear-25; rounding is to
nearest, ties to even. Functions take and return arrays of one array-API namespace (NumPy, torch on
any device).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from array_api_compat import array_namespace

from octavo.core.errors import SchemeError
from octavo.core.values.scheme import QuantSpec

from .layout import spread
from .rounding import Rounding, nearest

Array = (
    Any  # an array of any array-API namespace; the standard has no common base class
)

Convention = Literal["octavo", "tensorflow", "pytorch", "ipex"]
"""Who decides how a range becomes a scale; see :func:`affine_params`."""

SMALLEST_SCALE = float(np.finfo(np.float32).tiny)
"""The smallest normal number: scales below it count as zero."""


@dataclass(frozen=True, slots=True)
class QuantParams:
    """Scale and zero point of one tensor.

    Attributes:
        scale: float32; shape () for ``tensor``, (channels,) for ``channel``, (channels,
            ceil(features / N)) for ``group:N``, (ceil(channels / R), ceil(features / C)) for
            ``block:RxC``, the tensor's shape with a last axis of 1 for ``token``. A weight's
            features are its other axes, flattened in their order.
        zero_point: int32, the same shape.
        spec: What they belong to.
        axis: Channel axis; None for ``tensor`` and ``token``.
    """

    scale: Array
    zero_point: Array
    spec: QuantSpec
    axis: int | None = None


def is_integer(spec: QuantSpec) -> bool:
    """True if the spec's dtype is one of int2 to int16 and uint2 to uint16."""
    return spec.dtype.lstrip("u").startswith("int")


def integer_range(spec: QuantSpec) -> tuple[int, int]:
    """Return (qmin, qmax) of an integer spec.

    A symmetric signed range leaves its lowest code out ([-127, 127]), so that negation stays exact
    and products of two int8 values cannot reach 2**14, for 8 bits and more; narrower types need
    each code.

    Raises:
        SchemeError: If the dtype is no integer type.
    """
    if not is_integer(spec):
        raise SchemeError(
            f"{spec.dtype!r} is no integer type; "
            "affine quantization takes int2 to int16 and uint2 to uint16"
        )
    bits = spec.bits - (1 if spec.reduce_range else 0)
    if spec.dtype.startswith("u"):
        return 0, 2**bits - 1
    high = 2 ** (bits - 1) - 1
    # Seven bits count as a reduced range of eight.
    is_balanced = spec.symmetric and bits >= 7
    return (-high if is_balanced else -high - 1), high


def affine_params(
    low: Array,
    high: Array,
    spec: QuantSpec,
    axis: int | None = None,
    *,
    convention: Convention = "octavo",
    include_zero: bool = True,
    scale: Array | None = None,
) -> QuantParams:
    """Choose scale and zero point so that [low, high] fills the integer range.

    With a = max(|low|, |high|), the conventions differ in symmetric types (b bits; for 8 bits in
    brackets):

    ============ ==================================== ===================================
    convention   signed                               unsigned
    ============ ==================================== ===================================
    octavo       a / (2**(b-1) - 1)  [a / 127]        a / (2**(b-1) - 1), zero point 2**(b-1)
    tensorflow   the same            [2a / 254]       max(low, high) / (2**b - 1), zero point 0
    pytorch      a / ((2**b - 1) / 2) [a / 127.5]     the same, zero point 2**(b-1)
    ipex         as tensorflow                        as tensorflow
    ============ ==================================== ===================================

    Asymmetric: scale = (high - low) / (qmax - qmin); zero_point = round(qmin - low / scale), as in
    DynamicQuantizeLinear, in ``pytorch`` qmin - round(low / scale). Every qmin is even, so that
    both send a tie to the same code. They differ only where low / scale lies so near to one half
    that the float32 difference is the tie.

    Args:
        low: Lower ends, float, any shape.
        high: Upper ends, the same shape.
        spec: Integer dtype and symmetry.
        axis: Channel axis, kept with the result.
        convention: Whose formula.
        include_zero: Widen the range so that 0.0 has a code of its own. Without it the zero point
            may lie outside of the integer range, which no runtime accepts.
        scale: Given already, as it is stored; the zero points of an asymmetric spec are those that
            go with it.

    Returns:
        Parameters of the same shape. All-zero ranges get scale 1.
    """
    xp = array_namespace(low, high)
    low = xp.astype(low, xp.float32)
    high = xp.astype(high, xp.float32)
    if include_zero:
        zero = xp.zeros_like(low)
        low = xp.minimum(low, zero)
        high = xp.maximum(high, zero)
    if spec.symmetric:
        own, middle = _symmetric_scale(low, high, spec, convention)
        own = nonzero(own) if scale is None else scale
        zero_point = xp.full_like(xp.astype(low, xp.int32), middle)
        return QuantParams(own, zero_point, spec, axis)
    qmin, qmax = integer_range(spec)
    if scale is None:
        scale = nonzero((high - low) / (qmax - qmin))
    if convention == "pytorch":
        start = qmin - xp.round(low / scale)
    else:
        start = xp.round(qmin - low / scale)
    if include_zero:
        start = xp.clip(start, qmin, qmax)
    return QuantParams(scale, xp.astype(start, xp.int32), spec, axis)


def _symmetric_scale(
    low: Array, high: Array, spec: QuantSpec, convention: Convention
) -> tuple[Array, int]:
    """Return the scale and the zero point of all."""
    xp = array_namespace(low)
    qmin, qmax = integer_range(spec)
    if qmin == 0 and convention in ("tensorflow", "ipex"):
        return xp.maximum(low, high) / qmax, 0
    middle = middle_code(spec)
    if convention == "pytorch":
        steps_up: float = (2 ** (spec.bits - spec.reduce_range) - 1) / 2
    else:
        steps_up = qmax - middle
    return xp.maximum(xp.abs(low), xp.abs(high)) / steps_up, middle


def middle_code(spec: QuantSpec) -> int:
    """Return the zero point of a symmetric integer spec: 0, or the middle of an unsigned range."""
    qmin, qmax = integer_range(spec)
    return 0 if qmin < 0 else (qmin + qmax + 1) // 2


def nonzero(scale: Array) -> Array:
    """Return scales with ones in place of zeros: an all-zero range takes any scale."""
    xp = array_namespace(scale)
    return xp.where(scale < SMALLEST_SCALE, xp.ones_like(scale), scale)


def quantize(x: Array, params: QuantParams, rounding: Rounding = nearest) -> Array:
    """Return the codes of ``x``: int32, same shape.

    Args:
        x: Any float dtype; computed in float32.
        params: Integer spec of any granularity.
        rounding: What becomes of x / scale.
    """
    xp = array_namespace(x, params.scale)

    def codes(values: Array, scale: Array, zero_point: Array) -> Array:
        whole = steps(values, scale, zero_point, params.spec, rounding)
        return xp.astype(whole, xp.int32) + zero_point

    return spread(codes, x, params.spec, params.axis, params.scale, params.zero_point)


def steps(
    x: Array,
    scale: Array,
    zero_point: Array,
    spec: QuantSpec,
    rounding: Rounding = nearest,
) -> Array:
    """Return code - zero_point as whole float32 numbers: round(x / scale), clipped.

    Parameters broadcast.
    """
    xp = array_namespace(x, scale)
    qmin, qmax = integer_range(spec)
    # Clipped as float: a value far outside would overflow an integer.
    low = xp.astype(qmin - zero_point, xp.float32)
    high = xp.astype(qmax - zero_point, xp.float32)
    whole = rounding(xp.astype(x, xp.float32) / scale)
    return xp.minimum(xp.maximum(whole, low), high)


def dequantize(codes: Array, params: QuantParams) -> Array:
    """Return scale * (codes - zero_point), float32, same shape; any granularity."""
    return spread(
        numbers, codes, params.spec, params.axis, params.scale, params.zero_point
    )


def numbers(codes: Array, scale: Array, zero_point: Array) -> Array:
    """:func:`dequantize` with parameters that broadcast against ``codes``."""
    xp = array_namespace(codes, scale)
    # In int32: uint8 less its zero point would wrap.
    whole = xp.astype(codes, xp.int32) - zero_point
    return scale * xp.astype(whole, xp.float32)


def narrow(codes: Array, spec: QuantSpec) -> Array:
    """Return integer codes in the narrowest of int8, uint8, int16, uint16 with the spec's range."""
    xp = array_namespace(codes)
    low, high = integer_range(spec)
    if low >= 0:
        return xp.astype(codes, xp.uint8 if high < 256 else xp.uint16)
    return xp.astype(codes, xp.int8 if high < 128 else xp.int16)
