"""Narrow floats, code books, microscaling: against ml_dtypes, torch and the formats' own
definitions."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from scipy.stats import norm

from octavo.core.contract.algorithm import WeightContext
from octavo.core.errors import SchemeError
from octavo.core.numerics.codec import NF4, decode, known_dtype
from octavo.core.numerics.floats import (
    FLOAT_FORMATS,
    FloatFormat,
    floor_log2,
    from_codes,
    table,
    to_codes,
)
from octavo.core.numerics.tensor import QuantizedTensor
from octavo.core.quantizing.algorithms.rtn import RoundToNearest, RtnConfig
from octavo.core.values.scheme import QuantSpec
from octavo.core.values.sizes import DOUBLE_BLOCK
from tests.arrays import MAKERS, each_kind, to_torch

REFERENCE = {
    "fp8_e4m3fn": ml_dtypes.float8_e4m3fn,
    "fp8_e4m3fnuz": ml_dtypes.float8_e4m3fnuz,
    "fp8_e5m2": ml_dtypes.float8_e5m2,
    "fp8_e5m2fnuz": ml_dtypes.float8_e5m2fnuz,
    "fp6_e2m3": ml_dtypes.float6_e2m3fn,
    "fp6_e3m2": ml_dtypes.float6_e3m2fn,
    "fp4_e2m1": ml_dtypes.float4_e2m1fn,
}
TORCH = {
    "fp8_e4m3fn": "float8_e4m3fn",
    "fp8_e4m3fnuz": "float8_e4m3fnuz",
    "fp8_e5m2": "float8_e5m2",
    "fp8_e5m2fnuz": "float8_e5m2fnuz",
}


def rtn(
    x: Any, dtype: str, granularity: str = "group:32", **fields: Any
) -> QuantizedTensor:
    return RoundToNearest(RtnConfig()).quantize(
        x, QuantSpec(dtype=dtype, granularity=granularity, **fields), WeightContext()
    )


def numbers(fmt: FloatFormat) -> np.ndarray:
    """Every number, every midpoint and its neighbours, and random ones over all exponents."""
    known = np.sort(table(fmt)[np.isfinite(table(fmt))])
    middles = (known[1:] + known[:-1]) / 2
    random = np.random.default_rng(0).normal(
        size=20_000
    ) * 2.0 ** np.random.default_rng(1).integers(-24, 16, 20_000)
    x = np.concatenate(
        [
            known,
            middles,
            np.nextafter(middles, np.float32(1e30)),
            np.nextafter(middles, np.float32(-1e30)),
            random,
            [0.0, -0.0, 1e-40],
        ]
    )
    return np.clip(x, -fmt.largest, fmt.largest).astype(np.float32)


@pytest.mark.parametrize("name", REFERENCE)
def test_codes_equal_ml_dtypes(name: str) -> None:
    fmt = FLOAT_FORMATS[name]
    np.testing.assert_array_equal(
        table(fmt),
        np.arange(2**fmt.bits, dtype=np.uint8).view(REFERENCE[name]).astype(np.float32),
    )
    x = numbers(fmt)
    expected = x.astype(REFERENCE[name]).view(np.uint8)
    rounded = x.astype(REFERENCE[name]).astype(np.float32)
    for make in MAKERS.values():
        np.testing.assert_array_equal(np.asarray(to_codes(make(x), fmt)), expected)
        back = from_codes(make(expected.copy()), fmt)
        np.testing.assert_array_equal(np.asarray(back), rounded)


@pytest.mark.parametrize("name", TORCH)
def test_codes_equal_torch(name: str) -> None:
    torch = pytest.importorskip("torch")
    x = torch.from_numpy(numbers(FLOAT_FORMATS[name]))
    expected = x.to(getattr(torch, TORCH[name])).view(torch.uint8)
    np.testing.assert_array_equal(
        to_codes(x, FLOAT_FORMATS[name]).numpy(), expected.numpy()
    )


def test_large_values_saturate() -> None:
    for fmt in FLOAT_FORMATS.values():
        x = np.asarray([1e9, -1e9], np.float32)
        assert from_codes(to_codes(x, fmt), fmt).tolist() == [fmt.largest, -fmt.largest]


def test_exponents_are_exact_next_to_powers_of_two() -> None:
    powers = (2.0 ** np.arange(-126, 127)).astype(np.float32)
    for x, shift in (
        (powers, 0),
        (np.nextafter(powers, np.float32(0))[1:], -1),
        (np.nextafter(powers, np.float32(np.inf)), 0),
    ):
        expected = np.arange(-126, 127)[len(powers) - len(x) :] + shift
        for make in MAKERS.values():
            np.testing.assert_array_equal(np.asarray(floor_log2(make(x))), expected)


def test_nf4_is_made_of_normal_quantiles() -> None:
    # QLoRA, section 3 and appendix E: 8 quantiles above zero, 7 below, offset 0.9677083
    upper = norm.ppf(np.linspace(0.9677083, 0.5, 9))[:-1]
    lower = -norm.ppf(np.linspace(0.9677083, 0.5, 8))[:-1]
    expected = np.sort(np.concatenate([upper, [0.0], lower]))
    np.testing.assert_allclose(NF4, expected / expected.max(), atol=1e-6)


def test_nf4_takes_the_nearest() -> None:
    x = np.random.default_rng(0).normal(size=(8, 64)).astype(np.float32)
    found = rtn(x, "nf4", "group:64")
    scaled = x / np.abs(x).max(1, keepdims=True)
    np.testing.assert_array_equal(
        found.codes, np.abs(scaled[:, :, None] - NF4).argmin(2)
    )


MX = {
    "mxfp8": ("fp8_e4m3fn", 8),
    "mxfp8_e5m2": ("fp8_e5m2", 15),
    "mxfp6": ("fp6_e2m3", 2),
    "mxfp6_e3m2": ("fp6_e3m2", 4),
    "mxfp4": ("fp4_e2m1", 2),
}


@pytest.mark.parametrize("name", MX)
def test_microscaling(name: str) -> None:
    """OCP MX 1.0, section 6.3: shared exponent floor(log2(max)) - emax, stored as e8m0; elements
    rounded and saturated."""
    element, emax = MX[name]
    x = (
        np.random.default_rng(0).normal(size=(4, 96))
        * 10.0 ** np.arange(-2, 2)[:, None]
    ).astype(np.float32)
    x[0, :32] = 0
    found = rtn(x, name)
    blocks = x.reshape(4, 3, 32)
    peak = np.abs(blocks).max(2)
    scale = np.where(
        peak > 0,
        2.0 ** (np.floor(np.log2(np.where(peak > 0, peak, 1))) - emax),
        found.params.scale,
    )
    np.testing.assert_array_equal(found.params.scale, scale)
    np.testing.assert_array_equal(
        scale.astype(ml_dtypes.float8_e8m0fnu).astype(np.float32), scale
    )
    limit = FLOAT_FORMATS[element].largest
    expected = (
        np.clip(blocks / scale[:, :, None], -limit, limit)
        .astype(np.float32)
        .astype(REFERENCE[element])
    )
    np.testing.assert_array_equal(
        found.codes.reshape(4, 3, 32), expected.view(np.uint8)
    )
    np.testing.assert_array_equal(
        found.dequantize().reshape(4, 3, 32),
        expected.astype(np.float32) * scale[:, :, None],
    )
    assert found.nbytes == -(-x.size * found.params.spec.bits // 8) + 12


def test_mxint8_has_steps_of_a_64th() -> None:
    x = np.random.default_rng(0).normal(size=(2, 64)).astype(np.float32)
    found = rtn(x, "mxint8")
    scale = 2.0 ** np.floor(np.log2(np.abs(x.reshape(2, 2, 32)).max(2))) / 64
    np.testing.assert_array_equal(found.params.scale, scale)
    np.testing.assert_array_equal(
        found.codes.reshape(2, 2, 32),
        np.clip(np.rint(x.reshape(2, 2, 32) / scale[:, :, None]), -127, 127),
    )


def test_nvfp4_has_two_levels() -> None:
    x = np.random.default_rng(0).normal(size=(4, 64)).astype(np.float32)
    found = rtn(x, "nvfp4", "group:16")
    peak = np.abs(x.reshape(4, 4, 16)).max(2)
    whole = np.float32(peak.max() / 6 / 448)
    level = (peak / 6 / whole).astype(np.float32).astype(ml_dtypes.float8_e4m3fn)
    assert found.extra is not None
    np.testing.assert_array_equal(found.extra["scale_codes"], level.view(np.uint8))
    assert float(found.extra["scale_scale"]) == pytest.approx(float(whole), rel=1e-6)
    scale = level.astype(np.float32) * found.extra["scale_scale"]
    elements = (
        np.clip(x.reshape(4, 4, 16) / scale[:, :, None], -6, 6)
        .astype(np.float32)
        .astype(ml_dtypes.float4_e2m1fn)
    )
    np.testing.assert_array_equal(
        found.codes.reshape(4, 4, 16), elements.view(np.uint8)
    )
    assert found.nbytes == 4 * 64 // 2 + 16 + 4


def test_double_quantization_of_scales() -> None:
    x = np.random.default_rng(0).normal(size=(40, 256)).astype(np.float32)
    plain, double = rtn(x, "int4"), rtn(x, "int4", scale_dtype="uint8")
    assert double.extra is not None
    codes = double.extra["scale_codes"].reshape(-1).astype(np.float32)
    blocks = np.arange(codes.size) // DOUBLE_BLOCK
    restored = (
        codes * double.extra["scale_scale"][blocks]
        + double.extra["scale_offset"][blocks]
    )
    np.testing.assert_array_equal(double.params.scale.reshape(-1), restored)
    assert (
        np.abs(double.params.scale - plain.params.scale).max()
        <= double.extra["scale_scale"].max() / 2 * 1.001
    )
    assert double.nbytes < plain.nbytes - 3 * codes.size + 24


@each_kind
@pytest.mark.parametrize(
    ("dtype", "scales"),
    [("int4", "uint8"), ("int4", "fp8_e4m3fn"), ("nf4", "uint8"), ("nvfp4", None)],
)
def test_groups_of_zeros_do_not_widen_the_second_level(
    dtype: str, scales: str | None, make: Any
) -> None:
    x = np.random.default_rng(0).normal(size=(16, 256)).astype(np.float32) * 1e-3
    x[0, :64], x[7] = 0, 0
    found = rtn(make(x), dtype, scale_dtype=scales).dequantize()
    expected = np.asarray(rtn(x, dtype, scale_dtype=scales and "float32").dequantize())
    assert (np.asarray(found)[x == 0] == 0).all()
    assert np.abs(np.asarray(found) - x).mean() < 1.05 * np.abs(expected - x).mean()
    assert not np.asarray(
        rtn(make(0 * x), dtype, scale_dtype=scales).dequantize()
    ).any()


@pytest.mark.parametrize("name", ["float16", "bfloat16", "e8m0", "fp8_e4m3fn"])
def test_rounded_scales_are_numbers_of_their_format(name: str) -> None:
    x = np.random.default_rng(0).normal(size=(8, 64)).astype(np.float32)
    found = rtn(x, "int4", scale_dtype=name)
    scale = found.params.scale
    if name == "fp8_e4m3fn":
        assert found.extra is not None
        scale = scale / found.extra["scale_scale"]
    reference = {
        "float16": np.float16,
        "bfloat16": ml_dtypes.bfloat16,
        "e8m0": ml_dtypes.float8_e8m0fnu,
        "fp8_e4m3fn": ml_dtypes.float8_e4m3fn,
    }[name]
    np.testing.assert_allclose(
        scale.astype(reference).astype(np.float32), scale, rtol=1e-6
    )


ALL = (
    "int2 uint2 int3 uint3 int4 uint4 int5 int6 int7 int8 uint8 int16 nf4 nvfp4 mxint8 mxfp8 "
    "mxfp6 mxfp4 fp8_e4m3fn fp8_e5m2 fp6 fp4 float16 bfloat16"
)


@pytest.mark.parametrize(
    "granularity", ["tensor", "channel", "group:32", "group:48", "block:16x20"]
)
@pytest.mark.parametrize("dtype", ALL.split())
def test_numpy_and_torch_agree(dtype: str, granularity: str) -> None:
    assert known_dtype(dtype)
    x = np.random.default_rng(0).normal(size=(24, 100)).astype(np.float32)
    x[3], x[4] = 0.0, 2.5
    one, other = (
        rtn(x, dtype, granularity, symmetric=dtype[0] != "u"),
        rtn(to_torch(x), dtype, granularity, symmetric=dtype[0] != "u"),
    )
    np.testing.assert_array_equal(one.dequantize(), other.dequantize().numpy())
    if dtype != "bfloat16":
        np.testing.assert_array_equal(one.codes, other.codes.numpy())
    assert one.nbytes == other.nbytes
    assert np.isfinite(one.dequantize()).all()
    np.testing.assert_array_equal(decode(one.codes, one.params), one.dequantize())
    if granularity != "tensor":
        assert (one.dequantize()[3] == 0).all()


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_weights_are_read_as_float32(dtype: Any) -> None:
    x = np.random.default_rng(0).normal(size=(4, 64)).astype(dtype)
    np.testing.assert_array_equal(
        rtn(x, "int8").dequantize(), rtn(x.astype(np.float32), "int8").dequantize()
    )


@pytest.mark.parametrize("shape", [(0, 32), (4, 0)])
@pytest.mark.parametrize("granularity", ["tensor", "channel", "group:32"])
@pytest.mark.parametrize("dtype", ["int8", "uint4", "fp8_e4m3fn", "nf4"])
def test_empty(shape: tuple[int, int], granularity: str, dtype: str) -> None:
    found = rtn(np.zeros(shape, np.float32), dtype, granularity)
    assert found.shape == shape
    assert found.dequantize().shape == shape


def test_unknown_names_are_refused() -> None:
    x = np.ones((2, 32), np.float32)
    with pytest.raises(SchemeError, match="unknown dtype"):
        rtn(x, "fp9", "channel")
    with pytest.raises(SchemeError, match="scales in 'int3'"):
        rtn(x, "int8", "channel", scale_dtype="int3")
