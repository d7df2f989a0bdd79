"""Sweeps column by column against a plain loop, and what GPTQ and its kin share."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from octavo.core.contract.algorithm import WeightContext
from octavo.core.errors import SchemeError
from octavo.core.numerics.affine import QuantParams
from octavo.core.numerics.tensor import QuantizedTensor
from octavo.core.quantizing.algorithms import octavo_algorithms
from octavo.core.quantizing.algorithms.gptq import unit_factor
from octavo.core.quantizing.algorithms.learned import (
    _shrinkage,
    best_rows,
    normalised,
    unshrunk,
)
from octavo.core.quantizing.algorithms.output_grid import _shares
from octavo.core.quantizing.algorithms.search import power_cost, searched_grid
from octavo.core.quantizing.algorithms.sweep import Sweep, _ColumnGrid
from octavo.core.values.scheme import QuantSpec

PARTS = {part.name: part for part in octavo_algorithms()}
INT4 = QuantSpec(dtype="int4", granularity="channel")
GROUPS = QuantSpec(dtype="int4", granularity="group:40")
FEATURES = 300


def run(
    name: str, weight: Any, spec: QuantSpec, context: WeightContext, **more: Any
) -> QuantizedTensor:
    part: Any = PARTS[name]
    built = part.build(part.config(kind=name, **more))
    found: QuantizedTensor = built.quantize(weight, spec, context)
    return found


def layer(rows: int = 4, features: int = 24) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    inputs = random.normal(size=(90, features)) @ random.normal(size=(features,) * 2)
    weight = random.normal(size=(rows, features)).astype(np.float32)
    return weight, (inputs.T @ inputs / 90).astype(np.float32)


def context_of(gram: np.ndarray, **more: Any) -> WeightContext:
    square = np.diagonal(gram) + 0
    return WeightContext(gram=gram, channel_square=square, count=90, **more)


def matrices() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(3)
    weight = random.normal(size=(3, FEATURES)).astype(np.float32)
    square = 0.05 * random.normal(size=(2, FEATURES, FEATURES))
    feedback, drift = np.triu(square, 1).astype(np.float32)
    return weight, feedback + np.eye(FEATURES, dtype=np.float32), drift


def grid_over(columns: np.ndarray, _: int = 0) -> QuantParams:
    scale = (np.abs(columns).max(1, keepdims=True) / 7).astype(np.float32)
    return QuantParams(scale, np.zeros_like(scale, np.int32), GROUPS, 0)


def by_hand(
    weight: np.ndarray,
    feedback: np.ndarray,
    drift: np.ndarray,
    size: int,
    scales: np.ndarray | None,
    order: list[int],
) -> tuple[np.ndarray, np.ndarray]:
    """One column after the other, in float64; scales of groups, or None to choose them."""
    w = weight.T.astype(np.float64)
    met, errors, codes = np.zeros_like(w), np.zeros_like(w), np.zeros_like(w)
    chosen = []
    for k in range(len(w)):
        if scales is None and k % size == 0:
            # The group as it is when nothing of it is rounded, only carried on.
            stop = min(k + size, len(w))
            left = errors + 0
            moved = []
            for j in range(k, stop):
                target = w[j] + drift[:k, j] @ met[:k]
                moved.append(target + feedback[:j, j] @ left[:j])
                left[j] = target - moved[-1]
            chosen.append(np.abs(np.array(moved)).max(0) / 7)
        step = chosen[-1] if scales is None else scales[:, order[k] // size]
        target = w[k] + drift[:k, k] @ met[:k]
        met[k] = target + feedback[:k, k] @ errors[:k]
        codes[k] = np.clip(np.round(met[k] / step), -8, 7)
        errors[k] = target - codes[k] * step
    return codes.T, np.array(chosen).T


@pytest.mark.parametrize("drifts", [False, True])
def test_a_sweep_of_several_blocks_is_a_plain_loop(drifts: bool) -> None:
    weight, feedback, drift = matrices()
    given = drift if drifts else None
    drift = drift if drifts else 0 * drift
    own = np.asfortranarray(weight)

    # One scale for all columns.
    params = grid_over(weight)
    flat = QuantParams(params.scale[:, 0], params.zero_point[:, 0], INT4, 0)
    codes, _ = Sweep(own, INT4, feedback, flat, drift=given).run(grid_over)
    order = list(range(FEATURES))
    expected, _ = by_hand(weight, feedback, drift, FEATURES, params.scale, order)
    assert (codes == expected).mean() > 0.99
    np.testing.assert_array_equal(codes[:, :200], expected[:, :200])
    np.testing.assert_array_equal(own, weight)

    # Scales of groups, by the columns' own places.
    scales = np.random.default_rng(4).uniform(0.2, 0.6, (3, 8)).astype(np.float32)
    groups = QuantParams(scales, np.zeros((3, 8), np.int32), GROUPS, 0)
    order = [int(i) for i in np.random.default_rng(5).permutation(FEATURES)]
    sweep = Sweep(own, GROUPS, feedback, groups, order, given)
    codes, _ = sweep.run(grid_over)
    expected, _ = by_hand(weight, feedback, drift, 40, scales, order)
    np.testing.assert_array_equal(codes[:, :200], expected[:, :200])

    # Scales that are chosen on the way.
    codes, found = Sweep(own, GROUPS, feedback, None, drift=given).run(grid_over)
    expected, scales = by_hand(weight, feedback, drift, 40, None, order)
    assert found.scale.shape == (3, 8)
    np.testing.assert_allclose(found.scale[:, :5], scales[:, :5], rtol=1e-3)
    np.testing.assert_array_equal(codes[:, :200], expected[:, :200])
    np.testing.assert_array_equal(own, weight)


def test_one_grid_may_serve_all_groups() -> None:
    weight, feedback, _ = matrices()
    params = grid_over(weight)
    flat = QuantParams(params.scale[:, 0], params.zero_point[:, 0], INT4, 0)
    expected, _ = Sweep(weight, INT4, feedback, flat).run(grid_over)
    codes, _ = Sweep(weight, GROUPS, feedback, flat).run(grid_over)
    np.testing.assert_array_equal(codes, expected)


def test_a_columns_numbers_are_float32() -> None:
    scale = np.array([0.5, 0.25], np.float32)
    grid = _ColumnGrid(scale, np.array([0, 1], np.int32), INT4)
    marks, numbers = grid.round(np.array([1.1, 9.0], np.float32))
    assert marks.dtype == numbers.dtype == np.float32
    assert numbers.tolist() == [1.0, 1.5]
    assert grid.codes(marks).tolist() == [2, 7] and grid.codes(marks).dtype == np.int8


# GPTQ


def test_columns_of_equal_inputs_keep_their_order() -> None:
    weight, gram = layer(3, 200)
    roots = np.sqrt(np.diagonal(gram) / np.random.default_rng(0).integers(1, 3, 200))
    gram = (gram / np.outer(roots, roots)).astype(np.float32)
    np.fill_diagonal(gram, np.round(np.diagonal(gram)))
    order = np.argsort(-np.diagonal(gram), kind="stable")
    sorted_ = run("gptq", weight, INT4, context_of(gram), act_order=True)
    plain = run("gptq", weight[:, order], INT4, context_of(gram[order][:, order]))
    np.testing.assert_array_equal(sorted_.codes[:, order], plain.codes)


def test_gptq_searches_its_range_by_the_diagonal() -> None:
    weight, gram = layer()
    gram[::5] *= 9
    gram[:, ::5] *= 9
    cost = power_cost(INT4, 2.0, np.diagonal(gram))
    expected, _ = searched_grid(weight, INT4, WeightContext(), cost)
    found = run("gptq", weight, INT4, context_of(gram), clip="mse")
    np.testing.assert_array_equal(found.params.scale, expected.scale)
    for other in (power_cost(INT4, 3.0, np.diagonal(gram)), power_cost(INT4, 2.0)):
        params, _ = searched_grid(weight, INT4, WeightContext(), other)
        assert (params.scale != expected.scale).any()
    own = run("gptq", weight, INT4, context_of(gram))
    np.testing.assert_allclose(own.params.scale, np.abs(weight).max(1) / 7, rtol=1e-6)
    given = QuantParams(own.params.scale * 1.5, own.params.zero_point, INT4, 0)
    kept = run("gptq", weight, INT4, context_of(gram, params=given), clip="mse")
    np.testing.assert_array_equal(kept.params.scale, given.scale)


def test_a_factor_is_found_with_ten_times_the_damping_or_not_at_all() -> None:
    near = np.array([[1, 1.05], [1.05, 1]], np.float32)
    unit, energy = unit_factor(near, 0.01)
    expected = near + 0.1 * np.eye(2)
    np.testing.assert_allclose(unit @ np.diag(energy) @ unit.T, expected, rtol=1e-5)
    with pytest.raises(SchemeError) as raised:
        unit_factor(np.array([[1, 5], [5, 1]], np.float32), 0.01)
    assert str(raised.value) == (
        "the Gram matrix is not positive definite with damping 0.1: Matrix is not positive "
        "definite; give more calibration data or more damping"
    )


# What algorithms share


@pytest.mark.parametrize("name", ["gptaq"])
def test_gptaq_needs_both_products(name: str) -> None:
    weight, gram = layer()
    for context in (WeightContext(quantized_gram=gram), WeightContext(drift=gram)):
        with pytest.raises(SchemeError):
            run(name, weight, INT4, context)


@pytest.mark.parametrize(
    ("importance", "lacking"),
    [
        ("inputs", "mean squares of the op's input"),
        ("gradients", "squared gradients of the weight"),
    ],
)
def test_importance_says_what_it_lacks(importance: str, lacking: str) -> None:
    weight, _ = layer()
    with pytest.raises(SchemeError) as raised:
        run("importance", weight, INT4, WeightContext(), importance=importance)
    assert str(raised.value) == (
        f"importance needs the {lacking}: give calibration data, or use rtn or hqq, which "
        "need none"
    )


def test_importance_counts_by_what_it_is_told() -> None:
    weight, _ = layer()
    square = np.random.default_rng(1).uniform(size=(2, 24)) ** 4
    seen = []
    for given in (
        WeightContext(channel_square=square[0], gradient_square=square[1]),
        WeightContext(channel_square=square[1], gradient_square=square[0]),
    ):
        for importance in ("inputs", "gradients"):
            found = run("importance", weight, INT4, given, importance=importance)
            seen.append(found.params.scale)
    np.testing.assert_array_equal(seen[0], seen[3])
    np.testing.assert_array_equal(seen[1], seen[2])
    assert (seen[0] != seen[1]).any()


FEW: dict[str, dict[str, Any]] = {
    "adaround": {"iterations": 9},
    "autoround": {"iterations": 5},
}


@pytest.mark.parametrize(
    "name", ["adaround", "autoround", "awq", "gptq", "hqq", "importance"]
)
def test_a_given_grid_and_its_second_level_are_kept(name: str) -> None:
    weight, gram = layer()
    more = FEW.get(name, {})
    spec = QuantSpec(dtype="int4", granularity="group:8", scale_dtype="uint8")
    first = run("rtn", weight, spec, context_of(gram), clip="mse")
    again = run(name, weight, spec, context_of(gram, start=first), **more)
    assert first.extra is not None and again.extra is not None
    assert again.extra.keys() == first.extra.keys()
    params = QuantParams(1.3 * first.params.scale, first.params.zero_point, spec, 0)
    kept = run(name, weight, spec, context_of(gram, params=params), **more)
    np.testing.assert_array_equal(kept.params.scale, params.scale)
    empty = run(name, weight[:0], spec, context_of(gram))
    assert empty.extra is not None and empty.extra.keys() == first.extra.keys()
    if name == "importance":
        plain = run(name, weight, spec, context_of(gram), keep_size=False)
        assert plain.extra is not None and plain.extra.keys() == first.extra.keys()


@pytest.mark.parametrize("granularity", ["channel", "group:8", "tensor"])
def test_rows_take_their_scales_along(granularity: str) -> None:
    weight, gram = layer()
    spec = QuantSpec(dtype="uint4", symmetric=False, granularity=granularity)
    context = context_of(gram)
    start = run("rtn", weight, spec, context)
    other = run("rtn", 1.5 * weight + 0.2, spec, context).params
    found = run("rtn", weight, spec, context_of(gram, params=other))
    found = QuantizedTensor(found.codes, found.params, {"a": 1})
    # Start's codes are spoilt in every second row.
    codes = start.codes + 0
    codes[::2] = 15 - codes[::2]
    start = QuantizedTensor(codes, start.params)
    loss = []
    for one in (found, start):
        error = (one.dequantize() - weight).astype(np.float64)
        loss.append(np.einsum("ri,ij,rj->r", error, gram, error))
    mine = loss[0] < loss[1]
    assert mine.any() and not mine.all()
    best = best_rows(found, start, weight, gram)
    np.testing.assert_array_equal(
        best.codes, np.where(mine[:, None], found.codes, codes)
    )
    for key in ("scale", "zero_point"):
        a, b = getattr(found.params, key), getattr(start.params, key)
        if granularity != "tensor":
            a = np.where(mine[:, None] if a.ndim > 1 else mine, a, b)
        np.testing.assert_array_equal(getattr(best.params, key), a)
    assert best.extra == {"a": 1}


def test_of_equal_rows_the_earlier_is_kept() -> None:
    weight = np.array([[2.0, 4.0]], np.float32)
    zero = np.zeros(1, np.int32)
    fine = QuantParams(np.ones(1, np.float32), zero, INT4, 0)
    coarse = QuantParams(2 * np.ones(1, np.float32), zero, INT4, 0)
    found = QuantizedTensor(np.array([[2, 4]], np.int8), fine)
    start = QuantizedTensor(np.array([[1, 2]], np.int8), coarse)
    best = best_rows(found, start, weight, np.eye(2, dtype=np.float32))
    assert best.codes.tolist() == [[1, 2]] and best.params.scale.tolist() == [2]


def test_scales_that_are_given_do_not_grow() -> None:
    weight, gram = layer()
    found = run("rtn", weight, INT4, context_of(gram))
    for context in (
        WeightContext(),
        context_of(gram, params=found.params),
        context_of(gram, start=found),
    ):
        assert unshrunk(found, weight, context) is found
    assert unshrunk(found, weight[:, :0], context_of(gram)) is found
    grown = unshrunk(found, weight, context_of(gram))
    assert (grown.params.scale != found.params.scale).any()


def test_shrinkage_of_rows_by_hand() -> None:
    before = np.array([0.5, -1, 1, 0, 1, 3])
    after = np.array([0.4, 1, -1, 1, 0, 1])
    ones = np.ones((6, 1))
    found = _shrinkage(before[:, None], after[:, None], ones)
    np.testing.assert_allclose(found, [1.25, 1, 1, 1, 1, 2])
    gram = np.array([[0.3, 0.1], [0.1, 0.7]])
    np.testing.assert_allclose(normalised(gram), 2 * gram)


def test_both_ends_of_a_range_are_tried_by_themselves() -> None:
    steps = (1.05, 1.0, 0.95, 0.9, 0.8)
    found = _shares(QuantSpec(dtype="uint4", symmetric=False, granularity="group:8"))
    assert sorted(found) == sorted((low, high) for low in steps for high in steps)
