"""Single steps of what learns and fits, against autograd, differences and plain formulas."""

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
from octavo.core.quantizing.algorithms.adaround import _Grid
from octavo.core.quantizing.algorithms.autoround import (
    _Best,
    _ends,
    _offset_to,
    _Rounded,
    _Shares,
    _Slopes,
)
from octavo.core.quantizing.algorithms.hqq import _fitted, _Given, _State
from octavo.core.quantizing.algorithms.least_squares import chosen, with_fitted
from octavo.core.values.scheme import QuantSpec

PARTS = {part.name: part for part in octavo_algorithms()}
UINT3 = QuantSpec(dtype="uint3", symmetric=False, granularity="group:4")


def made(name: str, **options: Any) -> Any:
    part: Any = PARTS[name]
    return part.build(part.config(kind=name, **options))


def asymmetric(rows: int = 3, groups: int = 2) -> QuantParams:
    random = np.random.default_rng(1)
    scale = random.uniform(0.2, 0.5, size=(rows, groups)).astype(np.float32)
    zero = random.integers(1, 7, size=(rows, groups)).astype(np.int32)
    return QuantParams(scale, zero, UINT3, 0)


def weights(rows: int = 3, features: int = 8) -> np.ndarray:
    weight = np.random.default_rng(2).normal(size=(rows, features))
    return weight.astype(np.float32)


def wide(parameter: np.ndarray) -> np.ndarray:
    return np.repeat(parameter, 4, axis=1)


# AdaRound


def test_adaround_descends_as_autograd_does() -> None:
    """Nagel et al. 2020, eqs. 21 to 24, on a Gram matrix; float64, so that steps are comparable."""
    torch = pytest.importorskip("torch")
    random = np.random.default_rng(0)
    inputs = random.normal(size=(20, 6)) @ random.normal(size=(6, 6))
    gram = inputs.T @ inputs / 20
    scale = random.uniform(0.3, 0.9, size=(4, 1)) * np.ones((4, 6))
    zero = 3.0 * np.ones((4, 6))
    weight = random.normal(size=(4, 6)) * 2
    grid = _Grid(weight, scale, zero, np.floor(weight / scale), 0, 7)
    part = made("adaround", iterations=12, warm_up=0.3, step=0.4, regularization=0.7)
    found = part._descend(grid, gram)

    tensor = torch.from_numpy
    v = tensor(grid.start()).requires_grad_()
    adam = torch.optim.Adam([v], lr=0.4)
    w, s, g = tensor(weight), tensor(scale), tensor(gram)
    for i in range(12):
        h = (torch.sigmoid(v) * 1.2 - 0.1).clamp(0, 1)
        error = s * ((tensor(grid.floor) + h + 3).clamp(0, 7) - 3) - w
        loss = torch.trace(error @ g @ error.T) / (s * s).mean()
        if i >= 3.6:
            b = 2 + 18 * (1 - (i - 3.6) / 8.4)
            loss = loss + 0.7 * (1 - (2 * h - 1).abs() ** b).sum()
        adam.zero_grad()
        loss.backward()
        adam.step()
    h = (torch.sigmoid(v) * 1.2 - 0.1).detach().numpy()
    assert (h < 0).any() and (h > 1).any() and ((h > 0) & (h < 1)).any()
    np.testing.assert_allclose(found, v.detach().numpy(), rtol=1e-7)


def test_adarounds_regulariser_starts_after_the_warm_up() -> None:
    h = np.array([0.0, 0.3, 0.5, 0.9, 1.0])
    part = made("adaround", iterations=10, warm_up=0.2, regularization=0.5)
    assert not part._decisiveness(h, 1).any()
    for i in (2, 7):
        b = 2 + 18 * (1 - (i - 2) / 8)
        step = 1e-6
        slope = np.abs(2 * (h - step) - 1) ** b - np.abs(2 * (h + step) - 1) ** b
        found = part._decisiveness(h, i)
        np.testing.assert_allclose(found, 0.5 * slope / step / 2, rtol=1e-3, atol=1e-9)
    # Less than one step after the warm-up counts as one.
    for iterations, warm_up, remaining in ((1, 0.5, 1), (2, 0.25, 1.5)):
        part = made(
            "adaround", iterations=iterations, warm_up=warm_up, regularization=1
        )
        b = 2 + 18 * (1 - 0.5 / remaining)
        expected = -2 * b * np.sign(2 * h - 1) * np.abs(2 * h - 1) ** (b - 1)
        np.testing.assert_allclose(part._decisiveness(h, 1), expected)


def test_a_weight_on_its_grid() -> None:
    weight = weights()
    weight[0, 0] = 0
    params = asymmetric()
    grid = _Grid.under(weight, params)
    np.testing.assert_array_equal(grid.scale, wide(params.scale))
    np.testing.assert_array_equal(grid.zero, wide(params.zero_point))
    assert grid.scale.dtype == grid.zero.dtype == np.float32
    codes = np.array([[-1, 0, 3, 7, 8]])
    assert grid.holds(codes).tolist() == [[False, True, True, True, False]]
    code = np.full((3, 8), 5.0, np.float32)
    expected = wide(params.scale) * (5 - wide(params.zero_point)) - weight
    np.testing.assert_allclose(grid.error(code), expected, rtol=1e-6)


def test_learning_starts_from_the_fraction() -> None:
    """Kept off both ends by a thousandth."""
    weight = np.array([[2.0, 2.25, 2.9999]])
    ones = np.ones((1, 3))
    grid = _Grid(weight, ones, 0 * ones, np.floor(weight), 0, 7)
    h = 1.2 / (1 + np.exp(-grid.start())) - 0.1
    np.testing.assert_allclose(h, [[0.001, 0.25, 0.999]], rtol=1e-9)


# AutoRound


def test_a_weight_rounded_with_an_offset() -> None:
    weight, params = weights(), asymmetric()
    weight[0, 0] = 0
    weight[1, 1], weight[1, 2] = 9, -9
    offset = np.random.default_rng(3).uniform(-0.5, 0.5, (3, 8)).astype(np.float32)
    scale, zero = wide(params.scale), wide(params.zero_point)
    raw = np.round(weight / scale + offset) + zero
    codes = np.clip(raw, 0, 7)
    cut = raw != codes
    assert cut.any() and not cut.all()
    found = _Rounded.of(weight, offset, params)
    np.testing.assert_array_equal(found.codes, codes)
    np.testing.assert_array_equal(found.units, codes - zero)
    np.testing.assert_array_equal(found.is_cut, cut)
    through = np.where(cut, 0, weight / scale)
    np.testing.assert_allclose(
        found.slope_of_scale, codes - zero - through, rtol=1e-5, atol=1e-6
    )
    assert found.codes.dtype == np.int32
    assert found.units.dtype == found.is_cut.dtype == np.float32

    slope = np.random.default_rng(4).normal(size=(3, 8)).astype(np.float32)
    slopes = found.slopes(slope, params)
    of_scale = (slope * (codes - zero - through)).reshape(3, 2, 4).sum(2)
    np.testing.assert_allclose(slopes.of_scale, of_scale, rtol=1e-4)
    of_zero = -params.scale * (slope * cut).reshape(3, 2, 4).sum(2)
    np.testing.assert_allclose(slopes.of_zero, of_zero, rtol=1e-4)
    spec = QuantSpec(dtype="int3", granularity="group:4")
    even = QuantParams(params.scale, 0 * params.zero_point, spec, 0)
    exact = _Rounded.of(np.zeros_like(weight), 0 * offset, even)
    assert not exact.slopes(slope, even).of_zero.any()


@pytest.mark.parametrize("dtype", ["uint3", "int3"])
def test_shares_move_against_their_gradients(dtype: str) -> None:
    """The gradients, by differences of s and z over both shares."""
    random = np.random.default_rng(5)
    spec = QuantSpec(dtype=dtype, symmetric=False, granularity="group:4")
    least, most = (0, 7) if dtype == "uint3" else (-4, 3)
    start = asymmetric(40, 5)
    start = QuantParams(start.scale, start.zero_point + least, spec, 0)
    start.zero_point[0, :] = most
    start.zero_point[1, :] = least
    low, high = (np.asarray(end, np.float64) for end in _ends(start))
    scale = start.scale.astype(np.float64)
    np.testing.assert_allclose(low, scale * (least - start.zero_point), rtol=1e-6)
    np.testing.assert_allclose(high, scale * (most - start.zero_point), rtol=1e-6)
    shares = _Shares(*random.uniform(0.5, 1.25, size=(2, 40, 5)))
    of_scale, of_zero = random.normal(size=(2, 40, 5))
    of_scale[2, :] = of_zero[2, :] = 0

    def grid(below: np.ndarray, above: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        s = (above * high - below * low) / 7
        return s, least - below * low / s

    def loss(below: np.ndarray, above: np.ndarray) -> np.ndarray:
        s, z = grid(below, above)
        return of_scale * s + of_zero * z

    now, _ = grid(shares.low, shares.high)
    params = QuantParams(now, start.zero_point, spec, 0)
    step = 1e-6
    by_low = loss(shares.low + step, shares.high) - loss(shares.low - step, shares.high)
    by_high = loss(shares.low, shares.high + step) - loss(
        shares.low, shares.high - step
    )
    by_low[np.abs(by_low) < 1e-12], by_high[np.abs(by_high) < 1e-12] = 0, 0
    for size in (0.05, 0.8):
        found = shares.stepped(_Slopes(of_scale, of_zero, params), start, size)
        for mine, before, slope in (
            (found.low, shares.low, by_low),
            (found.high, shares.high, by_high),
        ):
            expected = np.clip(before - size * np.sign(slope), 0.5, 1.25)
            np.testing.assert_allclose(mine, expected, rtol=1e-9)

    kept = shares.of_range(start)
    np.testing.assert_allclose(kept.scale, now, rtol=1e-5)
    zero = np.clip(np.round(least - shares.low * low / now), least, most)
    assert (np.asarray(kept.zero_point) == zero).mean() > 0.98


def test_offsets_lead_to_a_starts_codes() -> None:
    """A quarter of a step inside another code, and nowhere else."""
    weight, params = weights(), asymmetric()
    weight[0, :2] = 0
    scale, zero = wide(params.scale), wide(params.zero_point)
    nearest = np.clip(np.round(weight / scale) + zero, 0, 7)
    codes = nearest + 0
    codes[:, ::3] = np.clip(codes[:, ::3] + np.array([[1], [-1], [2]]), 0, 7)
    start = QuantizedTensor(codes.astype(np.uint8), params)
    found = _offset_to(start, weight)
    ratio = weight / scale
    apart = codes - zero - np.round(ratio)
    expected = np.where(
        apart == 0, 0, codes - zero - np.sign(apart) * 0.25 - ratio
    ).astype(np.float32)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(np.round(ratio + found) + zero, codes)


def test_autoround_keeps_the_first_of_equal_states() -> None:
    params = asymmetric()
    best = _Best(np.array([2.0, 2, 2]), np.zeros((3, 8)), params.scale, 0)
    best.take(np.array([1.0, 2, 3]), np.ones((3, 8)), None)
    assert best.codes[:, 0].tolist() == [1, 0, 0] and best.loss.tolist() == [1, 2, 2]


def test_autoround_says_what_it_cannot_share() -> None:
    spec = QuantSpec(dtype="int4", granularity="block:2x4")
    with pytest.raises(SchemeError) as raised:
        made("autoround").quantize(weights(), spec, WeightContext())
    assert str(raised.value) == (
        "autoround keeps each row's best state and cannot share a scale over rows "
        f"({spec}); use group or channel granularity"
    )


# HQQ


def soft(error: np.ndarray, power: float, beta: float) -> np.ndarray:
    size = np.maximum(np.abs(error), 1e-8)
    return np.sign(error) * np.maximum(size - size ** (power - 1) / beta, 0)


def test_hqq_thresholds_softly() -> None:
    part = made("hqq", power=0.6)
    weight = np.array([1.0, 1.0, 1.0, 1.0, -2.0])
    rounded = np.array([1.0, 0.9, 0.2, 2.5, -2.4])
    found = part._target(weight, rounded, 3.0)
    np.testing.assert_allclose(found, weight - soft(weight - rounded, 0.6, 3.0))
    assert (found != weight).sum() == 2


def test_hqq_moves_zero_points_then_scales() -> None:
    params = asymmetric(6)
    scale, zero = params.scale, params.zero_point.astype(np.float32) + 0.3
    weight = weights(6)
    # Groups that lie beyond both ends.
    weight[0, :4], weight[1, 4:] = weight[0, :4] + 9, weight[1, 4:] - 9
    part = made("hqq", power=0.7)
    given = _Given(weight, params, np.full((6, 2), 4.0, np.float32))
    state, tried = part._asymmetric_turn(given, _State(scale, zero), 0.1)

    s, z = wide(scale), wide(zero)
    codes = np.clip(np.round(weight / s + z), 0, 7)
    target = weight - soft(weight - s * (codes - z), 0.7, 0.1)
    mean = (codes - target / s).reshape(6, 2, 4).mean(2)
    assert mean.min() < 0 and mean.max() > 7
    expected = np.clip(mean, 0, 7)
    units = codes - wide(np.round(expected))
    energy = (units * units).reshape(6, 2, 4).sum(2)
    fitted = (target * units).reshape(6, 2, 4).sum(2) / np.where(energy > 0, energy, 1)
    fitted = np.where(fitted > 0, fitted, scale)
    np.testing.assert_allclose(state.zero, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(state.scale, fitted, rtol=1e-4)
    np.testing.assert_allclose(tried.scale, fitted, rtol=1e-4)
    np.testing.assert_array_equal(tried.zero_point, np.round(expected))
    assert tried.zero_point.dtype == np.int32


def test_hqq_fits_symmetric_scales() -> None:
    spec = QuantSpec(dtype="nf4", granularity="group:4")
    params = asymmetric()
    params = QuantParams(params.scale, 0 * params.zero_point, spec, 0)
    scale = 1.7 * params.scale
    weight = weights()
    part = made("hqq", power=0.7)
    given = _Given(weight, params, np.full((3, 2), 4.0, np.float32))
    state, tried = part._symmetric_turn(given, _State(scale, scale), 2.0)
    rounded = project(weight, QuantParams(scale, params.zero_point, spec, 0))
    units = rounded / wide(scale)
    target = weight - soft(weight - rounded, 0.7, 2.0)
    energy = (units * units).reshape(3, 2, 4).sum(2)
    fitted = (target * units).reshape(3, 2, 4).sum(2) / energy
    np.testing.assert_allclose(state.scale, fitted, rtol=1e-4)
    np.testing.assert_array_equal(tried.scale, state.scale)


def test_scales_are_kept_where_none_fit() -> None:
    spec = QuantSpec(dtype="nf4", granularity="group:2")
    scale = np.full((1, 4), 3.0)
    units = np.array([[0, 0, 0.5, 0, 1, 1, 1, 1.0]])
    target = np.array([[1, 1, 1, 0, 1, -1, -1, -2.0]])
    with np.errstate(all="raise"):
        found = _fitted(scale, target, units, spec)
    assert found.tolist() == [[3, 2, 3, 3]]
    params = QuantParams(scale, np.zeros((1, 4), np.int32), spec, 0)
    products, energy = np.array([[1, 0.5, 0, -3]]), np.array([[0, 0.25, 2, 2]])
    with np.errstate(all="raise"):
        fitted = with_fitted(params, products, energy)
    assert fitted.scale.tolist() == [[3, 2, 3, 3]]
    other = QuantParams(2 * scale, 1 + params.zero_point, spec, 0)
    mixed = chosen(np.array([[True, False, True, False]]), other, params)
    assert mixed.scale.tolist() == [[6, 3, 6, 3]]
    assert mixed.zero_point.tolist() == [[1, 0, 1, 0]]
