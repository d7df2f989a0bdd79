"""Narrow floating-point formats as codes: bit patterns in uint8, by array arithmetic.

Sources: OCP 8-bit Floating Point Specification 1.0 (e4m3fn, e5m2); Noune et al. 2022 (fnuz); OCP
Microscaling Formats 1.0 (fp6 e2m3 and e3m2, fp4 e2m1). Rounding is to nearest, ties to even; what
is too large saturates.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device

Array = Any


@dataclass(frozen=True, slots=True)
class FloatFormat:
    """A sign bit, ``exponent`` bits and ``mantissa`` bits.

    Attributes:
        exponent: Number of exponent bits.
        mantissa: Number of mantissa bits.
        bias: Exponent bias.
        largest: Largest finite value.
        negative_zero: False for the ``fnuz`` formats, whose pattern of -0 is NaN.
    """

    exponent: int
    mantissa: int
    bias: int
    largest: float
    negative_zero: bool = True

    @property
    def bits(self) -> int:
        """Width of a code."""
        return 1 + self.exponent + self.mantissa

    @property
    def smallest_exponent(self) -> int:
        """Exponent of the smallest normal number, and of all subnormal ones."""
        return 1 - self.bias

    @property
    def smallest(self) -> float:
        """The smallest positive number, a subnormal one."""
        return 2.0 ** (self.smallest_exponent - self.mantissa)

    @property
    def largest_exponent(self) -> int:
        """Exponent of the largest number: the ``emax`` of the microscaling formats."""
        return int(np.floor(np.log2(self.largest)))


FLOAT_FORMATS = {
    "fp8_e4m3fn": FloatFormat(4, 3, 7, 448.0),
    "fp8_e4m3fnuz": FloatFormat(4, 3, 8, 240.0, negative_zero=False),
    "fp8_e5m2": FloatFormat(5, 2, 15, 57344.0),
    "fp8_e5m2fnuz": FloatFormat(5, 2, 16, 57344.0, negative_zero=False),
    "fp6_e2m3": FloatFormat(2, 3, 1, 7.5),
    "fp6_e3m2": FloatFormat(3, 2, 3, 28.0),
    "fp4_e2m1": FloatFormat(2, 1, 1, 6.0),
}
"""By name. ``fp8``, ``fp6`` and ``fp4`` alone mean e4m3fn, e2m3 and e2m1."""

_SHORT = {
    "fp8": "fp8_e4m3fn",
    "fp8_e4m3": "fp8_e4m3fn",
    "fp6": "fp6_e2m3",
    "fp4": "fp4_e2m1",
}


def float_format(name: str) -> FloatFormat | None:
    """Return the format called ``name``, or None."""
    return FLOAT_FORMATS.get(_SHORT.get(name, name))


def to_codes(x: Array, fmt: FloatFormat) -> Array:
    """Return the bit patterns of ``x`` rounded to ``fmt``: uint8, same shape.

    Args:
        x: float32, finite; values beyond the largest number saturate.
        fmt: The format.
    """
    xp = array_namespace(x)
    size = xp.minimum(xp.abs(x), xp.full_like(x, fmt.largest))
    smallest_normal = xp.full_like(x, 2.0**fmt.smallest_exponent)
    exponent = floor_log2(xp.maximum(size, smallest_normal))
    # Consecutive codes are consecutive numbers, so a code is the number of steps of its exponent,
    # plus those below it.
    steps = xp.round(size * exp2(fmt.mantissa - exponent))
    below = (exponent - fmt.smallest_exponent) * 2**fmt.mantissa
    code = xp.astype(below + steps, xp.int32)
    # Without a negative zero, what rounds to zero from below has the pattern of +0.
    negative = xp.signbit(x) if fmt.negative_zero else (x < 0) & (code > 0)
    sign_bit = 2 ** (fmt.bits - 1)
    return xp.astype(xp.where(negative, code + sign_bit, code), xp.uint8)


def from_codes(codes: Array, fmt: FloatFormat) -> Array:
    """Return the float32 numbers of bit patterns."""
    return look_up(table(fmt), codes)


@lru_cache
def table(fmt: FloatFormat) -> np.ndarray:
    """Return the number of each code, float32, length 2**bits; NaN where a pattern is none."""
    codes = np.arange(2 ** (fmt.bits - 1))
    exponents = codes >> fmt.mantissa
    mantissas = codes & (2**fmt.mantissa - 1)
    normal = (2**fmt.mantissa + mantissas) * 2.0 ** (
        exponents - fmt.bias - fmt.mantissa
    )
    subnormal = mantissas * fmt.smallest
    positive = np.where(exponents > 0, normal, subnormal)
    positive[positive > fmt.largest] = np.nan
    if fmt.exponent == 5 and fmt.negative_zero:
        # e5m2 alone has infinities, as IEEE 754 does: all exponent bits set, no mantissa bit.
        positive[0x7C] = np.inf
    both = np.concatenate([positive, -positive]).astype(np.float32)
    if not fmt.negative_zero:
        both[len(codes)] = np.nan
    both.setflags(write=False)
    return both


def look_up(values: np.ndarray, codes: Array) -> Array:
    """Return ``values[codes]`` as float32 in the namespace and on the device of ``codes``."""
    xp = array_namespace(codes)
    # A copy: torch warns of arrays that may not be written to, as cached tables are.
    book = xp.asarray(values.copy(), dtype=xp.float32, device=device(codes))
    index = xp.astype(xp.reshape(codes, (-1,)), xp.int64)
    return xp.reshape(xp.take(book, index), tuple(codes.shape))


def floor_log2(x: Array) -> Array:
    """Return the exponent of each positive float32, exactly, as float32."""
    xp = array_namespace(x)
    guess = xp.floor(xp.log2(x))
    # log2 rounds: just below a power of two it may answer that power.
    guess = xp.where(exp2(guess) > x, guess - 1, guess)
    return xp.where(exp2(guess + 1) <= x, guess + 1, guess)


def exp2(exponent: Array) -> Array:
    """Return 2**exponent of whole float32 exponents, exactly."""
    xp = array_namespace(exponent)
    return xp.pow(xp.full_like(exponent, 2.0), exponent)
