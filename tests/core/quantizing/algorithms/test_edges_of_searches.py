"""Searches for a grid at their edges: ties, blocks that end early, which rows count alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from octavo.core.contract.algorithm import WeightContext
from octavo.core.errors import SchemeError
from octavo.core.numerics.affine import QuantParams
from octavo.core.numerics.codec import project
from octavo.core.quantizing.algorithms import octavo_algorithms
from octavo.core.quantizing.algorithms.adaround import _Grid
from octavo.core.quantizing.algorithms.output_grid import output_grid
from octavo.core.quantizing.algorithms.scale_estimation import nearer_in_whole
from octavo.core.quantizing.algorithms.search import (
    _RangeSearch,
    channel_axis,
    power_cost,
    sum_by_scale,
)
from octavo.core.values.scheme import QuantSpec

PARTS = {part.name: part for part in octavo_algorithms()}
INT4 = QuantSpec(dtype="int4", granularity="channel")


def layer(rows: int, features: int = 16) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    inputs = random.normal(size=(50, features)) @ random.normal(size=(features,) * 2)
    weight = random.normal(size=(rows, features)).astype(np.float32)
    return weight, (inputs.T @ inputs / 50).astype(np.float32)


def test_the_last_block_of_rows_may_be_short() -> None:
    """As if rows of zeros came after it."""
    weight, gram = layer(7)
    spec = QuantSpec(dtype="int4", granularity="block:4x8")
    short, _ = output_grid(weight, spec, WeightContext(), gram)
    padded = np.concatenate([weight, np.zeros((1, 16), np.float32)])
    full, _ = output_grid(padded, spec, WeightContext(), gram)
    np.testing.assert_array_equal(short.scale, full.scale)
    assert short.scale.shape == (2, 2) and short.scale.dtype == np.float32
    half, _ = output_grid(weight.astype(np.float16), spec, WeightContext(), gram)
    assert half.scale.dtype == np.float32


def test_learned_rounding_is_taken_where_its_output_is_nearer() -> None:
    """What lies on the middle is rounded up: V of zero is h of a half."""
    part: Any = PARTS["adaround"]
    made = part.build(part.config(kind="adaround", iterations=1))
    weight = np.array([[2.4, 2.6]], np.float32)
    scale, zero = np.ones(1, np.float32), np.zeros(1, np.int32)
    grid = _Grid.under(weight, QuantParams(scale, zero, INT4, 0))
    gram = np.array([[1, -0.9], [-0.9, 1]], np.float32)
    made._descend = lambda *given: np.zeros_like(weight)
    assert made._learn(grid, gram).tolist() == [[3, 3]]
    made._descend = lambda *given: np.full_like(weight, -1)
    assert made._learn(grid, gram).tolist() == [[2, 2]]


@pytest.mark.parametrize("granularity", ["channel", "tensor"])
def test_rows_with_scales_of_their_own_are_compared_alone(granularity: str) -> None:
    weight, gram = layer(2)
    spec = QuantSpec(dtype="int4", granularity=granularity)
    best = (np.abs(weight).max(1) / 7).astype(np.float32)
    zero = np.zeros(2, np.int32)
    if granularity == "tensor":
        best, zero = best.max(), np.zeros((), np.int32)
    axis = channel_axis(spec)
    assert axis == (None if granularity == "tensor" else 0)
    start = QuantParams(best, zero, spec, axis)
    factor = np.array([3.0, 1.01]) if granularity == "channel" else np.array(1.3)
    found = QuantParams((best * factor).astype(np.float32), zero, spec, axis)

    def loss(params: QuantParams) -> np.ndarray:
        error = (project(weight, params) - weight).astype(np.float64)
        rows = np.einsum("ri,ij,rj->r", error, gram, error)
        return rows.sum() if granularity == "tensor" else rows

    expected = np.where(loss(found) < loss(start), found.scale, start.scale)
    chosen = nearer_in_whole(weight, start, found, gram)
    np.testing.assert_array_equal(chosen.scale, expected)
    kept = nearer_in_whole(weight, found, start, gram)
    expected = np.where(loss(start) < loss(found), start.scale, found.scale)
    np.testing.assert_array_equal(kept.scale, expected)


def test_of_equal_ranges_the_first_is_kept() -> None:
    weight, _ = layer(3)
    search = _RangeSearch(weight, INT4, lambda w, q: np.ones(3))
    search.take(-np.ones(3), np.ones(3))
    search.take(-2 * np.ones(3), 2 * np.ones(3))
    assert search.high.tolist() == [1, 1, 1]
    tried: list[tuple[float, float]] = []
    search.take = lambda low, high: tried.append((low[0], high[0]))  # type: ignore[method-assign]
    search.move_low()
    search.move_high()
    ratios = (0.85, 0.9, 0.95, 1.05, 1.1)
    expected = [(-r, 1.0) for r in ratios] + [(-1.0, r) for r in ratios]
    np.testing.assert_allclose(tried, expected)


def test_costs_are_sums_over_what_shares_a_scale() -> None:
    spec = QuantSpec(dtype="int4", granularity="block:3x5")
    error = np.random.default_rng(0).normal(size=(7, 12)).astype(np.float32)
    expected = [
        [error[i : i + 3, j : j + 5].sum() for j in (0, 5, 10)] for i in (0, 3, 6)
    ]
    np.testing.assert_allclose(sum_by_scale(error, spec), expected, rtol=1e-4)
    weight, _ = layer(2)
    for dtype in (np.float16, np.float64):
        found = power_cost(INT4, 2.4)(weight.astype(dtype), np.zeros_like(weight))
        assert found.dtype == np.float32


def test_low_rank_says_whose_inputs_it_lacks() -> None:
    weight, _ = layer(2)
    part: Any = PARTS["low_rank"]
    for source in ("gram", "diagonal"):
        made = part.build(part.config(kind="low_rank", source=source))
        with pytest.raises(SchemeError, match=r"^low_rank needs the Gram matrix"):
            made._gram(WeightContext())
    assert weight.shape == (2, 16)
