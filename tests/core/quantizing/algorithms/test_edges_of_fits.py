"""Fits of scales turn by turn, against plain loops; what goes on from a start keeps it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from octavo.core.contract.algorithm import WeightContext
from octavo.core.errors import SchemeError
from octavo.core.numerics.affine import QuantParams
from octavo.core.numerics.codec import project
from octavo.core.numerics.tensor import QuantizedTensor
from octavo.core.quantizing.algorithms import octavo_algorithms
from octavo.core.quantizing.algorithms.hqq import _Given, _State
from octavo.core.quantizing.algorithms.importance import _AROUND, _RATIOS
from octavo.core.quantizing.algorithms.search import power_cost, searched_grid
from octavo.core.values.scheme import QuantSpec

PARTS = {part.name: part for part in octavo_algorithms()}
INT4 = QuantSpec(dtype="int4", granularity="channel")
TWO_LEVELS = QuantSpec(dtype="int4", granularity="group:8", scale_dtype="uint8")


def made(name: str, **options: Any) -> Any:
    part: Any = PARTS[name]
    return part.build(part.config(kind=name, **options))


def run(
    name: str, weight: Any, spec: QuantSpec, context: WeightContext, **more: Any
) -> QuantizedTensor:
    found: QuantizedTensor = made(name, **more).quantize(weight, spec, context)
    return found


def layer(rows: int = 4, features: int = 24) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    inputs = random.normal(size=(90, features)) @ random.normal(size=(features,) * 2)
    inputs[:, ::5] *= 6
    weight = random.normal(size=(rows, features)).astype(np.float32)
    return weight, (inputs.T @ inputs / 90).astype(np.float32)


def context_of(gram: np.ndarray, **more: Any) -> WeightContext:
    square = np.diagonal(gram) + 0
    return WeightContext(gram=gram, channel_square=square, count=90, **more)


# HQQ and importance


@pytest.mark.parametrize("scales", [None, "float16"])
@pytest.mark.parametrize("dtype", ["int3", "uint3", "nf4"])
def test_hqq_keeps_the_best_of_its_turns(dtype: str, scales: str | None) -> None:
    spec = QuantSpec(
        dtype=dtype,
        symmetric=dtype != "uint3",
        granularity="group:8",
        scale_dtype=scales,
    )
    weight, _ = layer()
    first = run("rtn", weight, spec, WeightContext()).params
    part = made("hqq", beta=4.0, growth=1.5, iterations=8)
    turn = part._asymmetric_turn if dtype == "uint3" else part._symmetric_turn
    given = _Given(weight, first, np.full((4, 3), 8.0, np.float32))
    state = _State(first.scale, first.zero_point.astype(np.float32))
    scale, zero = first.scale + 0, first.zero_point + 0

    def error_of(params: QuantParams) -> np.ndarray:
        error = np.abs(project(weight, params) - weight) ** 0.7
        return error.reshape(4, 3, 8).sum(2)

    least = error_of(first)
    for i in range(8):
        state, tried = turn(given, state, 4.0 * 1.5**i)
        tried_scale = tried.scale
        if scales:
            tried_scale = tried_scale.astype(np.float16).astype(np.float32)
        tried = QuantParams(tried_scale, tried.zero_point, spec, 0)
        error = error_of(tried)
        better = error < least
        least = np.where(better, error, least)
        scale = np.where(better, tried.scale, scale)
        zero = np.where(better, tried.zero_point, zero)
    found = part.quantize(weight, spec, WeightContext()).params
    np.testing.assert_allclose(found.scale, scale, rtol=1e-6)
    np.testing.assert_array_equal(found.zero_point, zero)
    assert (scale != first.scale).any()


def test_powers_of_two_are_not_fitted() -> None:
    weight, _ = layer(4, 32)
    spec = QuantSpec(dtype="mxfp4", granularity="group:32")
    found = run("hqq", weight, spec, WeightContext())
    expected = run("rtn", weight, spec, WeightContext())
    np.testing.assert_array_equal(found.params.scale, expected.params.scale)


def test_importance_fits_scales_around_the_best_range() -> None:
    weight, _ = layer()
    heed = np.random.default_rng(7).uniform(size=24) ** 6
    heed = (heed / heed.mean()).astype(np.float32)

    def rounded(scale: np.ndarray) -> np.ndarray:
        return np.clip(np.round(weight / scale[:, None]), -8, 7)

    def cost(scale: np.ndarray) -> np.ndarray:
        error = scale[:, None] * rounded(scale) - weight
        return (heed * error * error).sum(1)

    best = np.abs(weight).max(1) / 7
    least = np.full(4, np.inf)
    whole = best
    for ratio in _RATIOS:
        error = cost(ratio * whole)
        best = np.where(error < least, ratio * whole, best)
        least = np.minimum(error, least)
    for share in _AROUND:
        codes = rounded(best * share)
        energy = (heed * codes * codes).sum(1)
        tried = (heed * weight * codes).sum(1) / energy
        error = cost(tried)
        best = np.where(error < least, tried, best)
        least = np.minimum(error, least)
    for size in (1, 1e-36):
        context = WeightContext(channel_square=heed * np.float32(size))
        found = run("importance", weight, INT4, context, keep_size=False)
        np.testing.assert_allclose(found.params.scale, best, rtol=1e-4)
    nothing = WeightContext(channel_square=np.zeros(24, np.float32))
    found = run("importance", weight, INT4, nothing)
    assert np.isfinite(found.params.scale).all() and (found.params.scale > 0).all()


# GPTQ


def test_gptqs_groups_are_searched_by_their_own_inputs() -> None:
    weight, gram = layer()
    spec = QuantSpec(dtype="int4", granularity="group:8")
    loud = np.diagonal(gram)
    settings = {"clip": "mse"}
    found = run("gptq", weight, spec, context_of(gram), **settings)
    cost = power_cost(spec, 2.0, loud[:8])
    first, _ = searched_grid(weight[:, :8], spec, WeightContext(), cost)
    np.testing.assert_allclose(found.params.scale[:, :1], first.scale, rtol=1e-4)
    static = run("gptq", weight, spec, context_of(gram), static_groups=True, **settings)
    cost = power_cost(spec, 2.0, loud)
    whole, _ = searched_grid(weight, spec, WeightContext(), cost)
    np.testing.assert_allclose(static.params.scale, whole.scale, rtol=1e-6)
    # Where columns do not touch each other, groups are what they are by themselves.
    apart = np.diag(loud).astype(np.float32)
    found = run("gptq", weight, spec, context_of(apart), **settings)
    np.testing.assert_allclose(found.params.scale, whole.scale, rtol=1e-4)


def test_gptqs_codes_are_of_the_scales_that_are_stored() -> None:
    weight, gram = layer(600, 16)
    ordered = run("gptq", weight, TWO_LEVELS, context_of(gram), act_order=True)
    plain = run("rtn", weight, TWO_LEVELS, context_of(gram))
    np.testing.assert_array_equal(ordered.params.scale, plain.params.scale)
    assert ordered.extra is not None and plain.extra is not None
    assert ordered.extra.keys() == plain.extra.keys()
    found = run("gptq", weight, TWO_LEVELS, context_of(gram))
    scale = found.params.scale[:, 0]
    expected = np.clip(np.round(weight[:, 0] / scale), -8, 7)
    np.testing.assert_array_equal(found.codes[:, 0], expected)


# Going on from a start


def test_scale_estimation_goes_on_from_codes() -> None:
    weight, gram = layer()
    for spec in (INT4, TWO_LEVELS):
        first = run("rtn", weight, spec, context_of(gram))
        fixed = context_of(gram, start=first, params=first.params)
        assert run("scale_estimation", weight, spec, fixed) is first
        again = run("scale_estimation", weight, spec, context_of(gram, start=first))
        np.testing.assert_array_equal(again.codes, first.codes)
        assert (again.params.scale != first.params.scale).any()
        assert (again.extra is None) == (first.extra is None)
        alone = run("scale_estimation", weight, spec, context_of(gram), keep_size=False)
        assert (alone.extra is None) == (first.extra is None)
    row = run("rtn", weight[:1], INT4, context_of(gram))
    again = run("scale_estimation", weight[:1], INT4, context_of(gram, start=row))
    assert again is not row
    empty = run("rtn", weight[:0], INT4, context_of(gram))
    started = context_of(gram, start=empty)
    assert run("scale_estimation", weight[:0], INT4, started) is empty
    with pytest.raises(SchemeError, match=r"^scale_estimation needs the Gram matrix"):
        run("scale_estimation", weight, INT4, WeightContext())


def test_autoround_begins_with_a_starts_codes() -> None:
    weight, gram = layer()
    first = run("rtn", weight, INT4, context_of(gram))
    codes = first.codes + 0
    codes[:, ::3] = np.clip(codes[:, ::3] + 1, -8, 7)
    start = QuantizedTensor(codes, first.params)
    # A step too small to reach another code.
    context = context_of(gram, start=start)
    found = run("autoround", weight, INT4, context, iterations=1, step=1e-6)
    np.testing.assert_array_equal(found.codes, codes)


@pytest.mark.parametrize("has_start", [False, True])
def test_autorounds_offsets_stay_within_half_a_step(has_start: bool) -> None:
    """Of where they began, or of the weight itself: by a plain loop."""
    weight, gram = layer()
    params = run("rtn", weight, INT4, context_of(gram)).params
    scale = params.scale[:, None]
    begun = np.zeros_like(weight)
    if has_start:
        begun[:, ::2] = np.random.default_rng(1).choice([-0.7, 0.9], (4, 12))
    part = made("autoround", iterations=7, step=0.4)
    best = part._descend(weight, gram, params, False, begun)
    offset, least, expected = begun, np.full(4, np.inf), np.zeros((4, 24))
    for i in range(8):
        codes = np.clip(np.round(weight / scale + offset), -8, 7)
        error = (scale * codes - weight).astype(np.float64)
        slope = error @ gram
        loss = (slope * error).sum(1)
        expected = np.where((loss < least)[:, None], codes, expected)
        least = np.minimum(loss, least)
        moved = offset - 0.4 * (1 - i / 7) * np.sign(slope)
        low, high = np.minimum(begun, 0) - 0.5, np.maximum(begun, 0) + 0.5
        offset = np.clip(moved, low, high)
    np.testing.assert_array_equal(best.codes, expected)
    np.testing.assert_allclose(best.loss, least, rtol=1e-4)
    # Zeros are left where nothing pulls at them.
    nothing = np.zeros_like(weight)
    still = part._descend(nothing, gram, params, False, nothing)
    assert not still.codes.any() and not still.loss.any()
