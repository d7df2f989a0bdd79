"""Scale estimation: against its steps written out group by group in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from octavo.core.contract.algorithm import WeightContext
from octavo.core.quantizing.algorithms.gptq import Gptq, GptqConfig
from octavo.core.quantizing.algorithms.rtn import RoundToNearest, RtnConfig
from octavo.core.quantizing.algorithms.scale_estimation import (
    ScaleEstimation,
    ScaleEstimationConfig,
)
from octavo.core.values.scheme import QuantSpec
from tests.arrays import each_kind


def layer(rows: int, features: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(5)
    inputs = random.normal(size=(3 * features, features)).astype(np.float32)
    inputs[:, ::7] *= 8
    inputs[:, 1] += 0.5 * inputs[:, 0]
    inputs[:, 3] = 0
    weight = random.standard_t(4, size=(rows, features)).astype(np.float32)
    return weight, inputs.T @ inputs


def estimated(
    weight: Any, gram: Any, spec: QuantSpec, **options: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Scales, and the numbers that codes stand for."""
    config = ScaleEstimationConfig(**{"keep_size": False, **options})
    found = ScaleEstimation(config).quantize(weight, spec, WeightContext(gram=gram))
    return np.asarray(found.params.scale), np.asarray(found.dequantize())


def textbook(
    w: np.ndarray, gram: np.ndarray, low: int, high: int, zero: int, start: float
) -> float:
    """One group's scale: NNCF's two stages with the least-squares estimate."""

    def steps(scale: float) -> np.ndarray:
        return np.clip(np.round(w / scale), low - zero, high - zero)

    def error(scale: float) -> float:
        d = scale * steps(scale) - w
        return float(d @ gram @ d)

    def estimate(scale: float) -> float:
        u = steps(scale)
        energy, product = u @ gram @ u, w @ gram @ u
        return product / energy if energy > 0 and product > 0 else scale

    best, least = start, error(start)
    for _ in range(5):
        tried = estimate(best)
        if error(tried) < least:
            best, least = tried, error(tried)
    for i in range(10):
        tried = estimate(start * (1 - 0.05 * i))
        if error(tried) < least:
            best, least = tried, error(tried)
    return best


@each_kind
@pytest.mark.parametrize(
    ("dtype", "low", "high"), [("int2", -2, 1), ("int4", -8, 7), ("uint3", 0, 7)]
)
def test_the_steps_of_each_group(dtype: str, low: int, high: int, make: Any) -> None:
    """Groups of one row each, alone in the row: no other group takes part in what is compared."""
    weight, gram = layer(9, 24)
    spec = QuantSpec(dtype=dtype, symmetric=dtype[0] != "u", granularity="channel")
    scale, _ = estimated(make(weight), make(gram), spec)
    plain = RoundToNearest(RtnConfig()).quantize(weight, spec, WeightContext())
    first, zero = plain.params.scale, plain.params.zero_point
    wanted = [
        textbook(
            weight[row].astype(np.float64),
            gram.astype(np.float64),
            low,
            high,
            int(zero[row]),
            float(first[row]),
        )
        for row in range(len(weight))
    ]
    np.testing.assert_allclose(scale, wanted, rtol=2e-4)
    assert (np.abs(scale / first - 1) > 0.01).sum() >= 5


@each_kind
@pytest.mark.parametrize("alike", [False, True])
def test_groups_see_their_own_inputs_and_rows_their_whole_output(
    make: Any, alike: bool
) -> None:
    """The last group is short; a row takes its scales only where all together are nearer."""
    weight, gram = layer(60, 40)
    if alike:
        # All groups meet nearly the same inputs, so that their errors add up.
        random = np.random.default_rng(5)
        inputs = np.tile(random.normal(size=(120, 16)), (1, 3))[:, :40]
        inputs += random.normal(size=inputs.shape) / 3
        gram = (inputs.T @ inputs).astype(np.float32)
    spec = QuantSpec(dtype="int3", granularity="group:16")
    scale, numbers = estimated(make(weight), make(gram), spec)
    plain = RoundToNearest(RtnConfig()).quantize(weight, spec, WeightContext())
    first = plain.params.scale
    wanted = np.empty_like(first)
    for row in range(60):
        for group in range(3):
            part = slice(16 * group, min(40, 16 * group + 16))
            own = gram[part, part].astype(np.float64)
            w = weight[row, part].astype(np.float64)
            wanted[row, group] = textbook(w, own, -4, 3, 0, float(first[row, group]))
    moved = np.repeat(wanted, 16, axis=1)[:, :40]
    tried = moved * np.clip(np.round(weight / moved), -4, 3) - weight
    before = plain.dequantize() - weight
    nearer = ((tried @ gram) * tried).sum(1) < ((before @ gram) * before).sum(1)
    expected = np.where(nearer[:, None], wanted, first)
    np.testing.assert_allclose(scale, expected, rtol=2e-4)
    assert nearer.all() != alike
    assert nearer.sum() > 30
    after = numbers - weight
    assert ((after @ gram) * after).sum() < 0.9 * ((before @ gram) * before).sum()


@pytest.mark.parametrize("granularity", ["tensor", "block:3x16"])
def test_rows_that_share_a_scale_are_measured_together(granularity: str) -> None:
    weight, gram = layer(7, 40)
    spec = QuantSpec(dtype="int3", granularity=granularity)
    _, numbers = estimated(weight, gram, spec)
    plain = RoundToNearest(RtnConfig()).quantize(weight, spec, WeightContext())
    errors = [n - weight for n in (numbers, plain.dequantize())]
    mine, theirs = (float(np.trace(e @ gram @ e.T)) for e in errors)
    assert mine < theirs


@pytest.mark.parametrize(
    "spec",
    [
        QuantSpec(dtype="mxfp4", granularity="group:32"),
        QuantSpec(dtype="nvfp4", granularity="group:16"),
        QuantSpec(dtype="int4", granularity="group:16", scale_dtype="fp8_e4m3fn"),
    ],
    ids=str,
)
def test_scales_that_cannot_move_alone_stay(spec: QuantSpec) -> None:
    weight, gram = layer(8, 48)
    plain = RoundToNearest(RtnConfig()).quantize(weight, spec, WeightContext())
    scale, numbers = estimated(weight, gram, spec)
    np.testing.assert_array_equal(scale, plain.params.scale)
    np.testing.assert_array_equal(numbers, plain.dequantize())


def test_edges() -> None:
    spec = QuantSpec(dtype="int4", granularity="group:32", scale_dtype="float16")
    weight, gram = layer(8, 48)
    scale, _ = estimated(weight, gram, spec)
    np.testing.assert_array_equal(scale, scale.astype(np.float16))
    half, _ = estimated(weight.astype(np.float16), gram, spec)
    np.testing.assert_allclose(half, scale, rtol=0.05)
    dead, _ = estimated(weight, 0 * gram, spec)
    plain = RoundToNearest(RtnConfig()).quantize(weight, spec, WeightContext())
    np.testing.assert_array_equal(dead, plain.params.scale)
    one = np.asarray([[0.37]], np.float32)
    assert estimated(one, np.ones((1, 1), np.float32), spec)[1] == pytest.approx(
        one, rel=1e-3
    )
    none, _ = estimated(weight, gram, spec, initial_steps=0, scale_steps=0)
    np.testing.assert_array_equal(none, plain.params.scale)


def test_outputs_keep_their_size() -> None:
    weight, gram = layer(8, 48)
    spec = QuantSpec(dtype="int2", granularity="group:16")
    outputs = weight.astype(np.float64) @ gram
    sizes = [
        (outputs * estimated(weight, gram, spec, keep_size=keeps)[1]).sum(1)
        for keeps in (True, False)
    ]
    wanted = (outputs * weight).sum(1)
    np.testing.assert_allclose(sizes[0], wanted, rtol=1e-4)
    assert not np.allclose(sizes[1], wanted, rtol=1e-2)


@each_kind
@pytest.mark.parametrize("granularity", ["channel", "group:16"])
def test_after_gptq_its_codes_stay_and_the_scales_are_fitted(
    granularity: str, make: Any
) -> None:
    """Against the normal equations of each row, solved for all of its scales at once."""
    weight, gram = layer(10, 40)
    spec = QuantSpec(dtype="uint3", symmetric=False, granularity=granularity)
    first = Gptq(GptqConfig()).quantize(
        make(weight), spec, WeightContext(gram=make(gram))
    )
    before = np.asarray(first.params.scale).copy()
    context = WeightContext(gram=make(gram), start=first)
    found = ScaleEstimation(ScaleEstimationConfig()).quantize(
        make(weight), spec, context
    )
    np.testing.assert_array_equal(first.codes, found.codes)
    np.testing.assert_array_equal(first.params.scale, before)
    wide = spec.group_size or 40
    spread = np.repeat(before.reshape(10, -1), wide, axis=1)[:, :40]
    steps = np.asarray(first.dequantize(), np.float64) / spread
    own = (np.arange(40)[None, :] // wide) == np.arange(-(-40 // wide))[:, None]
    errors = []
    for row in range(10):
        parts = own * steps[row]
        best = np.linalg.lstsq(
            parts @ gram @ parts.T, parts @ gram @ weight[row], rcond=None
        )[0]
        least = best @ parts - weight[row]
        mine = np.asarray(found.dequantize(), np.float64)[row] - weight[row]
        old = np.asarray(first.dequantize(), np.float64)[row] - weight[row]
        errors.append([d @ gram @ d for d in (mine, old, least)])
    mine, old, least = np.sum(errors, axis=0)
    assert mine - least <= 1e-3 * (old - least)
    assert mine < 0.99 * old


def test_after_another_algorithm_shared_scales_stay() -> None:
    weight, gram = layer(8, 48)
    for spec in (
        QuantSpec(dtype="int4", granularity="tensor"),
        QuantSpec(dtype="mxfp4", granularity="group:32"),
    ):
        first = Gptq(GptqConfig()).quantize(weight, spec, WeightContext(gram=gram))
        context = WeightContext(gram=gram, start=first)
        found = ScaleEstimation(ScaleEstimationConfig()).quantize(weight, spec, context)
        np.testing.assert_array_equal(found.params.scale, first.params.scale)
        np.testing.assert_array_equal(found.codes, first.codes)
