"""Where ties go: in codes, in zero points, under each convention."""

from __future__ import annotations

import numpy as np
import pytest

from octavo.core.numerics.affine import QuantParams, affine_params, quantize
from octavo.core.values.scheme import QuantSpec


def zero_points(low: np.ndarray, spec: QuantSpec, convention: str) -> np.ndarray:
    """Of ranges whose scale is one."""
    span = np.float32(2**spec.bits - 1)
    found = affine_params(low, low + span, spec, 0, convention=convention)  # type: ignore[arg-type]
    np.testing.assert_array_equal(found.scale, 1)
    return np.asarray(found.zero_point)


@pytest.mark.parametrize("dtype", ["int2", "int4", "int8", "uint2", "uint4", "uint8"])
def test_both_orders_send_a_tie_to_the_same_zero_point(dtype: str) -> None:
    """round(qmin - r) = qmin - round(r) for r = -k - 1/2, because every qmin is even."""
    spec = QuantSpec(dtype=dtype, symmetric=False)
    count = 2**spec.bits - 1
    low = -(np.arange(count, dtype=np.float32) + np.float32(0.5))
    qmin = 0 if dtype[0] == "u" else -(count + 1) // 2
    # Half to even, by hand: k + 1/2 goes to the even one of k and k + 1.
    up = np.arange(count) + np.arange(count) % 2
    for convention in ("octavo", "pytorch"):
        np.testing.assert_array_equal(zero_points(low, spec, convention), qmin + up)


def test_the_orders_differ_beside_a_tie() -> None:
    """In float32 -128 + 1.4999999 is the tie -126.5, and goes to the even -126."""
    spec = QuantSpec(dtype="int8", symmetric=False)
    low = -np.nextafter(np.float32(1.5), np.float32(0), dtype=np.float32)[None]
    assert zero_points(low, spec, "octavo") == -126
    assert zero_points(low, spec, "pytorch") == -127


def test_codes_round_before_the_zero_point_is_added() -> None:
    """QuantizeLinear: x / scale goes to the even whole number, whatever the zero point."""
    x = np.asarray([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5], np.float32)
    spec = QuantSpec(dtype="int8", symmetric=False)
    for zero in (0, 3):  # with an odd one, rounding the sum would go the other way
        params = QuantParams(np.float32(1), np.int32(zero), spec)
        whole = np.asarray([-2, -2, 0, 0, 2, 2]) + zero
        np.testing.assert_array_equal(quantize(x, params), whole)
