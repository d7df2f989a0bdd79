"""A bias in whole numbers, against the formula of ONNX QLinearConv and LiteRT's specification."""

from __future__ import annotations

import numpy as np

from octavo.plugin import QuantizedTensor, QuantParams, QuantSpec, integer_bias

SPEC = QuantSpec(dtype="int8", granularity="channel")


def _weight(scales: list[float]) -> QuantizedTensor:
    codes = np.array([[127, -3], [-127, 64]], np.int8)
    scale = np.array(scales, np.float32)
    return QuantizedTensor(codes, QuantParams(scale, np.zeros(2, np.int32), SPEC, 0))


def test_a_bias_has_the_scale_of_the_products() -> None:
    weight = _weight([0.5, 0.25])
    whole, scale, kept = integer_bias(np.array([3.0, -1.01], np.float32), weight, 0.1)
    np.testing.assert_allclose(scale, [0.05, 0.025], rtol=1e-6)
    np.testing.assert_array_equal(whole, [60, -40])
    assert kept is weight


def test_a_bias_that_does_not_fit_enlarges_its_channels_scale_alone() -> None:
    weight = _weight([1e-12, 0.25])
    bias = np.array([5.0, 1.0], np.float32)
    whole, scale, enlarged = integer_bias(bias, weight, 0.1)
    assert abs(whole).max() <= 2**30
    np.testing.assert_allclose(whole * scale, bias, rtol=1e-6)
    assert np.asarray(enlarged.params.scale)[1] == np.float32(0.25)
    np.testing.assert_array_equal(enlarged.codes[1], weight.codes[1])
    np.testing.assert_array_equal(enlarged.codes[0], [0, 0])
    assert integer_bias(bias, weight, 0.1)[2] is enlarged
