"""Each calibrator against its formula in plain NumPy, over the values themselves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from octavo.core.calibration.calibrators import octavo_calibrators
from octavo.core.calibration.calibrators.bins import Histogram
from octavo.core.calibration.calibrators.histogram import quantile
from octavo.core.errors import DataError
from octavo.core.numerics.channels import ChannelMap
from octavo.core.values.scheme import QuantSpec

INT8, INT4 = QuantSpec(dtype="int8"), QuantSpec(dtype="int4")
UINT8 = QuantSpec(dtype="uint8", symmetric=False)
UINT4 = QuantSpec(dtype="uint4", symmetric=False)
FP8 = QuantSpec(dtype="fp8_e4m3fn")
PARTS = {part.name: part for part in octavo_calibrators()}


def build(kind: str, axis: int | None = None, **options: Any) -> Any:
    part = PARTS[kind]
    return part.build(part.config(kind=kind, **options), axis=axis)


def calibrated(kind: str, *batches: np.ndarray, **options: Any) -> Any:
    made = build(kind, **options)
    for batch in batches:
        made.update(batch)
    return made


def ends(made: Any, spec: QuantSpec = INT8) -> tuple[float, float]:
    low, high = made.range(spec)
    return float(low), float(high)


def skewed(count: int = 20_000) -> np.ndarray:
    """Heavy to the right, short to the left."""
    random = np.random.default_rng(0)
    x = random.gumbel(size=count) * 2
    return x.astype(np.float32)


# Extremes and their averages


def test_minmax_holds_all_values() -> None:
    first, second = np.float32([[1, -3], [2, 5]]), np.float32([[-4, 0], [1, 9]])
    assert ends(calibrated("minmax", first, second)) == (-4, 9)
    low, high = calibrated("minmax", first, second, axis=1).range(INT8)
    np.testing.assert_array_equal((low, high), [[-4, -3], [2, 9]])
    low, high = calibrated("minmax", first, second, axis=-2).range(INT8)
    np.testing.assert_array_equal((low, high), [[-4, 1], [1, 9]])


def test_minmax_of_changed_channels() -> None:
    x = np.float32([[1, -3], [2, 5]])
    seen = calibrated("minmax", x, axis=-1)
    scale, shift = np.float32([2, 4]), np.float32([1, -1])
    changed = seen.rescaled(ChannelMap(scale, shift))
    np.testing.assert_allclose(changed.range(INT8), [[0, -0.5], [0.5, 1.5]])
    assert ends(changed.whole()) == (-0.5, 1.5)
    assert changed.whole().axis is None
    np.testing.assert_array_equal(seen.range(INT8), [[1, -3], [2, 5]])
    assert build("minmax", axis=-1).rescaled(ChannelMap(scale)) is None
    assert calibrated("minmax", x).rescaled(ChannelMap(scale)) is None
    assert seen.rescaled(ChannelMap(scale, rotation=0)) is None
    assert build("minmax", axis=-1).whole().low is None
    with pytest.raises(DataError, match="before it saw data"):
        build("minmax").range(INT8)


@pytest.mark.parametrize("momentum", [0.1, 0.75])
def test_a_moving_average_by_its_recursion(momentum: float) -> None:
    """Jacob et al. 2018: a <- (1 - c) a + c b, starting from the first batch."""
    batches = [np.float32([-i, 3 * i + 1]) for i in (1, 4, 2)]
    low, high = -1.0, 4.0
    for i in (4, 2):
        low = (1 - momentum) * low + momentum * -i
        high = (1 - momentum) * high + momentum * (3 * i + 1)
    made = calibrated("moving_average", *batches, momentum=momentum)
    assert ends(made) == pytest.approx((low, high))
    # Workers are weighed by their numbers of batches.
    one, other = (
        calibrated("moving_average", *some, momentum=momentum)
        for some in (batches[:1], batches[1:])
    )
    (a, b), (c, d) = ends(one), ends(other)
    one.merge(other)
    assert ends(one) == pytest.approx(((a + 2 * c) / 3, (b + 2 * d) / 3))
    assert one.batches == 3
    one.merge(build("moving_average"))
    assert one.batches == 3
    empty = build("moving_average", momentum=momentum)
    empty.merge(one)
    assert (ends(empty), empty.batches) == (ends(one), 3)
    empty.update(np.float32([0, 0]))
    assert ends(empty)[1] == pytest.approx((1 - momentum) * ends(one)[1])
    assert empty.batches == 4


# What is read off a distribution


@pytest.mark.parametrize("percentile", [99.0, 80.0])
def test_percentiles_by_numpys(percentile: float) -> None:
    x = skewed()
    expected = np.percentile(x, [50 - percentile / 2, 50 + percentile / 2])
    made = calibrated("percentile", x[:7000], x[7000:], percentile=percentile)
    assert ends(made) == pytest.approx(tuple(expected), abs=0.02)
    everything = calibrated("percentile", x, percentile=100.0)
    assert ends(everything) == pytest.approx((x.min(), x.max()), abs=0.02)


@pytest.mark.parametrize("fence", [1.5, 3.0])
def test_tukeys_fences_by_numpys_quartiles(fence: float) -> None:
    x = skewed()
    x[:40] = 500
    x[40:50] = -300
    first, third = np.percentile(x, [25, 75])
    expected = first - fence * (third - first), third + fence * (third - first)
    # Outliers make the bins 0.25 wide.
    found = ends(calibrated("outlier_free", x, fence=fence))
    assert found == pytest.approx(
        (max(expected[0], x.min()), expected[1]), abs=0.3 * fence
    )
    # Where the middle half is constant, everything is kept.
    still = np.zeros(1000, np.float32)
    still[:9] = np.arange(-4, 5)
    assert ends(calibrated("outlier_free", still)) == (-4, 4)


def squared_error(x: np.ndarray, low: float, high: float, spec: QuantSpec) -> float:
    """Rounding to a grid, written from its definition."""
    if spec.symmetric:
        bound = 2 ** (spec.bits - 1) - 1
        step = max(abs(low), abs(high)) / bound
        rounded = np.clip(np.round(x / step), -bound, bound) * step
    else:
        low, high, codes = min(low, 0.0), max(high, 0.0), 2**spec.bits - 1
        step = (high - low) / codes
        zero = np.round(-low / step)
        rounded = (np.clip(np.round(x / step) + zero, 0, codes) - zero) * step
    return float(((rounded - x) ** 2).mean())


@pytest.mark.parametrize("spec", [INT4, UINT4], ids=str)
def test_the_shrunk_range_of_least_squared_error(spec: QuantSpec) -> None:
    """Both ends shrink alike, by a hundred shares from 1 to 0.1."""
    x = skewed()
    made = ends(calibrated("mse", x), spec)
    errors = {
        share: squared_error(x, share * x.min(), share * x.max(), spec)
        for share in np.linspace(1, 0.1, 100)
    }
    assert squared_error(x, *made, spec) <= 1.005 * min(errors.values())
    share = made[1] / x.max()
    assert share == pytest.approx(made[0] / x.min(), rel=1e-5)
    assert min(abs(share - tried) for tried in errors) < 1e-5
    assert share < 0.9


def test_the_histogram_moves_each_end_by_itself() -> None:
    # Nothing to cut at the left end, a long tail at the right.
    random = np.random.default_rng(0)
    left, right = random.uniform(-6, 0, 10_000), random.exponential(2, 10_000)
    x = np.concatenate([left, right]).astype(np.float32)
    low, high = ends(calibrated("histogram", x), UINT4)
    shares = np.linspace(1, 0.05, 40)
    best = min(
        squared_error(x, a * x.min(), b * x.max(), UINT4)
        for a in shares
        for b in shares
    )
    assert squared_error(x, low, high, UINT4) <= 1.01 * best
    assert low / x.min() > 1.3 * high / x.max()
    # On a symmetric grid there is one end to move.
    low, high = ends(calibrated("histogram", x), INT4)
    assert squared_error(x, low, high, INT4) <= 1.005 * min(
        squared_error(x, share * x.min(), share * x.max(), INT4)
        for share in np.linspace(1, 0.05, 96)
    )


# Entropy


def divergence(sizes: np.ndarray, threshold: int, levels: int) -> float:
    """Migacz 2017, slides 36 to 39, in loops."""
    p = [float(size) for size in sizes[:threshold]]
    inside = list(p)
    p[-1] += float(sizes[threshold:].sum())
    q = [0.0] * threshold
    for level in range(levels):
        bins = [i for i in range(threshold) if i * levels // threshold == level]
        filled = [i for i in bins if inside[i] > 0]
        for i in filled:
            q[i] = sum(inside[j] for j in bins) / len(filled)
    total_p, total_q = sum(p), max(sum(q), 1.0)
    return sum(
        a / total_p * np.log(a / total_p / max(b / total_q, 1e-12))
        for a, b in zip(p, q, strict=True)
        if a
    )


@pytest.mark.parametrize(
    ("sign", "spec", "levels"),
    [
        (0, INT4, 7),
        (0, UINT4, 8),
        (1, UINT4, 16),
        (-1, UINT4, 16),
        (1, INT4, 7),
        (0, FP8, 127),
    ],
    ids=str,
)
def test_entropy_takes_the_threshold_of_least_divergence(
    sign: int, spec: QuantSpec, levels: int
) -> None:
    x = np.random.default_rng(0).standard_t(3, size=4000).astype(np.float32)
    if sign:
        x = sign * np.abs(x)
    made = build("entropy")
    made.histogram = Histogram(512)
    made.update(x)
    width = 2.0**made.histogram.width
    sizes = np.bincount(np.floor(np.abs(x) / width).astype(int))
    if sign < 0 or not sign:
        # Bins below zero hold their upper end, those above their lower.
        below = np.ceil(-x[x < 0] / width).astype(int) - 1
        above = np.floor(x[x >= 0] / width).astype(int)
        sizes = np.bincount(np.concatenate([below, above]))
    tried = np.unique(np.linspace(levels, len(sizes), 128).astype(int))
    costs = [divergence(sizes, int(t), levels) for t in tried]
    end = float(tried[int(np.argmin(costs))] * width)
    expected = max(float(x.min()), -end), min(float(x.max()), end)
    assert ends(made, spec) == pytest.approx(expected, rel=1e-6)


def test_few_values_are_kept_as_they_are() -> None:
    made = build("entropy")
    made.histogram = Histogram(512)
    made.update(np.float32([-1, -0.5, 0.25, 1]))
    # They lie in the two bins next to zero, and int8 has more levels than that.
    made.histogram.counts[:] = 0
    made.histogram.counts[0, 255:258] = 1
    assert ends(made) == (-1, 1)


# The histogram itself


def test_bins_have_widths_of_powers_of_two_around_zero() -> None:
    histogram = Histogram(8)
    histogram.update(np.float32([0.5, 1.0, 1.5, -0.25]))
    # The largest lies in [1, 2): four bins a side, of 0.5 each.
    assert histogram.width == -1
    np.testing.assert_array_equal(histogram.edges(), np.arange(-4, 5) / 2)
    np.testing.assert_array_equal(histogram.centres(), np.arange(-4, 4) / 2 + 0.25)
    np.testing.assert_array_equal(histogram.counts, [[0, 0, 0, 1, 0, 1, 1, 1]])
    histogram.update(np.float32([3.0, -4.0]))
    # Four bins a side of 2, for four lies at the end of those of 1: pairs around zero merge.
    assert histogram.width == 1
    np.testing.assert_array_equal(histogram.counts, [[0, 0, 1, 1, 3, 1, 0, 0]])
    assert (histogram.low[0], histogram.high[0]) == (-4, 3)


def test_channels_have_histograms_of_their_own() -> None:
    histogram = Histogram(8, axis=1)
    histogram.update(np.float32([[0.5, -1.5], [1.0, 0.0]]))
    expected = [[0, 0, 0, 0, 0, 1, 1, 0], [0, 1, 0, 0, 1, 0, 0, 0]]
    np.testing.assert_array_equal(histogram.counts, expected)
    np.testing.assert_array_equal(histogram.low, [0.5, -1.5])
    np.testing.assert_array_equal(histogram.high, [1.0, 0.0])


def test_tiny_and_zero_values_are_counted() -> None:
    histogram = Histogram(8)
    histogram.update(np.zeros(3, np.float32))
    assert histogram.counts.sum() == histogram.counts[0, 4] == 3
    histogram.update(np.float32([1e-44, -1e-45]))
    assert histogram.counts.sum() == 5
    histogram.update(np.float32([2.0**100]))
    # Negative tiny values fall into the bin below zero; of the smallest widths there is none.
    assert histogram.counts.sum() == 6
    assert histogram.counts[0, -2:].sum() == 1


def test_quantiles_are_linear_within_a_bin() -> None:
    counts, edges = np.asarray([0, 2, 0, 6, 2]), np.arange(6.0)
    for share, expected in ((0.1, 1.5), (0.2, 2.0), (0.5, 3.5), (0.8, 4.0), (1.0, 5.0)):
        assert quantile(counts, edges, share) == pytest.approx(expected)
    # The first value lies in the first bin that holds any.
    assert quantile(counts, edges, 0.0) == 1.0
    assert quantile(counts, edges, 1.1) == 5.0
