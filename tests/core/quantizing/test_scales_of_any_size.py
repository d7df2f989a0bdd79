"""Scales in narrow formats, under each algorithm that chooses scales: of any size, nothing lost."""

from __future__ import annotations

import numpy as np
import pytest

from octavo.core.contract.algorithm import WeightContext
from octavo.core.contract.plugins import PluginHost
from octavo.core.numerics.scales import settled
from octavo.core.numerics.tensor import QuantizedTensor
from octavo.core.quantizing.chains import built_chain
from octavo.core.quantizing.weights import _in_turn
from octavo.core.values.scheme import OpScheme, PartChoice, QuantSpec

HOST = PluginHost(third_party=False)
ALGORITHMS = (
    "rtn",
    "hqq",
    "gptq",
    "awq",
    "autoround",
    "importance",
    "scale_estimation",
)
SCALES = ("float16", "bfloat16", "uint8")


def spec_of(dtype: str, scales: str | None) -> QuantSpec:
    symmetric = not dtype.startswith("u")
    return QuantSpec(
        dtype=dtype, symmetric=symmetric, granularity="group:32", scale_dtype=scales
    )


def weight(size: float, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    spread = random.uniform(0.5, 2, size=(24, 1))
    return (size * spread * random.normal(size=(24, 96))).astype(np.float32)


def context(features: int) -> WeightContext:
    x = np.random.default_rng(9).normal(size=(400, features)).astype(np.float32)
    x[:, 1:] += 0.5 * x[:, :-1]
    return WeightContext(gram=x.T @ x / 400, channel_square=(x * x).mean(0))


def quantized(
    algorithm: str, array: np.ndarray, spec: QuantSpec, then: str = ""
) -> QuantizedTensor:
    scheme = OpScheme(
        mode="weight_only",
        weight=spec,
        algorithm=PartChoice(kind=algorithm),
        refined_by=(PartChoice(kind=then),) if then else (),
    )
    algorithms = built_chain(scheme, HOST)
    return _in_turn(algorithms, array, spec, [context(array.shape[1])])


def error(found: QuantizedTensor, array: np.ndarray) -> float:
    """Of the output, as a share of its energy."""
    gram = context(array.shape[1]).gram.astype(np.float64)
    wide = array.astype(np.float64)
    off = np.asarray(found.dequantize(), np.float64) - wide
    return float(np.trace(off @ gram @ off.T) / np.trace(wide @ gram @ wide.T))


@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("dtype", ["uint3", "int4"])
def test_no_size_of_weights_is_lost(algorithm: str, dtype: str, scales: str) -> None:
    for size in (1e-9, 0.05, 1e7):
        array = weight(size)
        found = quantized(algorithm, array, spec_of(dtype, scales))
        numbers = np.asarray(found.dequantize())
        assert np.isfinite(numbers).all()
        free = error(quantized(algorithm, array, spec_of(dtype, None)), array)
        assert error(found, array) <= 1.05 * free


@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.parametrize("algorithm", ["rtn", "hqq", "awq", "importance"])
def test_codes_are_nearest_on_the_scales_that_are_stored(
    algorithm: str, scales: str
) -> None:
    array = weight(0.05)
    found = quantized(algorithm, array, spec_of("uint4", scales))
    scale = np.repeat(np.asarray(found.params.scale), 32, axis=1)
    zero = np.repeat(np.asarray(found.params.zero_point), 32, axis=1)
    codes = np.clip(np.round(array / scale) + zero, 0, 15)
    is_grown = algorithm in ("awq", "importance")
    # Those two let scales grow when the codes are made.
    same = (codes == found.codes).mean()
    assert same == 1 or (is_grown and same > 0.95)
    if scales != "uint8":
        narrow = np.asarray(found.params.scale).astype(
            np.float16 if scales == "float16" else "float32"
        )
        np.testing.assert_array_equal(narrow.astype(np.float32), found.params.scale)


@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.parametrize("then", ["gptq", "autoround", "scale_estimation"])
def test_what_goes_on_from_another_keeps_scales_that_are_stored(
    then: str, scales: str
) -> None:
    array = weight(0.05)
    spec = spec_of("uint3", scales)
    start = error(quantized("rtn", array, spec), array)
    found = quantized("rtn", array, spec, then)
    assert error(found, array) <= start
    again, second = settled(found.params, found.extra)
    np.testing.assert_allclose(again.scale, found.params.scale, rtol=5e-3)
    assert (second is None) == (scales != "uint8")


@pytest.mark.parametrize("dtype", ["uint2", "uint3", "uint4"])
def test_gptq_loses_nothing_to_scales_over_a_second_level(dtype: str) -> None:
    array = weight(0.05)
    free = error(quantized("gptq", array, spec_of(dtype, None)), array)
    found = quantized("gptq", array, spec_of(dtype, "uint8"))
    assert error(found, array) <= 1.02 * free
    assert found.extra is not None
