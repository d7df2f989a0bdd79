"""The figures of docs/fundamentals.md, to full precision."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from octavo.core.numerics.affine import QuantParams, affine_params, dequantize, quantize
from octavo.core.values.scheme import QuantSpec
from tests.arrays import each_kind

W = np.asarray([[0.6839, 0.4741, 0.7451], [0.9301, 0.1742, 0.6835]], np.float32)
UINT8 = QuantSpec(dtype="uint8", symmetric=False)


@each_kind
def test_per_tensor_without_zero(make: Any) -> None:
    w = make(W)
    params = affine_params(w.min(), w.max(), UINT8, include_zero=False)
    codes = quantize(w, params)
    assert float(params.scale) == pytest.approx(0.00296431384049356, rel=1e-7)
    assert int(params.zero_point) == -59
    assert codes.tolist() == [[172, 101, 192], [255, 0, 172]]
    assert float(((dequantize(codes, params) - w) ** 2).mean()) == pytest.approx(
        7.385297635664756e-07, rel=1e-6
    )
    other = replace(
        params, scale=0 * params.scale + 0.001, zero_point=0 * params.zero_point - 50
    )
    assert float(((dequantize(codes, other) - w) ** 2).mean()) == pytest.approx(
        0.1983354538679123, rel=1e-6
    )


@each_kind
def test_per_channel(make: Any) -> None:
    scales = W.max(1) / 255
    spec = QuantSpec(dtype="uint8", symmetric=False, granularity="channel")
    params = QuantParams(
        make(scales), make(np.round(-W.min(1) / scales).astype(np.int32)), spec, 0
    )
    codes = quantize(make(W), params)
    assert codes.tolist() == [[72, 0, 93], [207, 0, 139]]
    assert float(((dequantize(codes, params) - make(W)) ** 2).mean()) == pytest.approx(
        5.637690492221736e-07, rel=1e-6
    )


CONVENTIONS = {
    # convention: symmetric int8 and uint8 scales for [-0.5, 2], from the conventions' own formulas
    "octavo": (2 / 127, 2 / 127, 128),
    "tensorflow": (2 * 2 / (127 + 128 - 1), 2 / 255, 0),
    "pytorch": (2 / (255 / 2), 2 / (255 / 2), 128),
    "ipex": (2 * 2 / (127 + 128 - 1), 2 / 255, 0),
}


@pytest.mark.parametrize("name", CONVENTIONS)
def test_conventions(name: Any) -> None:
    low, high = np.float32(-0.5), np.float32(2)
    signed, unsigned, zero = CONVENTIONS[name]
    assert float(
        affine_params(low, high, QuantSpec(dtype="int8"), convention=name).scale
    ) == pytest.approx(signed, rel=1e-6)
    found = affine_params(low, high, QuantSpec(dtype="uint8"), convention=name)
    assert (float(found.scale), int(found.zero_point)) == (
        pytest.approx(unsigned, rel=1e-6),
        zero,
    )
    asymmetric = affine_params(low, high, UINT8, convention=name)
    assert float(asymmetric.scale) == pytest.approx(2.5 / 255, rel=1e-6)
    assert int(asymmetric.zero_point) == 0 - round(-0.5 / (2.5 / 255))


def test_pytorch_asymmetric_ties() -> None:
    # low / scale = -0.5 exactly: the conventions round from different sides
    low, high = np.float32(-0.5), np.float32(254.5)
    assert int(affine_params(low, high, UINT8, convention="pytorch").zero_point) == 0
    assert int(affine_params(low, high, UINT8).zero_point) == 0
    low, high = np.float32(-1.5), np.float32(253.5)
    assert int(affine_params(low, high, UINT8, convention="pytorch").zero_point) == 2
