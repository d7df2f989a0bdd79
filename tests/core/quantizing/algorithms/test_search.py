"""The search for a grid, its costs and its sums: against loops over elements."""

from __future__ import annotations

import numpy as np
import pytest

from octavo.core.contract.algorithm import WeightContext
from octavo.core.numerics.codec import choose_params, project
from octavo.core.quantizing.algorithms.learned import grown, normalised
from octavo.core.quantizing.algorithms.least_squares import (
    can_fit,
    chosen,
    with_fitted,
)
from octavo.core.quantizing.algorithms.rtn import RoundToNearest, RtnConfig
from octavo.core.quantizing.algorithms.search import (
    RATIOS,
    power_cost,
    searched_grid,
    sum_by_scale,
    whole_output_cost,
    with_zeros,
)
from octavo.core.values.scheme import QuantSpec


def by_loops(error: np.ndarray, tall: int, wide: int) -> np.ndarray:
    rows, columns = error.shape
    found = np.zeros((-(-rows // tall), -(-columns // wide)))
    for i in range(rows):
        for j in range(columns):
            found[i // tall, j // wide] += error[i, j]
    return found


@pytest.mark.parametrize(
    ("granularity", "tall", "wide"),
    [("group:3", 1, 3), ("group:4", 1, 4), ("block:2x3", 2, 3), ("block:5x7", 5, 7)],
)
def test_sums_over_what_shares_a_scale(granularity: str, tall: int, wide: int) -> None:
    error = np.random.default_rng(0).normal(size=(5, 8))
    spec = QuantSpec(dtype="int4", granularity=granularity)
    np.testing.assert_allclose(sum_by_scale(error, spec), by_loops(error, tall, wide))
    by_row = sum_by_scale(error, QuantSpec(dtype="int4", granularity="channel"))
    np.testing.assert_allclose(by_row, error.sum(1))
    assert sum_by_scale(error, QuantSpec(dtype="int4")) == pytest.approx(error.sum())


def test_zeros_are_put_behind() -> None:
    matrix = np.arange(6.0).reshape(2, 3)
    assert with_zeros(matrix, 0, 0) is matrix
    np.testing.assert_array_equal(with_zeros(matrix, 0, 1), [*matrix.tolist(), [0] * 3])
    wider = with_zeros(matrix, 1, 2)
    np.testing.assert_array_equal(wider[:, :3], matrix)
    assert wider.shape == (2, 5)
    assert not wider[:, 3:].any()


def test_costs() -> None:
    random = np.random.default_rng(1)
    weight = random.normal(size=(3, 6)).astype(np.float32)
    other = weight + random.normal(size=(3, 6)).astype(np.float32)
    heed = np.arange(1, 7, dtype=np.float32)
    spec = QuantSpec(dtype="int4", granularity="group:3")
    for power in (2.0, 2.4, 0.7):
        size = np.abs(other.astype(np.float64) - weight) ** power
        plain, weighed = power_cost(spec, power), power_cost(spec, power, heed)
        np.testing.assert_allclose(
            plain(weight, other), by_loops(size, 1, 3), rtol=1e-5
        )
        expected = by_loops(size * heed, 1, 3)
        np.testing.assert_allclose(weighed(weight, other), expected, rtol=1e-5)
    gram = random.normal(size=(6, 6))
    gram = (gram @ gram.T).astype(np.float32)
    d = other - weight
    rows = [float(r @ gram @ r) for r in d.astype(np.float64)]
    for granularity, wanted in (("channel", rows), ("tensor", sum(rows))):
        cost = whole_output_cost(gram, QuantSpec(dtype="int4", granularity=granularity))
        np.testing.assert_allclose(cost(weight, other), wanted, rtol=1e-4)


def test_each_scale_takes_its_own_best_share_of_the_range() -> None:
    weight = np.random.default_rng(2).standard_t(3, size=(6, 64)).astype(np.float32)
    spec = QuantSpec(dtype="int3", granularity="group:32")
    cost = power_cost(spec, 2.0)
    params, _ = searched_grid(weight, spec, WeightContext(), cost)
    groups = weight.reshape(6, 2, 32).astype(np.float64)
    absmax = np.abs(groups).max(2)
    assert RATIOS[0] == 1.0
    assert RATIOS[-1] == pytest.approx(0.4)
    assert len(RATIOS) == 25
    best = np.full((6, 2), np.inf)
    wanted = np.zeros((6, 2))
    for i in range(25):
        scale = (absmax * (1 - i / 40) / 3)[:, :, None]
        error = scale * np.clip(np.round(groups / scale), -4, 3) - groups
        total = (error**2).sum(2)
        wanted = np.where(total < best, scale[:, :, 0], wanted)
        best = np.minimum(best, total)
    assert (np.isclose(params.scale, wanted, rtol=1e-5)).mean() > 0.9
    mine = ((project(weight, params) - weight) ** 2).reshape(6, 2, 32).sum(2)
    np.testing.assert_allclose(mine, best, rtol=1e-3)


def test_asymmetric_ends_move_alone() -> None:
    """One loud number at one end is cut, and the other end stays where it was."""
    random = np.random.default_rng(3)
    weight = random.uniform(-1, 1, size=(4, 64)).astype(np.float32)
    weight[:, 0] = 3
    spec = QuantSpec(dtype="uint2", symmetric=False, granularity="channel")
    cost = power_cost(spec, 2.0)
    params, _ = searched_grid(weight, spec, WeightContext(), cost)
    low = (0 - params.zero_point) * params.scale
    high = (3 - params.zero_point) * params.scale
    assert (high < 2.4).all()
    mine = cost(weight, project(weight, params))
    for ratio in RATIOS:
        alike, _ = choose_params(weight.min(1) * ratio, weight.max(1) * ratio, spec, 0)
        assert (mine <= cost(weight, project(weight, alike)) + 1e-4).all()
    assert (low > -2).all()
    given = WeightContext(params=params)
    assert searched_grid(weight * 2, spec, given, cost)[0] is params


def test_least_squares_keeps_what_cannot_be_fitted() -> None:
    weight = np.ones((1, 4), np.float32)
    spec = QuantSpec(dtype="int4", granularity="group:1")
    found = RoundToNearest(RtnConfig()).quantize(weight, spec, WeightContext())
    products = np.asarray([[2.0, -1, 3, 0]], np.float32)
    energy = np.asarray([[4.0, 2, 0, 5]], np.float32)
    fitted = with_fitted(found.params, products, energy)
    old = found.params.scale[0]
    np.testing.assert_allclose(fitted.scale[0], [0.5, old[1], old[2], old[3]])
    better = np.asarray([[True, False, True, False]])
    mixed = chosen(better, fitted, found.params)
    np.testing.assert_allclose(mixed.scale[0], [0.5, old[1], old[2], old[3]])
    assert [
        can_fit(QuantSpec(dtype=d, granularity="group:32"))
        for d in ("int4", "nf4", "fp4", "mxfp4", "nvfp4")
    ] == [True, True, True, False, False]
    for scale_dtype, fits in (
        ("float16", True),
        ("bfloat16", True),
        ("uint8", True),
        ("e8m0", False),
        ("fp8_e4m3fn", False),
        ("float32", True),
    ):
        spec = QuantSpec(dtype="int4", granularity="group:32", scale_dtype=scale_dtype)
        assert can_fit(spec) is fits


def test_growth_is_of_each_row_and_bounded() -> None:
    weight = np.asarray([[1.0, 2, 0, 0], [8, 0, 0, 1], [0, 0, 0, 0]], np.float32)
    spec = QuantSpec(dtype="int4", granularity="channel")
    found = RoundToNearest(RtnConfig()).quantize(weight, spec, WeightContext())
    heed = np.asarray([1.0, 4, 1, 1], np.float32)
    numbers = found.dequantize().astype(np.float64)
    wanted = (heed * weight**2).sum(1)[:2] / (heed * weight * numbers).sum(1)[:2]
    after = grown(found, weight, weight * heed).params.scale / found.params.scale
    np.testing.assert_allclose(after, [*wanted, 1], rtol=1e-5)
    # Beyond a factor of two nothing is believed; a whole tensor's one scale stays.
    for factor, bound in ((5, 2), (0.1, 0.5)):
        much = grown(found, weight * np.float32(factor), weight * heed)
        np.testing.assert_allclose(
            much.params.scale[:2], bound * found.params.scale[:2]
        )
    whole = RoundToNearest(RtnConfig()).quantize(
        weight, QuantSpec(dtype="int4"), WeightContext()
    )
    assert grown(whole, weight, weight) is whole
    gram = np.diag(np.asarray([2.0, 4, 6], np.float32))
    np.testing.assert_allclose(normalised(gram), gram / 4)
    np.testing.assert_array_equal(normalised(0 * gram), 0 * gram)
