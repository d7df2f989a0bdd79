"""What every algorithm does at its edges: other dtypes, one row, no rows, no data, two levels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from octavo.core.contract.algorithm import WeightContext
from octavo.core.errors import SchemeError
from octavo.core.numerics.tensor import QuantizedTensor
from octavo.core.quantizing.algorithms import octavo_algorithms
from octavo.core.quantizing.algorithms.adaround import _Adam, _Grid
from octavo.core.quantizing.algorithms.gptq import unit_factor
from octavo.core.quantizing.algorithms.learned import best_rows, grown, normalised
from octavo.core.quantizing.algorithms.search import (
    searched_grid,
    sum_by_scale,
    with_zeros,
)
from octavo.core.values.scheme import QuantSpec

PARTS = {part.name: part for part in octavo_algorithms()}
FEW = {"adaround": {"iterations": 20}, "autoround": {"iterations": 8}}
ALL = sorted(PARTS)
INT4 = QuantSpec(dtype="int4", granularity="channel")
UINT3 = QuantSpec(dtype="uint3", symmetric=False, granularity="group:8")
TWO_LEVELS = QuantSpec(dtype="int4", granularity="group:8", scale_dtype="uint8")


def layer(rows: int = 6, features: int = 24) -> tuple[np.ndarray, np.ndarray]:
    """A weight, and the mean of x^T x over correlated inputs with a few loud channels."""
    random = np.random.default_rng(0)
    inputs = random.normal(size=(90, features)) @ random.normal(size=(features,) * 2)
    inputs[:, ::7] *= 5
    weight = random.normal(size=(rows, features)).astype(np.float32)
    return weight, (inputs.T @ inputs / 90).astype(np.float32)


def context_of(gram: np.ndarray, **more: Any) -> WeightContext:
    return WeightContext(
        gram=gram,
        channel_square=np.diagonal(gram) + 0,
        quantized_gram=gram,
        drift=0.1 * gram,
        count=90,
        **more,
    )


def run(
    name: str, weight: Any, spec: QuantSpec, context: WeightContext, **options: Any
) -> QuantizedTensor:
    part: Any = PARTS[name]
    settings = {**FEW.get(name, {}), **options}
    found: QuantizedTensor = part.build(part.config(kind=name, **settings)).quantize(
        weight, spec, context
    )
    return found


@pytest.mark.parametrize("spec", [INT4, UINT3], ids=str)
@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", [np.float64, np.float16])
def test_weights_of_every_dtype_are_met_as_float32(
    name: str, spec: QuantSpec, dtype: Any
) -> None:
    weight, gram = layer()
    held = weight.astype(np.float16)
    expected = run(name, held.astype(np.float32), spec, context_of(gram))
    found = run(name, held.astype(dtype), spec, context_of(gram))
    assert found.params.scale.dtype == np.float32
    assert found.codes.dtype == expected.codes.dtype
    assert found.params.zero_point.dtype == expected.params.zero_point.dtype
    np.testing.assert_array_equal(found.codes, expected.codes)
    np.testing.assert_array_equal(found.params.scale, expected.params.scale)
    assert found.dequantize().dtype == np.float32


@pytest.mark.parametrize("name", sorted(set(ALL) - {"low_rank"}))
def test_one_row_is_rounded_as_it_is_among_others(name: str) -> None:
    weight, gram = layer()
    among = run(name, weight, INT4, context_of(gram))
    alone = run(name, weight[:1], INT4, context_of(gram))
    same = alone.codes == among.codes[:1]
    # AdaRound weighs its two losses over all rows.
    share, near = (0.9, 1e-2) if name == "adaround" else (1, 1e-5)
    assert same.mean() >= share
    np.testing.assert_allclose(alone.params.scale, among.params.scale[:1], rtol=near)
    # One column: whatever is learned, a code of its own scale is exact.
    column = run(name, weight[:, :1], INT4, context_of(gram[:1, :1]))
    np.testing.assert_allclose(column.dequantize(), weight[:, :1], rtol=0.08)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("shape", [(0, 8), (4, 0)])
def test_weights_without_elements_have_no_codes(
    name: str, shape: tuple[int, int]
) -> None:
    gram = np.eye(shape[1], dtype=np.float32)
    found = run(name, np.zeros(shape, np.float32), INT4, context_of(gram))
    assert found.codes.shape == shape and found.codes.dtype == np.int8
    assert found.params.scale.shape == (shape[0],)


@pytest.mark.parametrize("name", ALL)
def test_two_levels_of_scales_are_kept(name: str) -> None:
    """What decodes to the codes' scales: the second level goes with them."""
    weight, gram = layer()
    found = run(name, weight, TWO_LEVELS, context_of(gram))
    expected = run("rtn", weight, TWO_LEVELS, context_of(gram), clip="mse")
    assert expected.extra is not None and found.extra is not None
    assert found.extra.keys() == expected.extra.keys()
    for key, value in expected.extra.items():
        assert np.shape(found.extra[key]) == np.shape(value)


@pytest.mark.parametrize("name", ["adaround", "autoround", "awq", "gptq", "low_rank"])
def test_what_lacks_the_gram_matrix_says_so(name: str) -> None:
    weight, _ = layer()
    with pytest.raises(SchemeError) as raised:
        run(name, weight, INT4, WeightContext())
    assert str(raised.value) == (
        f"{name} needs the Gram matrix of the op's input: give calibration data, or use "
        "rtn or hqq, which need none"
    )


@pytest.mark.parametrize("name", ["gptq", "gptaq"])
def test_gptq_says_what_it_cannot_share(name: str) -> None:
    weight, gram = layer()
    spec = QuantSpec(dtype="int4", granularity="block:2x4")
    with pytest.raises(SchemeError) as raised:
        run(name, weight, spec, context_of(gram))
    assert str(raised.value) == (
        f"{name} rounds column by column and cannot share a scale over rows ({spec}); use "
        "group or channel granularity"
    )


def test_floats_are_not_rounded_by_learning() -> None:
    weight, gram = layer()
    spec = QuantSpec(dtype="nf4", granularity="group:8")
    with pytest.raises(SchemeError) as raised:
        run("adaround", weight, spec, context_of(gram))
    assert str(raised.value) == (
        "adaround learns the rounding of integers; for nf4 use gptq, awq or rtn"
    )
    with pytest.raises(SchemeError) as raised:
        run("rtn", weight, spec, context_of(gram), rounding="stochastic")
    assert (
        str(raised.value) == "stochastic rounding is for integers; round nf4 to nearest"
    )


def test_adam_takes_torchs_steps() -> None:
    torch = pytest.importorskip("torch")
    random = np.random.default_rng(0)
    zeros = np.zeros(3)
    adam = _Adam(0.1, zeros, zeros)
    value = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    theirs = torch.optim.Adam([value], lr=0.1)
    mine = np.zeros(3)
    for i in range(6):
        gradient = random.normal(size=3) * np.asarray([1, 1e-3, 1e-8])
        value.grad = torch.from_numpy(gradient.copy())
        theirs.step()
        mine = mine - adam.step_along(gradient, i)
        np.testing.assert_allclose(mine, value.detach().numpy(), rtol=1e-9)


def test_adaround_takes_the_nearest_where_learning_lost() -> None:
    """Row by row; of equal rows it does not matter which."""
    weight, gram = layer()
    spec = QuantSpec(dtype="uint4", symmetric=False, granularity="channel")
    params = run("rtn", weight, spec, context_of(gram)).params
    part: Any = PARTS["adaround"]
    made = part.build(part.config(kind="adaround", iterations=1))
    grid = _Grid.under(weight, params)
    # What learning leaves: everything is rounded up.
    made._descend = lambda *given: np.zeros_like(weight)
    up = np.ceil(weight / grid.scale + 0) + grid.zero
    up = np.where(weight / grid.scale == np.floor(weight / grid.scale), up + 1, up)
    near = np.clip(np.round(weight / grid.scale) + grid.zero, 0, 15)
    up = np.clip(up, 0, 15)

    def loss(codes: np.ndarray) -> np.ndarray:
        error = (grid.scale * (codes - grid.zero) - weight).astype(np.float64)
        return np.einsum("ri,ij,rj->r", error, gram, error)

    expected = np.where((loss(up) < loss(near))[:, None], up, near)
    found = made._learn(grid, gram)
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == np.int32


@pytest.mark.parametrize("granularity", ["block:3x5", "block:2x4", "group:7"])
def test_errors_add_up_over_what_shares_a_scale(granularity: str) -> None:
    spec = QuantSpec(dtype="int8", granularity=granularity)
    error = np.random.default_rng(0).normal(size=(7, 13)).astype(np.float32)
    tall, wide = {"b": (3, 5), "g": (1, 7)}[granularity[0]]
    if granularity == "block:2x4":
        tall, wide = 2, 4
    expected = [
        [error[i : i + tall, j : j + wide].sum() for j in range(0, 13, wide)]
        for i in range(0, 7, tall)
    ]
    found = sum_by_scale(error, spec)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32])
def test_zeros_are_of_the_matrixs_dtype(dtype: Any) -> None:
    matrix = np.ones((2, 3), dtype)
    for axis, shape in ((0, (6, 3)), (1, (2, 7))):
        found = with_zeros(matrix, axis, 4)
        assert found.shape == shape and found.dtype == dtype
        assert found.sum() == 6 and found[:2, :3].sum() == 6
    assert with_zeros(matrix, 0, 0) is matrix


def test_a_search_without_ratios_has_no_range() -> None:
    """The first range that is tried is taken, whatever it costs."""
    weight, _ = layer()
    params, _ = searched_grid(
        weight, INT4, WeightContext(), lambda w, q: np.full(len(w), np.inf), (0.5,)
    )
    expected = 0.5 * np.abs(weight).max(1) / 7
    np.testing.assert_allclose(params.scale, expected, rtol=1e-6)


def test_inputs_that_never_fired_are_left_alone() -> None:
    gram = np.zeros((3, 3), np.float32)
    gram[0, 0], gram[0, 2], gram[2, 0], gram[2, 2] = 600, 30, 30, 300
    unit, energy = unit_factor(gram, 0.1)
    damped = gram + np.diag([30, 30 + 300, 30]).astype(np.float32)
    np.testing.assert_allclose(unit @ np.diag(energy) @ unit.T, damped, rtol=1e-5)
    assert unit.dtype == energy.dtype == np.float32
    # Where little fired at all, they count as one.
    unit, energy = unit_factor(gram / 1000, 0.1)
    damped = gram / 1000 + np.diag([0.03, 1.03, 0.03])
    np.testing.assert_allclose(unit @ np.diag(energy) @ unit.T, damped, rtol=1e-5)
    np.testing.assert_array_equal(normalised(np.zeros((2, 2))), np.zeros((2, 2)))
    np.testing.assert_allclose(normalised(gram), gram / 300)


def test_of_two_algorithms_each_row_keeps_the_better() -> None:
    weight, gram = layer()
    first = run("rtn", weight, INT4, context_of(gram))
    second = run("gptq", weight, INT4, context_of(gram))
    noisy = QuantizedTensor(first.codes + 0, first.params)
    noisy.codes[::2] = -noisy.codes[::2]
    found = best_rows(second, noisy, weight, gram)
    np.testing.assert_array_equal(found.codes[::2], second.codes[::2])
    # Of equals the earlier one: its scales are the ones that were chosen.
    kept = best_rows(first, first, weight, gram)
    np.testing.assert_array_equal(kept.codes, first.codes)


def test_scales_grow_by_what_outputs_shrank() -> None:
    weight, gram = layer()
    for spec in (INT4, UINT3):
        found = run("rtn", weight, spec, context_of(gram))
        outputs = weight @ gram
        ratio = (outputs * weight).sum(1) / (outputs * found.dequantize()).sum(1)
        again = grown(found, weight, outputs)
        scale = again.params.scale.reshape(len(weight), -1)
        before = found.params.scale.reshape(len(weight), -1)
        np.testing.assert_allclose(scale, before * ratio[:, None], rtol=1e-5)


@pytest.mark.parametrize(
    ("factor", "growth"), [(0.1, 0.5), (0.8, 0.8), (9, 2), (0, 1), (-1, 1)]
)
def test_scales_grow_at_most_by_two(factor: float, growth: float) -> None:
    """And not at all where nothing is left of a row, or its sign has turned."""
    weight, gram = layer()
    found = run("rtn", weight, INT4, context_of(gram))
    rounded = found.dequantize()
    again = grown(found, factor * rounded, np.sign(rounded))
    ratio = again.params.scale / found.params.scale
    np.testing.assert_allclose(ratio, growth, rtol=1e-5)
    assert again.extra is None
