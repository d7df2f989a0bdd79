"""Importance-weighted scales: against a search written out element by element."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from octavo.core.contract.algorithm import WeightContext
from octavo.core.errors import SchemeError
from octavo.core.numerics.codec import NF4
from octavo.core.numerics.floats import FLOAT_FORMATS, from_codes
from octavo.core.quantizing.algorithms.importance import Importance, ImportanceConfig
from octavo.core.quantizing.algorithms.rtn import RoundToNearest, RtnConfig
from octavo.core.values.scheme import QuantSpec
from tests.arrays import each_kind


def weight_and_squares(
    rows: int = 12, features: int = 70
) -> tuple[np.ndarray, np.ndarray]:
    """A weight, and mean squares of inputs of which a few are loud and one is dead."""
    random = np.random.default_rng(3)
    squares = random.uniform(0.1, 1, features) ** 2
    squares[::9] *= 400
    squares[4] = 0
    weight = random.standard_t(4, size=(rows, features))
    return weight.astype(np.float32), squares.astype(np.float32)


def found_by(
    weight: Any, spec: QuantSpec, squares: Any = None, **options: Any
) -> np.ndarray:
    context = WeightContext(channel_square=squares)
    if options.get("importance") == "gradients":
        context = WeightContext(gradient_square=squares)
    config = ImportanceConfig(**{"keep_size": False, **options})
    found = Importance(config).quantize(weight, spec, context)
    return np.asarray(found.dequantize(), dtype=np.float64)


def plainly(weight: np.ndarray, spec: QuantSpec) -> np.ndarray:
    found = RoundToNearest(RtnConfig()).quantize(weight, spec, WeightContext())
    return np.asarray(found.dequantize(), dtype=np.float64)


def weighted(error: np.ndarray, heed: np.ndarray) -> float:
    return float((heed * error.astype(np.float64) ** 2).sum())


def numbers_of(dtype: str) -> np.ndarray:
    """What a scale of 1 can express."""
    if dtype == "nf4":
        return NF4
    if dtype == "fp4":
        codes = np.arange(16, dtype=np.uint8)
        return np.unique(from_codes(codes, FLOAT_FORMATS["fp4_e2m1"]))
    bits = int(dtype[-1])
    return np.arange(-(2 ** (bits - 1)), 2 ** (bits - 1), dtype=np.float64)


def least(group: np.ndarray, heed: np.ndarray, numbers: np.ndarray) -> float:
    """The least weighted error of a group over a thousand scales, each number to its nearest."""
    largest = np.abs(group).max() / np.abs(numbers).max()
    best = np.inf
    for scale in largest * np.linspace(0.3, 2.2, 1000):
        near = np.abs(group[:, None] / scale - numbers).argmin(1)
        best = min(best, weighted(group - scale * numbers[near], heed))
    return best


@each_kind
@pytest.mark.parametrize("dtype", ["int2", "int3", "int4", "nf4", "fp4"])
def test_near_the_best_of_all_scales(dtype: str, make: Any) -> None:
    weight, squares = weight_and_squares()
    spec = QuantSpec(dtype=dtype, granularity="group:32")
    error = found_by(make(weight), spec, make(squares)) - weight
    mine, best = 0.0, 0.0
    for start in (0, 32, 64):  # the last group has six features
        part = slice(start, start + 32)
        heed = squares[part].astype(np.float64)
        for row, group in enumerate(weight[:, part].astype(np.float64)):
            mine += weighted(error[row, part], heed)
            best += least(group, heed, numbers_of(dtype))
    assert mine <= 1.06 * best
    plain = plainly(weight, spec) - weight
    assert mine < 0.95 * weighted(plain, squares.astype(np.float64))


@pytest.mark.parametrize(
    "spec",
    [
        QuantSpec(dtype="uint3", symmetric=False, granularity="group:32"),
        QuantSpec(dtype="int3", granularity="tensor"),
        QuantSpec(dtype="int4", granularity="block:5x32"),
        QuantSpec(dtype="mxfp4", granularity="group:32"),
        QuantSpec(dtype="nf4", granularity="group:32", scale_dtype="uint8"),
        QuantSpec(dtype="int4", granularity="group:32", scale_dtype="float16"),
        QuantSpec(dtype="nvfp4", granularity="group:16"),
        QuantSpec(dtype="int8", granularity="channel"),
    ],
    ids=str,
)
def test_weighs_the_error_of_any_format(spec: QuantSpec) -> None:
    weight, squares = weight_and_squares()
    unweighted = RoundToNearest(RtnConfig(clip="mse"))
    rtn = np.asarray(unweighted.quantize(weight, spec, WeightContext()).dequantize())
    mine = weighted(found_by(weight, spec, squares) - weight, squares)
    assert mine <= weighted(rtn - weight, squares) * 1.0001
    assert mine <= weighted(plainly(weight, spec) - weight, squares) * 1.0001


def test_squares_of_gradients_weigh_single_elements() -> None:
    """Each row has an importance of its own: what inputs cannot say."""
    weight, _ = weight_and_squares()
    spec = QuantSpec(dtype="int3", granularity="channel")
    squares = np.random.default_rng(1).uniform(0, 1, weight.shape) ** 6
    squares = squares.astype(np.float32)
    error = found_by(weight, spec, squares, importance="gradients") - weight
    by_column = found_by(weight, spec, squares.mean(0)) - weight
    assert weighted(error, squares) < 0.97 * weighted(by_column, squares)
    best = sum(
        least(w.astype(np.float64), h.astype(np.float64), numbers_of("int3"))
        for w, h in zip(weight, squares, strict=True)
    )
    assert weighted(error, squares) <= 1.06 * best


@each_kind
def test_size_is_kept_where_errors_are_weighed(make: Any) -> None:
    weight, squares = weight_and_squares()
    spec = QuantSpec(dtype="int2", granularity="group:32")
    kept = found_by(make(weight), spec, make(squares), keep_size=True)
    wanted = (squares * weight.astype(np.float64) ** 2).sum(1)
    np.testing.assert_allclose((squares * weight * kept).sum(1), wanted, rtol=1e-4)
    shrunk = found_by(make(weight), spec, make(squares))
    assert ((squares * weight * shrunk).sum(1) < 0.99 * wanted).all()


def test_edges() -> None:
    spec = QuantSpec(dtype="int4", granularity="group:32")
    # Inputs that never fired, everywhere: any scale serves, and nothing is divided by zero.
    weight, squares = weight_and_squares()
    dead = found_by(weight, spec, 0 * squares)
    assert np.abs(dead - weight).max() <= np.abs(weight).max() / 7
    # Tiny squares do not vanish in float32.
    tiny = found_by(weight, spec, squares * np.float32(1e-30))
    np.testing.assert_allclose(tiny, found_by(weight, spec, squares), rtol=1e-3)
    # One row, one feature: a single number is met exactly.
    one = np.asarray([[0.37]], np.float32)
    assert found_by(one, spec, np.ones(1, np.float32)) == pytest.approx(one, rel=1e-6)
    half = found_by(weight.astype(np.float16), spec, squares)
    assert weighted(half - weight, squares) <= 1.01 * weighted(
        found_by(weight, spec, squares) - weight, squares
    )
    for importance in ("inputs", "gradients"):
        with pytest.raises(SchemeError, match="give calibration data"):
            found_by(weight, spec, None, importance=importance)


def test_a_setting_says_what_is_observed() -> None:
    for importance, need in (
        ("inputs", "channel_square"),
        ("gradients", "gradient_square"),
    ):
        config = ImportanceConfig(importance=importance)  # type: ignore[arg-type]
        assert config.needs(frozenset()) == {need}
