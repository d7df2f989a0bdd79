"""Scales as they will be stored: halves, powers of two, codes of a second level."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device

from octavo.core.errors import SchemeError
from octavo.core.values.scheme import QuantSpec
from octavo.core.values.sizes import DOUBLE_BLOCK

from .affine import SMALLEST_SCALE, Array, QuantParams, nonzero
from .floats import FLOAT_FORMATS, exp2, floor_log2, from_codes, to_codes

HALVES = ("float16", "bfloat16")
_E4M3 = FLOAT_FORMATS["fp8_e4m3fn"]

SecondLevel = dict[str, Any]
"""``scale_codes`` (uint8, the shape of the scales), ``scale_scale``, ``scale_offset`` (float32)."""


Stored = tuple[QuantParams, SecondLevel | None]
"""Parameters with scales as they are stored, and their second level where they have one."""


def shares_scales(spec: QuantSpec) -> bool:
    """True if the scales of one tensor share a second level.

    None of them can then be chosen without the others.
    """
    return spec.dtype == "nvfp4" or spec.scale_dtype in ("uint8", "fp8_e4m3fn")


def has_movable_scales(spec: QuantSpec) -> bool:
    """True if each scale may be chosen by itself, and is rounded afterwards to what is stored.

    Powers of two cannot, which are coarse, nor can scales in fp8 over one float32.
    """
    alone = spec.model_copy(update={"scale_dtype": None})
    return has_free_scales(alone) and spec.scale_dtype in (None, *HALVES, "uint8")


def has_free_scales(spec: QuantSpec) -> bool:
    """True if any positive float32 may be a scale.

    It is not rounded to a format, no power of two, not fixed at one.
    """
    is_block_format = spec.dtype.startswith(("mx", "nvfp"))
    is_plain = spec.scale_dtype is None
    return is_plain and not is_block_format and spec.dtype not in HALVES


def rounded_scale(params: QuantParams) -> tuple[QuantParams, SecondLevel | None]:
    """Round the scales to the spec's ``scale_dtype``.

    Codes are then made with the scales that will be stored. ``bfloat16``; ``float16``, which are
    all of them bfloat16 where float16 would hold one with fewer digits than that or not at all;
    ``e8m0``: the next power of two, so that nothing is clipped; ``fp8_e4m3fn`` (and always for the
    dtype nvfp4): with one float32 per tensor; ``uint8``: double quantization, 8-bit codes of the
    scales in blocks of 256 with a float32 scale and offset each.

    Raises:
        SchemeError: If the scales' format is unknown.
    """
    name = params.spec.scale_dtype
    if params.spec.dtype == "nvfp4" or name == "fp8_e4m3fn":
        return _two_level(params)
    if name is None:
        return params, None
    if name in HALVES:
        return replace(params, scale=_half_scale(params.scale, name)), None
    if name == "e8m0":
        return replace(params, scale=_power_of_two(params.scale)), None
    if name == "uint8":
        return _double(params)
    raise SchemeError(
        f"scales in {name!r} are unknown; use float32, float16, bfloat16, e8m0, fp8_e4m3fn or "
        "uint8 (double quantization)"
    )


def scale_of(second: SecondLevel) -> Array:
    """Return the float32 scales that the codes of a second level stand for, in their shape."""
    codes = second["scale_codes"]
    whole = second["scale_scale"]
    if "scale_offset" not in second:
        return from_codes(codes, _E4M3) * whole
    return restored_scale(codes, whole, second["scale_offset"])


def settled(tensor_params: QuantParams, second: SecondLevel | None) -> Stored:
    """Return parameters whose scales can be stored: those given where they can.

    What an algorithm rounded in parts, or not at all, is rounded together; its codes stay.

    Args:
        tensor_params: Of a whole weight.
        second: What goes with them.
    """
    xp = array_namespace(tensor_params.scale)
    has_codes = second is not None and "scale_codes" in second
    if has_codes and bool(xp.all(scale_of(second or {}) == tensor_params.scale)):
        return tensor_params, second
    if has_free_scales(tensor_params.spec) or tensor_params.spec.dtype in HALVES:
        return tensor_params, second
    rounded, again = rounded_scale(tensor_params)
    if again is None and bool(xp.all(rounded.scale == tensor_params.scale)):
        return tensor_params, second
    return rounded, again


class FixedSteps:
    """The numbers that scales of a weight may be, known before they are chosen.

    Scales over a second level depend on each other. Where they are chosen one group of columns
    after the other, with codes made in between, the second level is fixed first: over the scales
    that the weight as it was would have, with some room.

    Args:
        params: Scales of shape (rows, groups), with ``scale_dtype`` uint8.
    """

    def __init__(self, params: QuantParams) -> None:
        blocks = _in_blocks(params.scale)
        xp = array_namespace(blocks)
        self._low = xp.min(blocks, axis=1) / _ROOM
        self._step = _steps_between(self._low, xp.max(blocks, axis=1) * _ROOM)
        every = xp.ones_like(blocks)
        self._lows = _out_of_blocks(every * self._low[:, None], params.scale)
        self._steps = _out_of_blocks(every * self._step[:, None], params.scale)

    def of_group(self, params: QuantParams, group: int) -> QuantParams:
        """Return one group's parameters, shape (rows, 1), with the nearest scales that may be."""
        low = self._lows[:, group : group + 1]
        step = self._steps[:, group : group + 1]
        restored = _codes_between(params.scale, low, step) * step + low
        return replace(params, scale=restored)

    def second(self, params: QuantParams) -> Stored:
        """Return all groups' parameters, chosen by :meth:`of_group`, with their second level."""
        codes = _codes_between(params.scale, self._lows, self._steps)
        xp = array_namespace(codes)
        kept = {
            "scale_codes": xp.astype(codes, xp.uint8),
            "scale_scale": self._step,
            "scale_offset": self._low,
        }
        return replace(params, scale=scale_of(kept)), kept


_ROOM = 1.15
"""By how much a group's scale may come to lie beyond those of the weight as it was: what later
columns take of the errors of earlier ones moves their ranges by less."""


def _half_scale(scale: Array, name: str) -> Array:
    if name == "float16" and _in_reach_of_half(scale):
        return _through(scale, "float16")
    # bfloat16 reaches as far as float32, but for the largest: they would become infinite.
    xp = array_namespace(scale)
    bounded = xp.clip(scale, float(np.finfo(np.float32).tiny), _LARGEST_BFLOAT16)
    return _through(bounded, "bfloat16")


_LARGEST_BFLOAT16 = float.fromhex("0x1.fep127")

_LEAST_OF_HALF = 2.0**-17
"""The least number that float16 holds with eight binary digits, as many as bfloat16 has."""


def _in_reach_of_half(scale: Array) -> bool:
    """Return whether float16 holds all scales with at least the digits of bfloat16."""
    xp = array_namespace(scale)
    largest = float(np.finfo(np.float16).max)
    return bool(xp.all((scale >= _LEAST_OF_HALF) & (scale <= largest)))


def _through(scale: Array, name: str) -> Array:
    """Return float32 scales rounded to a half."""
    xp = array_namespace(scale)
    half = xp.astype(scale, half_dtype(scale, name))
    return xp.astype(half, xp.float32)


def _power_of_two(scale: Array) -> Array:
    xp = array_namespace(scale)
    exponent = floor_log2(scale)
    is_between = exp2(exponent) < scale
    return exp2(xp.where(is_between, exponent + 1, exponent))


def levelled(params: QuantParams, absmax: Array) -> QuantParams:
    """Give groups of zeros a scale of the others' size where all scales share a second level.

    Any scale serves them; the 1 that they have could dwarf the others.

    Args:
        params: As chosen for each group by itself.
        absmax: Largest magnitude of each group, in the shape of the scales.
    """
    if not shares_scales(params.spec) or 0 in absmax.shape:
        return params
    xp = array_namespace(absmax)
    empty = absmax < SMALLEST_SCALE
    infinite = xp.full_like(absmax, float("inf"))
    least = xp.min(xp.where(empty, infinite, params.scale))
    # Where all groups are empty there is no other size to take.
    is_replaced = empty & xp.isfinite(least)
    scale = xp.where(is_replaced, least, params.scale)
    return replace(params, scale=scale)


def _two_level(params: QuantParams) -> tuple[QuantParams, SecondLevel]:
    """Round scales to fp8_e4m3fn times one float32."""
    scale = params.scale
    xp = array_namespace(scale)
    if 0 in scale.shape:
        whole = xp.ones((), dtype=xp.float32, device=device(scale))
    else:
        whole = nonzero(xp.max(scale) / _E4M3.largest)
    # A scale must not round to zero: nothing could be divided by it.
    at_least = xp.full_like(scale, _E4M3.smallest)
    shares = xp.maximum(scale / whole, at_least)
    codes = to_codes(shares, _E4M3)
    stored = from_codes(codes, _E4M3) * whole
    rounded = replace(params, scale=stored)
    return rounded, {"scale_codes": codes, "scale_scale": whole}


def _double(params: QuantParams) -> tuple[QuantParams, SecondLevel]:
    """Round scales to 8-bit steps between the ends of their block."""
    scale = params.scale
    xp = array_namespace(scale)
    blocks = _in_blocks(scale)
    low = xp.min(blocks, axis=1)
    step = _steps_between(low, xp.max(blocks, axis=1))
    codes = _codes_between(blocks, low[:, None], step[:, None])
    kept = xp.astype(_out_of_blocks(codes, scale), xp.uint8)
    second = {"scale_codes": kept, "scale_scale": step, "scale_offset": low}
    return replace(params, scale=scale_of(second)), second


def _steps_between(low: Array, high: Array) -> Array:
    """Return the steps with which 8-bit codes reach from one end of a block to the other."""
    return nonzero((high - low) / 255)


def _codes_between(scale: Array, low: Array, step: Array) -> Array:
    """Return the codes of the nearest steps, whole float32 numbers."""
    xp = array_namespace(scale)
    return xp.clip(xp.round((scale - low) / step), 0, 255)


def held_by_float16(scale: Any) -> bool:
    """Return whether float16 holds every scale exactly; where it does not, bfloat16 holds what is
    rounded to 16 bits."""
    exact = np.asarray(scale, np.float32)
    with np.errstate(over="ignore"):
        return bool(np.array_equal(exact.astype(np.float16).astype(np.float32), exact))


def restored_scale(codes: Array, step: Array, offset: Array) -> Array:
    """Return the scales that 8-bit codes of a second level stand for, float32, same shape.

    Args:
        codes: ``scale_codes`` of a quantized tensor, uint8.
        step: ``scale_scale``: one for each block of 256 codes.
        offset: ``scale_offset``, likewise.
    """
    xp = array_namespace(codes, step)
    blocks = _in_blocks(xp.astype(codes, xp.float32))
    restored = blocks * step[:, None] + offset[:, None]
    return _out_of_blocks(restored, codes)


def _in_blocks(scale: Array) -> Array:
    """Return scales in rows of one block each.

    The last block is filled up with its own last scale, which changes none of its ends.
    """
    xp = array_namespace(scale)
    flat = xp.reshape(scale, (1, -1))
    missing = -flat.shape[1] % DOUBLE_BLOCK
    if missing:
        last = xp.broadcast_to(flat[:, -1:], (1, missing))
        flat = xp.concat([flat, last], axis=1)
    return xp.reshape(flat, (-1, DOUBLE_BLOCK))


def _out_of_blocks(blocks: Array, scale: Array) -> Array:
    """Undo :func:`_in_blocks`: return rows of blocks in the shape of ``scale``."""
    xp = array_namespace(blocks)
    shape = tuple(scale.shape)
    flat = xp.reshape(blocks, (-1,))[: prod(shape)]
    return xp.reshape(flat, shape)


def half_dtype(like: Array, name: str) -> Any:
    """Return the namespace's dtype called ``float16`` or ``bfloat16``."""
    xp = array_namespace(like)
    found = getattr(xp, name, None)
    if found is None:
        # NumPy has no bfloat16 of its own.
        import ml_dtypes

        found = np.dtype(getattr(ml_dtypes, name))
    return found
