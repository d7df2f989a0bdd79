"""Calibrators: known distributions, independence of order and batches, bounded memory, both
namespaces."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from array_api_compat import is_torch_array
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.core.calibration.calibrators import octavo_calibrators
from octavo.core.calibration.calibrators.bins import Histogram
from octavo.core.calibration.calibrators.entropy import divergence
from octavo.core.calibration.features import FEATURE_OBSERVERS
from octavo.core.contract.calibrator import Calibrator
from octavo.core.contract.parts import Part
from octavo.core.errors import DataError
from octavo.core.numerics.affine import affine_params, dequantize, quantize
from octavo.core.numerics.channels import ChannelMap
from octavo.core.numerics.rows import Rows
from octavo.core.values.scheme import QuantSpec
from tests.arrays import MAKERS, each_kind

PARTS: dict[str, Part[Any]] = {p.name: p for p in octavo_calibrators()}
INT8, UINT8, INT4 = (
    QuantSpec(dtype="int8"),
    QuantSpec(dtype="uint8", symmetric=False),
    QuantSpec(dtype="int4"),
)


def build(name: str, axis: int | None = None, **options: Any) -> Calibrator:
    part = PARTS[name]
    calibrator: Calibrator = part.build(part.config(kind=name, **options), axis=axis)
    return calibrator


def batches(seed: int = 0) -> list[np.ndarray]:
    """Heavy tails, scales that change from batch to batch, and lengths that do."""
    random = np.random.default_rng(seed)
    return [
        (random.standard_t(3, size=(4 + i, 30 + 7 * i, 8)) * s).astype(np.float32)
        for i, s in enumerate((0.01, 1.0, 2.0, 0.5))
    ]


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("axis", [None, -1])
@pytest.mark.parametrize("spec", [INT8, UINT8, INT4], ids=str)
def test_order_batches_workers_and_namespace_do_not_matter(
    name: str, axis: int | None, spec: QuantSpec
) -> None:
    if name == "token" and axis is not None:
        with pytest.raises(DataError, match="whole tensor"):
            build(name, axis)
        return
    whole, first, second = (build(name, axis) for _ in range(3))
    by_kind = {kind: build(name, axis) for kind in MAKERS}
    for x in batches():
        whole.update(x)
        for kind, make in MAKERS.items():
            by_kind[kind].update(make(x))
    for x in batches()[:2]:
        first.update(x)
    for x in batches()[2:][::-1]:
        second.update(x)
    second.merge(first)
    low, high = whole.range(spec)
    assert np.shape(low) == (() if axis is None else (8,))
    assert low.dtype == np.float32
    for kind, other in by_kind.items():
        for a, b in zip((low, high), other.range(spec), strict=True):
            assert is_torch_array(b) == (kind == "torch")
            np.testing.assert_allclose(a, np.asarray(b), rtol=1e-6)
    seen = np.concatenate([x.reshape(-1, 8) for x in batches()])
    assert (low >= seen.min(None if axis is None else 0)).all()
    assert (high <= seen.max(None if axis is None else 0)).all()
    if name != "moving_average":
        np.testing.assert_array_equal((low, high), second.range(spec))


@pytest.mark.parametrize("name", PARTS)
def test_memory_does_not_grow(name: str) -> None:
    calibrator = build(name)
    sizes = []
    for i in range(30):
        calibrator.update(
            np.random.default_rng(i).normal(size=(50, 20)).astype(np.float32)
        )
        sizes.append(len(pickle.dumps(calibrator)))
    assert sizes[-1] <= sizes[1] + 64


@pytest.mark.parametrize("name", PARTS)
def test_asking_before_data_and_empty_batches(name: str) -> None:
    calibrator = build(name)
    calibrator.update(np.zeros((0, 4), np.float32))
    with pytest.raises(DataError, match="before it saw data"):
        calibrator.range(INT8)


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("value", [0.0, 3.0, -2.0])
def test_constant_values(name: str, value: float) -> None:
    calibrator = build(name)
    calibrator.update(np.full((3, 5), value, np.float32))
    low, high = calibrator.range(UINT8)
    assert low <= high
    assert min(value, 0) <= low
    assert high <= max(value, 0)


@given(
    st.lists(
        st.lists(
            st.floats(-(2.0**40), 2.0**40, width=32).filter(
                lambda v: v == 0 or abs(v) > 2.0**-40
            ),
            min_size=1,
            max_size=8,
        ),
        min_size=1,
        max_size=5,
    ),
    st.randoms(),
)
@settings(max_examples=50, deadline=None)
def test_histograms_do_not_depend_on_order(
    parts: list[list[float]], random: Any
) -> None:
    one, other = Histogram(64), Histogram(64)
    for part in parts:
        one.update(np.asarray(part, np.float32))
    values = [v for part in parts for v in part]
    random.shuffle(values)
    for v in values:
        other.update(np.asarray([v], np.float32))
    assert one.width == other.width
    np.testing.assert_array_equal(one.counts, other.counts)
    assert one.counts.sum() == len(values)
    edges = one.edges()
    expected, _ = np.histogram(
        np.asarray(values, np.float32).astype(float), np.append(edges[:-1], edges[-1])
    )
    if max(map(abs, values)) > 0:
        np.testing.assert_array_equal(one.counts[0], expected)


def test_percentile_of_known_values() -> None:
    calibrator = build("percentile", percentile=90.0)
    calibrator.update(np.linspace(-1, 1, 200_001, dtype=np.float32))
    low, high = calibrator.range(INT8)
    assert (float(low), float(high)) == (
        pytest.approx(-0.9, abs=1e-3),
        pytest.approx(0.9, abs=1e-3),
    )


def test_outliers_are_left_out() -> None:
    x = np.random.default_rng(0).normal(size=100_000).astype(np.float32)
    x[:10] = 1000.0
    calibrator = build("outlier_free")
    calibrator.update(x)
    low, high = calibrator.range(INT8)
    # Quartiles of a normal distribution are +-0.674; fences 0.674 + 3 * 1.349 = 4.72. The bins are
    # 0.5 wide here.
    assert float(high) == pytest.approx(4.72, abs=0.7)
    assert float(low) == pytest.approx(max(-4.72, x.min()), abs=0.7)


def test_token_quantile_clips_outlier_tokens() -> None:
    x = np.random.default_rng(0).uniform(-1, 1, size=(100, 64)).astype(np.float32)
    x[7] *= 50
    calibrator = build("token", quantile=0.98)
    calibrator.update(x)
    low, high = calibrator.range(INT8)
    assert -2 < float(low) < -0.8
    assert 0.8 < float(high) < 2


@pytest.mark.parametrize("name", ["mse", "histogram"])
@pytest.mark.parametrize(
    "spec", [INT4, QuantSpec(dtype="uint4", symmetric=False)], ids=str
)
def test_least_error_is_near_the_best_clip(name: str, spec: QuantSpec) -> None:
    """A brute-force search over the values themselves is the reference."""
    x = np.random.default_rng(0).laplace(size=40_000).astype(np.float32)

    def error(low: float, high: float) -> float:
        params = affine_params(np.float32(low), np.float32(high), spec)
        return float(((dequantize(quantize(x, params), params) - x) ** 2).mean())

    calibrator = build(name)
    calibrator.update(x)
    found = error(*(float(end) for end in calibrator.range(spec)))
    best = min(error(x.min() * r, x.max() * r) for r in np.linspace(0.1, 1, 200))
    assert found <= best * 1.02
    assert found < 0.6 * error(x.min(), x.max())


def test_divergence_by_the_definition() -> None:
    """Migacz's procedure written out in loops."""
    sizes = np.random.default_rng(0).integers(0, 50, 24)
    for threshold in (8, 12, 24):
        p = sizes[:threshold].astype(float)
        p[-1] += sizes[threshold:].sum()
        q = np.zeros(threshold)
        for level in range(4):
            bins = [i for i in range(threshold) if i * 4 // threshold == level]
            filled = [i for i in bins if sizes[i]]
            for i in filled:
                q[i] = sizes[bins].sum() / len(filled)
        p, q = p / p.sum(), q / q.sum()
        expected = sum(
            a * np.log(a / max(b, 1e-12)) for a, b in zip(p, q, strict=True) if a
        )
        assert divergence(sizes, threshold, 4) == pytest.approx(expected)


def test_entropy_cuts_long_tails() -> None:
    x = np.random.default_rng(0).standard_t(2, size=200_000).astype(np.float32)
    calibrator = build("entropy")
    calibrator.update(x)
    low, high = calibrator.range(INT8)
    assert -float(low) == float(high)
    assert float(high) < 0.2 * np.abs(x).max()
    assert (np.abs(x) < float(high)).mean() > 0.99


@each_kind
def test_features_and_their_rescaling(make: Any) -> None:
    rows = Rows((3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 2)
    random = np.random.default_rng(0)
    xs = [random.normal(size=(n, 4, 6, 6)).astype(np.float32) for n in (3, 2)]
    factors = random.uniform(0.5, 2, 4).astype(np.float32)
    patches = np.concatenate([chunk for x in xs for chunk in rows.chunks(x)], 1)
    expected = {
        "gram": np.swapaxes(patches, 1, 2) @ patches,
        "channel_range": np.abs(patches).max(1),
        "channel_mean": patches.sum(1),
        "channel_square": (patches**2).sum(1),
    }
    for name, observer in FEATURE_OBSERVERS.items():
        one, other, scaled = observer(rows), observer(rows), observer(rows)
        one.update(make(xs[0]))
        other.update(make(xs[1]))
        one.merge(other)
        assert one.count == patches.shape[1]
        np.testing.assert_allclose(
            np.asarray(one.value), expected[name], rtol=1e-4, atol=1e-3
        )
        for x in xs:
            scaled.update(make(x / factors[None, :, None, None]))
        derived = one.rescaled(ChannelMap(make(factors)))
        assert derived is not None
        np.testing.assert_allclose(
            np.asarray(derived.value), np.asarray(scaled.value), rtol=1e-4, atol=1e-3
        )
