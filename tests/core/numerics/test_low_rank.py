"""Low-rank repairs of a weight's error: against EoRA's algorithm written out in NumPy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from octavo.core.calibration.features import FEATURE_OBSERVERS
from octavo.core.calibration.statistics import Statistics
from octavo.core.contract.algorithm import WeightContext
from octavo.core.errors import ConfigError, SchemeError
from octavo.core.numerics.low_rank import least_error_factors, narrowed
from octavo.core.numerics.tensor import QuantizedTensor, compact
from octavo.core.quantizing.algorithms.low_rank import (
    LowRankRepair,
    LowRankRepairConfig,
)
from octavo.core.quantizing.algorithms.rtn import RoundToNearest, RtnConfig
from octavo.core.quantizing.bias import correct_bias
from octavo.core.quantizing.input_features import feature_probes
from octavo.core.values.graph import Op, Weight
from octavo.core.values.scheme import OpScheme, PartChoice, QuantSpec
from octavo.core.values.sizes import scheme_bytes
from tests.arrays import each_kind

SHAPES = [(20, 33), (50, 17), (32, 32)]
SPEC = QuantSpec(dtype="int3", granularity="channel")


def problem(rows: int, features: int) -> tuple[np.ndarray, np.ndarray]:
    """An error, and the Gram matrix of inputs of very different size; one never fires."""
    random = np.random.default_rng(rows)
    error = random.normal(size=(rows, features)).astype(np.float32)
    inputs = random.normal(size=(200, features)) * np.exp(random.normal(size=features))
    inputs[:, 3] = 0
    return error, (inputs.T @ inputs).astype(np.float32)


def eora(error: np.ndarray, gram: np.ndarray, rank: int) -> np.ndarray:
    """Liu et al. 2024, algorithm 1, in float64: project, truncate, project back."""
    values, vectors = np.linalg.eigh(gram.astype(np.float64))
    alive = values > values.max() * 1e-10
    root = np.sqrt(np.where(alive, values, 0))
    inverse = np.divide(1, root, out=np.zeros_like(root), where=alive)
    left, sizes, right = np.linalg.svd(error @ (vectors * root), full_matrices=False)
    truncated = (left[:, :rank] * sizes[:rank]) @ right[:rank]
    return truncated @ (inverse[:, None] * vectors.T)


def loss(error: np.ndarray, gram: np.ndarray) -> float:
    error = error.astype(np.float64)
    return float(np.trace(error @ gram.astype(np.float64) @ error.T))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [1, 5])
@each_kind
def test_the_loss_is_eoras(make: Any, shape: tuple[int, int], rank: int) -> None:
    error, gram = problem(*shape)
    repair = least_error_factors(make(error), make(gram), rank)
    assert repair.rank == rank
    made = np.asarray(repair.matrix())
    least = loss(error - eora(error, gram, rank), gram)
    assert loss(error - made, gram) == pytest.approx(least, rel=1e-4)
    # What the inputs span is the paper's matrix itself; beyond that nothing can be seen.
    inputs = gram @ np.eye(shape[1], dtype=np.float32)
    wanted = eora(error, gram, rank) @ inputs
    np.testing.assert_allclose(made @ inputs, wanted, atol=2e-3 * abs(wanted).max())


@pytest.mark.parametrize("shape", SHAPES)
@each_kind
def test_a_vector_stands_for_a_diagonal(make: Any, shape: tuple[int, int]) -> None:
    error, gram = problem(*shape)
    diagonal = np.diagonal(gram).copy()
    made = np.asarray(least_error_factors(make(error), make(diagonal), 4).matrix())
    whole = np.diag(diagonal)
    least = loss(error - eora(error, whole, 4), whole)
    assert loss(error - made, whole) == pytest.approx(least, rel=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_no_factors_near_by_are_better(shape: tuple[int, int]) -> None:
    error, gram = problem(*shape)
    repair = least_error_factors(error, gram, 4)
    least = loss(error - repair.matrix(), gram)
    random = np.random.default_rng(0)
    for size in (1e-3, 1e-2, 1e-1):
        left = repair.left * (1 + size * random.normal(size=repair.left.shape))
        right = repair.right * (1 + size * random.normal(size=repair.right.shape))
        assert loss(error - left @ right, gram) > least
    # Nor are those that forget what the inputs are.
    plain = least_error_factors(error, None, 4)
    assert loss(error - plain.matrix(), gram) > 1.2 * least


@pytest.mark.parametrize("shape", SHAPES)
def test_without_data_it_is_the_plain_decomposition(shape: tuple[int, int]) -> None:
    error, _ = problem(*shape)
    left, sizes, right = np.linalg.svd(error.astype(np.float64), full_matrices=False)
    wanted = (left[:, :6] * sizes[:6]) @ right[:6]
    made = least_error_factors(error, None, 6).matrix()
    np.testing.assert_allclose(made, wanted, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_full_rank_repairs_all(shape: tuple[int, int]) -> None:
    error, gram = problem(*shape)
    gram = gram + np.eye(shape[1], dtype=np.float32)
    repair = least_error_factors(error, gram, 1000)
    assert repair.rank == min(shape)
    np.testing.assert_allclose(repair.matrix(), error, atol=2e-4)


def test_a_zero_error_and_a_zero_gram_matrix() -> None:
    error, gram = problem(20, 33)
    for e, g in ((0 * error, gram), (error, 0 * gram), (error.T, np.zeros((20, 20)))):
        repair = least_error_factors(e, g.astype(np.float32), 3)
        assert np.isfinite(repair.matrix()).all()


def test_sixteen_bits_hold_factors_of_small_and_large_errors() -> None:
    error, gram = problem(20, 33)
    for size in (1e-6, 1e4):
        repair = least_error_factors(size * error, gram, 5)
        exact = repair.matrix()
        close = narrowed(repair, "float16")
        assert close.left.dtype == np.float16
        np.testing.assert_allclose(close.matrix(), exact, atol=2e-3 * abs(exact).max())


def test_rank_zero_is_refused() -> None:
    with pytest.raises(SchemeError, match="at least 1"):
        least_error_factors(*problem(20, 33), 0)
    with pytest.raises(ConfigError, match="rank"):
        LowRankRepairConfig(rank=0)


# What a quantized tensor makes of it


def repaired(matrix: np.ndarray, gram: np.ndarray, **settings: Any) -> QuantizedTensor:
    algorithm = LowRankRepair(LowRankRepairConfig(**settings))
    return algorithm.quantize(matrix, SPEC, WeightContext(gram=gram, count=1))


def test_the_codes_stay_and_the_numbers_come_nearer() -> None:
    weight, gram = problem(20, 33)
    before = RoundToNearest(RtnConfig()).quantize(weight, SPEC, WeightContext())
    made = repaired(weight, gram, rank=4, dtype="float32")
    np.testing.assert_array_equal(made.codes, before.codes)
    error = weight - before.dequantize()
    least = loss(error - eora(error, gram, 4), gram)
    assert loss(weight - made.dequantize(), gram) == pytest.approx(least, rel=1e-3)
    assert made.nbytes == before.nbytes + 4 * (20 + 33) * 4


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_packing_keeps_the_repair(dtype: str) -> None:
    import pickle

    weight, gram = problem(20, 33)
    made = repaired(weight, gram, rank=2, dtype=dtype)
    packed = compact(made)
    again = pickle.loads(pickle.dumps(packed))
    for tensor in (packed, again):
        np.testing.assert_array_equal(tensor.dequantize(), made.dequantize())
        assert tensor.nbytes == made.nbytes
    width = 4 if dtype == "float32" else 2
    assert made.repair is not None
    assert made.repair.nbytes == width * 2 * (20 + 33)


def test_a_repair_of_a_weight_that_is_stored_with_inputs_first() -> None:
    weight, gram = problem(20, 33)
    made = repaired(weight, gram, rank=3)
    assert made.repair is not None
    params = replace(made.params, axis=1)
    turned = QuantizedTensor(
        np.ascontiguousarray(made.codes.T), params, None, replace(made.repair, axis=1)
    )
    np.testing.assert_array_equal(turned.dequantize(), made.dequantize().T)


@pytest.mark.parametrize("stored", [0, 1])
def test_a_corrected_bias_makes_up_for_what_the_repair_left(stored: int) -> None:
    weight, gram = problem(20, 33)
    made = repaired(weight, gram, rank=3, dtype="float32")
    assert made.repair is not None
    inputs = np.random.default_rng(1).normal(1, 1, size=(40, 33)).astype(np.float32)
    if stored:
        params, repair = replace(made.params, axis=1), replace(made.repair, axis=1)
        made = QuantizedTensor(made.codes.T, params, None, repair)
        weight = weight.T
    held = Weight("w", weight.shape, channel_axis=stored)
    op = Op("layer", "linear", ("x",), ("y",), held, bias="b")
    statistics = Statistics(
        feature_probes(op, ("channel_mean",)),
        lambda p: FEATURE_OBSERVERS[p.calibrator.kind](p.rows),
    )
    statistics.update("x", inputs)
    fixed = correct_bias(op, weight, np.zeros(20, np.float32), made, statistics)
    error = weight - made.dequantize()
    matrix = error.T if stored else error
    np.testing.assert_allclose(fixed, matrix @ inputs.mean(0), atol=1e-4)


@pytest.mark.parametrize("shape", [(20, 33), (3, 8)])
def test_the_bytes_that_a_scheme_foresees(shape: tuple[int, int]) -> None:
    scheme = OpScheme(mode="weight_only", weight=SPEC)
    plain = scheme_bytes(scheme, shape)
    for options, rank, width in (
        ({}, 16, 2),
        ({"rank": 5}, 5, 2),
        ({"rank": 5, "dtype": "float32"}, 5, 4),
        ({"rank": 5, "dtype": "bfloat16"}, 5, 2),
    ):
        step = PartChoice.model_validate({"kind": "low_rank", **options})
        for chained in (
            scheme.variant(refined_by=(step,)),
            scheme.variant(algorithm=step),
        ):
            own = scheme_bytes(chained, shape) - plain
            assert own == min(rank, *shape) * sum(shape) * width
    step = PartChoice(kind="low_rank", options=(("rank", 0),))
    with pytest.raises(SchemeError, match="rank of at least 1"):
        scheme_bytes(scheme.variant(refined_by=(step,)), shape)


def test_the_sources_weigh_as_they_say() -> None:
    weight, gram = problem(20, 33)
    by_source = {
        source: repaired(weight, gram, rank=4, source=source, dtype="float32")
        for source in ("gram", "diagonal", "weights")
    }
    losses = {s: loss(weight - t.dequantize(), gram) for s, t in by_source.items()}
    assert losses["gram"] < losses["diagonal"] < losses["weights"]
    alone = loss(weight - by_source["diagonal"].dequantize(), np.diag(np.diag(gram)))
    others = [by_source["gram"], by_source["weights"]]
    own = np.diag(np.diag(gram))
    assert all(alone < loss(weight - t.dequantize(), own) for t in others)
    card = frozenset({"gram"})
    needed = {s: LowRankRepairConfig(source=s).needs(card) for s in by_source}
    assert needed == {"gram": card, "diagonal": {"channel_square"}, "weights": set()}
    squares = WeightContext(channel_square=np.diag(gram) / 200, count=200)
    settings = LowRankRepairConfig(rank=4, source="diagonal", dtype="float32")
    again = LowRankRepair(settings).quantize(weight, SPEC, squares)
    wanted = by_source["diagonal"].dequantize()
    np.testing.assert_allclose(again.dequantize(), wanted, atol=1e-4)
    with pytest.raises(SchemeError, match="Gram matrix"):
        LowRankRepair(LowRankRepairConfig()).quantize(weight, SPEC, WeightContext())
