"""Scales as they are stored: against numbers worked out by hand and ml_dtypes."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from octavo.core.errors import SchemeError
from octavo.core.numerics.affine import QuantParams, nonzero
from octavo.core.numerics.codec import choose_params
from octavo.core.numerics.layout import contiguous, from_matrix, stretch, to_matrix
from octavo.core.numerics.ranges import ranges, token_params
from octavo.core.numerics.scales import (
    FixedSteps,
    has_free_scales,
    has_movable_scales,
    levelled,
    rounded_scale,
    scale_of,
    settled,
    shares_scales,
)
from octavo.core.values.scheme import QuantSpec

TINY = np.finfo(np.float32).tiny


def params(scale: list[list[float]], **fields: str) -> QuantParams:
    array = np.asarray(scale, np.float32)
    spec = QuantSpec(**{"dtype": "int4", "granularity": "group:4", **fields})
    return QuantParams(array, np.zeros(array.shape, np.int32), spec, 0)


@pytest.mark.parametrize(
    ("scale", "name", "dtype"),
    [
        ([0.1, 3.0, 65504.0, 2.0**-17], "float16", np.float16),
        ([0.1, 3.0, 1e-12, 1e6], "bfloat16", ml_dtypes.bfloat16),
        # float16 has no such numbers, or fewer digits for them than bfloat16.
        ([0.1, 3.0, 7e4], "float16", ml_dtypes.bfloat16),
        ([0.1, 3.0, 1e-9], "float16", ml_dtypes.bfloat16),
        ([0.1, 3.0, 7e-6], "float16", ml_dtypes.bfloat16),
    ],
)
def test_halves(scale: list[float], name: str, dtype: type) -> None:
    found, extra = rounded_scale(params([scale], scale_dtype=name))
    assert extra is None
    exact = np.asarray([scale], np.float32)
    np.testing.assert_array_equal(found.scale, exact.astype(dtype).astype(np.float32))


def test_the_largest_scales_stay_finite_and_the_least_stay_above_zero() -> None:
    ends = [[float(np.finfo(np.float32).max), 1e-45]]
    for name in ("float16", "bfloat16"):
        found, _ = rounded_scale(params(ends, scale_dtype=name))
        assert np.isfinite(found.scale).all()
        assert (found.scale > 0).all()


def test_a_second_level_stands_for_the_scales_that_were_rounded() -> None:
    scale = np.random.default_rng(1).uniform(0.1, 2, (7, 100)).astype(np.float32)
    for name in ("uint8", "fp8_e4m3fn"):
        found, second = rounded_scale(params(scale.tolist(), scale_dtype=name))
        assert second is not None
        np.testing.assert_array_equal(scale_of(second), found.scale)


def test_scales_that_cannot_be_stored_are_rounded_together() -> None:
    scale = np.random.default_rng(2).uniform(0.1, 2, (3, 100)).astype(np.float32)
    for name in ("float16", "bfloat16", "uint8", "fp8_e4m3fn", "e8m0"):
        raw = params(scale.tolist(), scale_dtype=name)
        expected, _ = rounded_scale(raw)
        found, second = settled(raw, None)
        np.testing.assert_array_equal(found.scale, expected.scale)
        again = settled(found, second)
        assert again[0] is found
        assert again[1] is second
    # A stale second level is none of these scales'.
    raw = params(scale.tolist(), scale_dtype="uint8")
    _, stale = rounded_scale(params((2 * scale).tolist(), scale_dtype="uint8"))
    found, second = settled(raw, stale)
    assert second is not None
    np.testing.assert_array_equal(scale_of(second), found.scale)
    plain = params(scale.tolist())
    assert settled(plain, None)[0] is plain


def test_groups_one_after_the_other_take_numbers_of_one_second_level() -> None:
    random = np.random.default_rng(3)
    start = random.uniform(0.5, 2, (40, 9)).astype(np.float32)
    steps = FixedSteps(params(start.tolist(), scale_dtype="uint8"))
    wanted = start * random.uniform(0.9, 1.1, start.shape).astype(np.float32)
    parts = [
        steps.of_group(params(wanted[:, i : i + 1].tolist()), i).scale for i in range(9)
    ]
    whole = params(np.concatenate(parts, 1).tolist(), scale_dtype="uint8")
    found, second = steps.second(whole)
    np.testing.assert_array_equal(found.scale, whole.scale)
    assert second is not None
    np.testing.assert_array_equal(scale_of(second), whole.scale)
    # Half a step of the widest block.
    assert np.abs(found.scale - wanted).max() <= 0.5 * (2.3 - 0.4) / 255 + 1e-6


def test_zero_points_go_with_the_scales_that_are_stored() -> None:
    spec = QuantSpec(
        dtype="uint4", symmetric=False, granularity="group:4", scale_dtype="uint8"
    )
    low = np.asarray([[-1.0, -7.0, -0.1]], np.float32)
    high = np.asarray([[0.4, 900.0, 0.3]], np.float32)
    found, _ = choose_params(low, high, spec, 0)
    expected = np.clip(np.round(-low / found.scale), 0, 15)
    np.testing.assert_array_equal(found.zero_point, expected)


def test_powers_of_two_go_up() -> None:
    found, _ = rounded_scale(params([[1.0, 1.1, 2.0, 0.3]], scale_dtype="e8m0"))
    assert found.scale.tolist() == [[1.0, 2.0, 2.0, 0.5]]


def test_double_quantization_of_blocks() -> None:
    random = np.random.default_rng(0)
    scale = random.uniform(0.5, 2, size=(3, 100)).astype(np.float32)  # 256 and 44
    found, extra = rounded_scale(params(scale.tolist(), scale_dtype="uint8"))
    assert extra is not None
    flat, stored = scale.reshape(-1), np.asarray(found.scale).reshape(-1)
    codes = extra["scale_codes"].reshape(-1)
    for block, part in enumerate((slice(0, 256), slice(256, 300))):
        low, high = flat[part].min(), flat[part].max()
        step = (high - low) / np.float32(255)
        assert extra["scale_offset"][block] == low
        assert extra["scale_scale"][block] == pytest.approx(step, rel=1e-6)
        np.testing.assert_array_equal(codes[part], np.round((flat[part] - low) / step))
        assert np.abs(stored[part] - flat[part]).max() <= step * 0.51
    alike, _ = rounded_scale(params([[0.25] * 4], scale_dtype="uint8"))
    assert alike.scale.tolist() == [[0.25] * 4]


def test_two_levels() -> None:
    scale = [[448.0, 1.0, 0.3, 0.0001]]
    found, extra = rounded_scale(params(scale, scale_dtype="fp8_e4m3fn"))
    assert extra is not None
    assert float(extra["scale_scale"]) == 1.0  # the largest is the format's largest
    near = np.asarray(scale, np.float32).astype(ml_dtypes.float8_e4m3fn)
    expected = near.astype(np.float32)
    expected[0, 3] = 2.0**-9  # never zero
    np.testing.assert_array_equal(found.scale, expected)
    np.testing.assert_array_equal(
        extra["scale_codes"], expected.astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
    )


def test_an_unknown_format_is_named() -> None:
    with pytest.raises(SchemeError, match="'int3' are unknown; use float32"):
        rounded_scale(params([[1.0]], scale_dtype="int3"))


def test_empty_groups_take_the_others_size() -> None:
    given = params([[1.0, 0.02, 0.01, 1.0]], scale_dtype="uint8")
    absmax = np.asarray([[0.0, 0.14, 0.07, TINY / 2]], np.float32)
    assert levelled(given, absmax).scale == pytest.approx(
        np.asarray([[0.01, 0.02, 0.01, 0.01]])
    )
    free = params([[1.0, 0.02]])
    assert levelled(free, absmax[:, :2]) is free
    empty = levelled(given, 0 * absmax)
    np.testing.assert_array_equal(empty.scale, given.scale)
    np.testing.assert_array_equal(
        nonzero(np.asarray([0, TINY / 2, TINY, 1], np.float32)), [1, 1, TINY, 1]
    )


def test_who_shares_and_who_is_free() -> None:
    def spec(dtype: str, scale_dtype: str | None = None) -> QuantSpec:
        return QuantSpec(dtype=dtype, granularity="group:16", scale_dtype=scale_dtype)

    shared = [spec("nvfp4"), spec("int4", "uint8"), spec("nf4", "fp8_e4m3fn")]
    alone = [spec("int4"), spec("int4", "float16"), spec("mxfp4"), spec("nf4", "e8m0")]
    assert [shares_scales(s) for s in shared + alone] == [True] * 3 + [False] * 4
    free = [spec("int4"), spec("nf4", "float32"), spec("fp4_e2m1")]
    bound = [*shared, spec("mxfp4"), spec("float16"), spec("int4", "float16")]
    assert [has_free_scales(s) for s in free + bound] == [True] * 3 + [False] * 6
    moved = [*free, *(spec("int4", n) for n in ("float16", "bfloat16", "uint8"))]
    fixed = [spec("mxfp4"), spec("nvfp4"), spec("float16"), spec("int4", "e8m0")]
    found = [has_movable_scales(s) for s in moved + fixed]
    assert found == [True] * 6 + [False] * 4


def test_extremes_of_short_blocks() -> None:
    matrix = np.random.default_rng(1).normal(size=(5, 8)).astype(np.float32)
    spec = QuantSpec(dtype="int4", granularity="block:2x3")
    low, high = ranges(matrix, spec)
    for i in range(3):
        for j in range(3):
            part = matrix[2 * i : 2 * i + 2, 3 * j : 3 * j + 3]
            assert low[i, j] == part.min()
            assert high[i, j] == part.max()
    tokens = token_params(matrix, QuantSpec(dtype="int8", granularity="token"))
    np.testing.assert_allclose(
        tokens.scale[:, 0], np.abs(matrix).max(1) / 127, rtol=1e-6
    )


def test_matrices_and_back() -> None:
    x = np.arange(24).reshape(2, 3, 4)
    for axis in (0, 1, 2, -1):
        matrix = to_matrix(x, axis)
        expected = np.stack(
            [np.take(x, i, axis).reshape(-1) for i in range(x.shape[axis])]
        )
        np.testing.assert_array_equal(matrix, expected)
        np.testing.assert_array_equal(from_matrix(matrix, x.shape, axis), x)
    turned = contiguous(x.T)
    assert turned.flags.c_contiguous
    np.testing.assert_array_equal(turned, x.T)
    spread = stretch(np.asarray([[1, 2], [3, 4]]), (3, 5), 2, 3)
    np.testing.assert_array_equal(
        spread, [[1, 1, 1, 2, 2], [1, 1, 1, 2, 2], [3, 3, 3, 4, 4]]
    )
