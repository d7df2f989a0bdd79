"""One way from float to codes and back for every dtype: choose parameters, encode, decode.

============================ ============================== ========================================
dtype                        codes                          scale
============================ ============================== ========================================
int2..int16, uint2..uint16   integers                       affine; see :mod:`.affine`
fp8_*, fp6_*, fp4_e2m1       uint8 bit patterns             absolute maximum / largest number
nf4                          uint8 indices into a code book absolute maximum
mxfp8, mxfp6, mxfp4          uint8 bit patterns             2**(floor(log2(abs. maximum)) - emax)
mxint8                       int8, in steps of 1/64         the same, with emax 0
nvfp4                        uint8 bit patterns of fp4_e2m1 an fp8_e4m3fn per group times a float32
                                                            per tensor
float16, bfloat16            the numbers themselves         1
============================ ============================== ========================================

Sources: OCP Microscaling Formats 1.0, section 6.3; Dettmers et al. 2023, "QLoRA" (nf4, double
quantization); NVIDIA, "Introducing NVFP4" (two-level scales).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from array_api_compat import array_namespace, device

from octavo.core.errors import SchemeError
from octavo.core.values.scheme import QuantSpec

from .affine import (
    Array,
    Convention,
    QuantParams,
    affine_params,
    is_integer,
    narrow,
    nonzero,
    numbers,
    steps,
)
from .floats import (
    FLOAT_FORMATS,
    FloatFormat,
    exp2,
    float_format,
    floor_log2,
    from_codes,
    look_up,
    to_codes,
)
from .layout import spread
from .rounding import Rounding, nearest
from .scales import HALVES, half_dtype, levelled, rounded_scale

NF4 = np.asarray(
    [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
        -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
        0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
        0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ],
    dtype=np.float32,
)  # fmt: skip
"""Quantiles of a normal distribution, normalised to [-1, 1], with an exact zero.

QLoRA, appendix E.
"""

_MX = {
    "mxfp8": "fp8_e4m3fn", "mxfp8_e4m3": "fp8_e4m3fn", "mxfp8_e5m2": "fp8_e5m2",
    "mxfp6": "fp6_e2m3", "mxfp6_e2m3": "fp6_e2m3", "mxfp6_e3m2": "fp6_e3m2", "mxfp4": "fp4_e2m1",
}  # fmt: skip


def known_dtype(name: str) -> bool:
    """True if a tensor can be quantized to the dtype called ``name``."""
    if name.lstrip("u").startswith("int"):
        return True
    return (
        name in ("nf4", "nvfp4", "mxint8", *_MX, *HALVES)
        or float_format(name) is not None
    )


def element_format(spec: QuantSpec) -> FloatFormat | None:
    """Return the floating-point format of single codes.

    None for integers, code books and halves.
    """
    if spec.dtype == "nvfp4":
        return FLOAT_FORMATS["fp4_e2m1"]
    return float_format(_MX.get(spec.dtype, spec.dtype))


def choose_params(
    low: Array,
    high: Array,
    spec: QuantSpec,
    axis: int | None,
    convention: Convention = "octavo",
) -> tuple[QuantParams, dict[str, Any] | None]:
    """Choose parameters so that [low, high] fits.

    Args:
        low: Lower ends, float32, in the shape of the scales.
        high: Upper ends.
        spec: Dtype, symmetry, format of the scales.
        axis: Channel axis, kept with the result.
        convention: For integers.

    Returns:
        Parameters, and the second level of two-level scales (``scale_codes``, ``scale_scale``,
        ``scale_offset``).

    Raises:
        SchemeError: If the dtype or the scales' format is unknown.
    """
    xp = array_namespace(low, high)
    below = xp.abs(xp.astype(low, xp.float32))
    above = xp.abs(xp.astype(high, xp.float32))
    absmax = xp.maximum(below, above)
    if is_integer(spec):
        params = affine_params(low, high, spec, axis, convention=convention)
    else:
        zero_point = xp.zeros_like(xp.astype(absmax, xp.int32))
        params = QuantParams(
            _scale_without_zero_point(absmax, spec), zero_point, spec, axis
        )
    stored, second = rounded_scale(levelled(params, absmax))
    if is_integer(spec) and not spec.symmetric and spec.scale_dtype is not None:
        # The zero point is where 0 lies on the grid that is stored.
        stored = affine_params(
            low, high, spec, axis, convention=convention, scale=stored.scale
        )
    return stored, second


def _scale_without_zero_point(absmax: Array, spec: QuantSpec) -> Array:
    """Return the scale of dtypes that are symmetric about zero."""
    xp = array_namespace(absmax)
    fmt = element_format(spec)
    if spec.dtype in HALVES:
        return xp.ones_like(absmax)
    if spec.dtype == "nf4":
        return nonzero(absmax)
    if spec.dtype in _MX or spec.dtype == "mxint8":
        emax = fmt.largest_exponent if fmt else 0
        # e8m0 holds 2**-127 to 2**127; float32 division needs a normal power of two.
        exponent = xp.clip(floor_log2(nonzero(absmax)) - emax, -126.0, 127.0)
        return exp2(exponent) / (1.0 if fmt else 64.0)
    if fmt is not None:
        return nonzero(absmax / fmt.largest)
    others = ", ".join((*FLOAT_FORMATS, *_MX, *HALVES))
    raise SchemeError(
        f"unknown dtype {spec.dtype!r}; known are int2 to int16, uint2 to uint16, nf4, nvfp4, "
        f"mxint8, {others}"
    )


def encode(x: Array, params: QuantParams, rounding: Rounding = nearest) -> Array:
    """Return the codes of ``x``, same shape.

    Their type is the one that :class:`~octavo.core.numerics.tensor.QuantizedTensor` states.

    Args:
        x: Any float dtype; computed in float32.
        params: As :func:`choose_params` returns them.
        rounding: For integers; floating-point codes are rounded to nearest.
    """

    def codes(values: Array, scale: Array, zero_point: Array) -> Array:
        return encode_values(values, scale, zero_point, params.spec, rounding)

    return spread(codes, x, params.spec, params.axis, params.scale, params.zero_point)


def decode(codes: Array, params: QuantParams) -> Array:
    """Return the float32 numbers of codes, same shape."""

    def values(q: Array, scale: Array, zero_point: Array) -> Array:
        return decode_values(q, scale, zero_point, params.spec)

    return spread(
        values, codes, params.spec, params.axis, params.scale, params.zero_point
    )


def project(x: Array, params: QuantParams) -> Array:
    """Return the nearest representable numbers, float32, same shape: decode(encode(x))."""

    def values(v: Array, scale: Array, zero_point: Array) -> Array:
        return project_values(v, scale, zero_point, params.spec)

    return spread(values, x, params.spec, params.axis, params.scale, params.zero_point)


def encode_values(
    x: Array,
    scale: Array,
    zero_point: Array,
    spec: QuantSpec,
    rounding: Rounding = nearest,
) -> Array:
    """:func:`encode` with parameters that broadcast against ``x``."""
    xp = array_namespace(x, scale)
    if is_integer(spec):
        whole = xp.astype(steps(x, scale, zero_point, spec, rounding), xp.int32)
        return narrow(whole + zero_point, spec)
    if spec.dtype in HALVES:
        return xp.astype(x, half_dtype(x, spec.dtype))
    ratio = xp.astype(x, xp.float32) / scale
    fmt = element_format(spec)
    if fmt is not None:
        return to_codes(ratio, fmt)
    if spec.dtype == "nf4":
        return _nearest_in_book(ratio)
    return xp.astype(xp.clip(rounding(ratio), -127, 127), xp.int8)


def _nearest_in_book(ratio: Array) -> Array:
    """Return the index of the nearest nf4 number, uint8: how many middles lie below."""
    xp = array_namespace(ratio)
    middles = xp.asarray((NF4[1:] + NF4[:-1]) / 2, device=device(ratio))
    found = xp.searchsorted(middles, xp.reshape(ratio, (-1,)))
    return xp.astype(xp.reshape(found, tuple(ratio.shape)), xp.uint8)


def decode_values(
    codes: Array, scale: Array, zero_point: Array, spec: QuantSpec
) -> Array:
    """:func:`decode` with parameters that broadcast against ``codes``."""
    if is_integer(spec):
        return numbers(codes, scale, zero_point)
    fmt = element_format(spec)
    if fmt is not None:
        return scale * from_codes(codes, fmt)
    if spec.dtype == "nf4":
        return scale * look_up(NF4, codes)
    xp = array_namespace(codes, scale)
    plain = xp.astype(codes, xp.float32)
    return plain if spec.dtype in HALVES else scale * plain


def project_values(x: Array, scale: Array, zero_point: Array, spec: QuantSpec) -> Array:
    """:func:`project` with parameters that broadcast against ``x``."""
    if is_integer(spec):
        return scale * steps(x, scale, zero_point, spec)
    codes = encode_values(x, scale, zero_point, spec)
    return decode_values(codes, scale, zero_point, spec)
