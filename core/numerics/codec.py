"""One way from float to codes and back for every dtype: choose parameters, encode, decode.

============================ ======================================= ==================================================
dtype                        codes                                   scale
============================ ======================================= ==================================================
int2..int16, uint2..uint16   integers                                affine; see :mod:`~octavo.core.numerics.affine`
fp8_*, fp6_*, fp4_e2m1       uint8 bit patterns                      absolute maximum / largest number
nf4                          uint8 indices into the code book        absolute maximum
mxfp8, mxfp6, mxfp4          uint8 bit patterns                      2**(floor(log2(absolute maximum)) - emax)
mxint8                       int8, in steps of 1/64                  the same, with emax 0
nvfp4                        uint8 bit patterns of fp4_e2m1          an fp8_e4m3fn per group times a float32 per tensor
float16, bfloat16            the numbers themselves                  1
============================ ======================================= ==================================================

Sources: OCP Microscaling Formats 1.0, section 6.3; Dettmers et al. 2023, "QLoRA" (nf4, double quantization); NVIDIA,
"Introducing NVFP4" (two-level scales).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from array_api_compat import array_namespace, device

from octavo.core.errors import SchemeError
from octavo.core.values.scheme import QuantSpec
from octavo.core.values.sizes import DOUBLE_BLOCK

from .affine import Array, Convention, QuantParams, affine_params, is_integer, narrow, steps
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

NF4 = np.asarray(
    [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
        -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
        0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ],
    dtype=np.float32,
)  # fmt: skip
"""Quantiles of a normal distribution, normalised to [-1, 1], with an exact zero (QLoRA, appendix E)."""

_MX = {
    "mxfp8": "fp8_e4m3fn", "mxfp8_e4m3": "fp8_e4m3fn", "mxfp8_e5m2": "fp8_e5m2",
    "mxfp6": "fp6_e2m3", "mxfp6_e2m3": "fp6_e2m3", "mxfp6_e3m2": "fp6_e3m2", "mxfp4": "fp4_e2m1",
}  # fmt: skip
_HALVES = ("float16", "bfloat16")
_FP4 = FLOAT_FORMATS["fp4_e2m1"]
_E4M3 = FLOAT_FORMATS["fp8_e4m3fn"]


def known_dtype(name: str) -> bool:
    """True if a tensor can be quantized to the dtype called ``name``."""
    return (
        name.lstrip("u").startswith("int")
        or name in ("nf4", "nvfp4", "mxint8", *_MX, *_HALVES)
        or float_format(name) is not None
    )


def element_format(spec: QuantSpec) -> FloatFormat | None:
    """Return the floating-point format of single codes, or None for integers, code books and halves."""
    return float_format(_MX.get(spec.dtype, "fp4_e2m1" if spec.dtype == "nvfp4" else spec.dtype))


def choose(
    low: Array, high: Array, spec: QuantSpec, axis: int | None, convention: Convention = "octavo"
) -> tuple[QuantParams, dict[str, Any] | None]:
    """Choose parameters so that [low, high] fits.

    Args:
        low: Lower ends, float32, in the shape of the scales.
        high: Upper ends.
        spec: Dtype, symmetry, format of the scales.
        axis: Channel axis, kept with the result.
        convention: For integers.

    Returns:
        Parameters, and the second level of two-level scales (``scale_codes``, ``scale_scale``, ``scale_offset``).

    Raises:
        SchemeError: If the dtype or the scales' format is unknown.
    """
    xp = array_namespace(low, high)
    absmax = xp.maximum(xp.abs(xp.astype(low, xp.float32)), xp.abs(xp.astype(high, xp.float32)))
    if is_integer(spec):
        return rounded_scale(
            _levelled(affine_params(low, high, spec, axis, convention=convention), absmax)
        )
    zero_point = xp.zeros_like(xp.astype(absmax, xp.int32))
    fmt = element_format(spec)
    if spec.dtype in _HALVES:
        scale = xp.ones_like(absmax)
    elif spec.dtype == "nf4":
        scale = _positive(absmax)
    elif spec.dtype in _MX or spec.dtype == "mxint8":
        # e8m0 holds 2**-127 to 2**127; float32 division needs a normal power of two.
        emax = fmt.largest_exponent if fmt else 0
        exponent = xp.clip(floor_log2(_positive(absmax)) - emax, -126.0, 127.0)
        scale = exp2(exponent) / (1.0 if fmt else 64.0)
    elif fmt is not None:
        scale = _positive(absmax / fmt.largest)
    else:
        others = ", ".join((*FLOAT_FORMATS, *_MX, *_HALVES))
        raise SchemeError(
            f"unknown dtype {spec.dtype!r}; known are int2 to int16, uint2 to uint16, nf4, nvfp4, mxint8, {others}"
        )
    return rounded_scale(_levelled(QuantParams(scale, zero_point, spec, axis), absmax))


def encode(x: Array, params: QuantParams, rounding: Rounding = nearest) -> Array:
    """Return the codes of ``x``, same shape, in the type that :class:`~octavo.core.numerics.tensor.QuantizedTensor` states.

    Args:
        x: Any float dtype; computed in float32.
        params: As :func:`choose` returns them.
        rounding: For integers; floating-point codes are rounded to nearest.
    """

    def codes(values: Array, scale: Array, zero_point: Array) -> Array:
        return encode_values(values, scale, zero_point, params.spec, rounding)

    return spread(codes, x, params.spec, params.axis, params.scale, params.zero_point)


def decode(codes: Array, params: QuantParams) -> Array:
    """Return the float32 numbers of codes, same shape."""

    def values(q: Array, scale: Array, zero_point: Array) -> Array:
        return decode_values(q, scale, zero_point, params.spec)

    return spread(values, codes, params.spec, params.axis, params.scale, params.zero_point)


def project(x: Array, params: QuantParams) -> Array:
    """Return the nearest representable numbers, float32, same shape: decode(encode(x))."""

    def values(v: Array, scale: Array, zero_point: Array) -> Array:
        return project_values(v, scale, zero_point, params.spec)

    return spread(values, x, params.spec, params.axis, params.scale, params.zero_point)


def encode_values(
    x: Array, scale: Array, zero_point: Array, spec: QuantSpec, rounding: Rounding = nearest
) -> Array:
    """:func:`encode` with parameters that broadcast against ``x``."""
    xp = array_namespace(x, scale)
    if is_integer(spec):
        return narrow(
            xp.astype(steps(x, scale, zero_point, spec, rounding), xp.int32) + zero_point, spec
        )
    if spec.dtype in _HALVES:
        return xp.astype(x, half_dtype(x, spec.dtype))
    ratio = xp.astype(x, xp.float32) / scale
    fmt = element_format(spec)
    if fmt is not None:
        return to_codes(ratio, fmt)
    if spec.dtype == "nf4":
        middles = xp.asarray((NF4[1:] + NF4[:-1]) / 2, device=device(x))
        found = xp.searchsorted(middles, xp.reshape(ratio, (-1,)))
        return xp.astype(xp.reshape(found, tuple(ratio.shape)), xp.uint8)
    return xp.astype(xp.clip(rounding(ratio), -127, 127), xp.int8)


def decode_values(codes: Array, scale: Array, zero_point: Array, spec: QuantSpec) -> Array:
    """:func:`decode` with parameters that broadcast against ``codes``."""
    xp = array_namespace(codes, scale)
    if is_integer(spec):
        return scale * xp.astype(xp.astype(codes, xp.int32) - zero_point, xp.float32)
    fmt = element_format(spec)
    if fmt is not None:
        return scale * from_codes(codes, fmt)
    numbers = look_up(NF4, codes) if spec.dtype == "nf4" else xp.astype(codes, xp.float32)
    return numbers if spec.dtype in _HALVES else scale * numbers


def project_values(x: Array, scale: Array, zero_point: Array, spec: QuantSpec) -> Array:
    """:func:`project` with parameters that broadcast against ``x``."""
    if is_integer(spec):
        return scale * steps(x, scale, zero_point, spec)
    return decode_values(encode_values(x, scale, zero_point, spec), scale, zero_point, spec)


def shares_scales(spec: QuantSpec) -> bool:
    """True if the scales of one tensor share a second level, so that none of them can be chosen without the others."""
    return spec.dtype == "nvfp4" or spec.scale_dtype in ("uint8", "fp8_e4m3fn")


def has_free_scales(spec: QuantSpec) -> bool:
    """True if any positive float32 may be a scale: not rounded to a format, no power of two, not fixed at one."""
    return (
        spec.scale_dtype in (None, "float32")
        and not spec.dtype.startswith(("mx", "nvfp"))
        and spec.dtype not in _HALVES
    )


def rounded_scale(params: QuantParams) -> tuple[QuantParams, dict[str, Any] | None]:
    """Round the scales to the spec's ``scale_dtype``; codes are then made with the scales that will be stored.

    ``float16``, ``bfloat16``; ``e8m0``: the next power of two, so that nothing is clipped; ``fp8_e4m3fn`` (and always for the
    dtype nvfp4): with one float32 per tensor; ``uint8``: double quantization, 8-bit codes of the scales in blocks of 256 with a float32 scale and
    offset each.
    """
    name = params.spec.scale_dtype
    scale, spec = params.scale, params.spec
    if spec.dtype == "nvfp4":
        return _two_level(scale, params.zero_point, spec, params.axis)
    if name in (None, "float32"):
        return params, None
    xp = array_namespace(scale)
    if name in _HALVES:
        limits = np.finfo(np.float16) if name == "float16" else np.finfo(np.float32)
        bounded = xp.clip(
            scale,
            float(limits.smallest_subnormal if name == "float16" else limits.tiny),
            float(limits.max),
        )
        return _with_scale(
            params, xp.astype(xp.astype(bounded, half_dtype(scale, name)), xp.float32)
        ), None
    if name == "e8m0":
        exponent = floor_log2(scale)
        return _with_scale(
            params, exp2(xp.where(exp2(exponent) < scale, exponent + 1, exponent))
        ), None
    if name == "fp8_e4m3fn":
        return _two_level(scale, params.zero_point, spec, params.axis)
    if name == "uint8":
        return _double(params)
    raise SchemeError(
        f"scales in {name!r} are unknown; use float32, float16, bfloat16, e8m0, fp8_e4m3fn or uint8 (double quantization)"
    )


def _levelled(params: QuantParams, absmax: Array) -> QuantParams:
    """Give groups of zeros, which any scale serves, the least of the others' where all share a second level: 1 could dwarf them."""
    if not shares_scales(params.spec) or 0 in absmax.shape:
        return params
    xp = array_namespace(absmax)
    empty = absmax < float(np.finfo(np.float32).tiny)
    least = xp.min(xp.where(empty, xp.full_like(absmax, float("inf")), params.scale))
    return _with_scale(params, xp.where(empty & xp.isfinite(least), least, params.scale))


def _two_level(
    scale: Array, zero_point: Array, spec: QuantSpec, axis: int | None
) -> tuple[QuantParams, dict[str, Any]]:
    xp = array_namespace(scale)
    whole = (
        _positive(xp.max(scale) / _E4M3.largest)
        if 0 not in scale.shape
        else xp.ones((), dtype=xp.float32, device=device(scale))
    )
    smallest = 2.0 ** (_E4M3.smallest_exponent - _E4M3.mantissa)
    codes = to_codes(xp.maximum(scale / whole, xp.full_like(scale, smallest)), _E4M3)
    return QuantParams(from_codes(codes, _E4M3) * whole, zero_point, spec, axis), {
        "scale_codes": codes,
        "scale_scale": whole,
    }


def _double(params: QuantParams) -> tuple[QuantParams, dict[str, Any]]:
    scale = params.scale
    xp = array_namespace(scale)
    flat = xp.reshape(scale, (1, -1))
    pad = -flat.shape[1] % DOUBLE_BLOCK
    filled = xp.reshape(
        xp.concat([flat, xp.broadcast_to(flat[:, -1:], (1, pad))], axis=1) if pad else flat,
        (-1, DOUBLE_BLOCK),
    )
    low, high = xp.min(filled, axis=1), xp.max(filled, axis=1)
    step = _positive((high - low) / 255)
    codes = xp.clip(xp.round((filled - low[:, None]) / step[:, None]), 0, 255)
    restored = xp.reshape(codes * step[:, None] + low[:, None], (-1,))[: flat.shape[1]]
    kept = xp.reshape(
        xp.astype(xp.reshape(codes, (-1,))[: flat.shape[1]], xp.uint8), tuple(scale.shape)
    )
    second = {"scale_codes": kept, "scale_scale": step, "scale_offset": low}
    return _with_scale(params, xp.reshape(restored, tuple(scale.shape))), second


def _with_scale(params: QuantParams, scale: Array) -> QuantParams:
    return QuantParams(scale, params.zero_point, params.spec, params.axis)


def _positive(scale: Array) -> Array:
    xp = array_namespace(scale)
    return xp.where(scale < float(np.finfo(np.float32).tiny), xp.ones_like(scale), scale)


def half_dtype(like: Array, name: str) -> Any:
    """Return the namespace's dtype called ``float16`` or ``bfloat16``."""
    xp = array_namespace(like)
    found = getattr(xp, name, None)
    if found is None:
        import ml_dtypes

        found = np.dtype(getattr(ml_dtypes, name))
    return found
