"""What calibrators do at their edges: bins, merges, signs, dtypes, and the steps of the descent."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from octavo.core.calibration.calibrators.bins import Histogram, _host
from octavo.core.calibration.calibrators.entropy import Entropy, EntropyConfig
from octavo.core.calibration.calibrators.entropy import divergence as kl
from octavo.core.calibration.calibrators.histogram import (
    HistogramConfig,
    L2Histogram,
    OutlierFree,
    OutlierFreeConfig,
    Percentile,
    PercentileConfig,
    best_range,
    quantile,
)
from octavo.core.calibration.calibrators.minmax import MinMax, MinMaxConfig
from octavo.core.calibration.calibrators.tokens import (
    OutputLoss,
    TokenConfig,
    TokenQuantile,
    TokenSample,
)
from octavo.core.errors import DataError
from octavo.core.values.scheme import QuantSpec

INT8, INT4 = QuantSpec(dtype="int8"), QuantSpec(dtype="int4")
UINT8 = QuantSpec(dtype="uint8", symmetric=False)
UINT4 = QuantSpec(dtype="uint4", symmetric=False)
NO_DATA = (
    "a calibrator was asked for a range before it saw data; give calibration batches"
)


# Histograms


def test_values_are_counted_as_float32() -> None:
    histogram = Histogram(8)
    # In float32 the first is one: the second bin of [0.5, 1) and [1, 1.5).
    histogram.update(np.float64([1 - 1e-12, 1.6]))
    np.testing.assert_array_equal(histogram.counts[0, 4:], [0, 0, 1, 1])


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_channels_of_an_array_of_three_axes(axis: int) -> None:
    x = np.random.default_rng(0).normal(size=(2, 3, 5)).astype(np.float32)
    x[0, 0, 0] = 3
    torch = pytest.importorskip("torch")
    histogram = Histogram(16, axis)
    histogram.update(torch.from_numpy(x))
    channels = np.moveaxis(x, axis, 0)
    assert histogram.counts.shape == (len(channels), 16)
    for channel, counts in zip(channels, histogram.counts, strict=True):
        places = np.floor(channel / 2.0**histogram.width).astype(int) + 8
        np.testing.assert_array_equal(counts, np.bincount(places.ravel(), minlength=16))


def test_the_smallest_width_that_is_told_apart() -> None:
    told, not_told = Histogram(8), Histogram(8)
    told.update(np.float32([2.0**-124, -(2.0**-125)]))
    assert told.width == -125
    np.testing.assert_array_equal(told.counts, [[0, 0, 0, 1, 0, 0, 1, 0]])
    not_told.update(np.float32([2.0**-125, -(2.0**-126)]))
    assert not_told.width == -126
    np.testing.assert_array_equal(not_told.counts, [[0, 0, 0, 0, 2, 0, 0, 0]])


def test_bins_merge_by_pairs_when_the_width_doubles() -> None:
    histogram = Histogram(8)
    histogram.update(np.float32([0.5, 1.0, 1.5, -0.25, -1.5]))
    np.testing.assert_array_equal(histogram.counts, [[0, 1, 0, 1, 0, 1, 1, 1]])
    histogram.update(np.float32([2.5]))
    assert histogram.width == 0
    np.testing.assert_array_equal(histogram.counts, [[0, 0, 1, 1, 1, 2, 1, 0]])


def test_what_lies_elsewhere_is_brought_here() -> None:
    class Elsewhere:
        def cpu(self) -> np.ndarray:
            return np.arange(3)

    np.testing.assert_array_equal(_host(Elsewhere()), np.arange(3))


def test_channels_have_ranges_of_their_own() -> None:
    made = Percentile(PercentileConfig(percentile=100), axis=1)
    made.update(np.float32([[1, -2, 0], [3, 8, 0]]))
    assert made.axis == 1 and made.histogram.axis == 1
    assert made.histogram.bins == 512
    assert Percentile(PercentileConfig()).histogram.bins == 4096
    low, high = made.range(INT8)
    np.testing.assert_allclose(low, [1, -2, 0], atol=0.05)
    np.testing.assert_allclose(high, [3, 8, 0], atol=0.05)


def test_quartiles_of_one_bin_keep_everything() -> None:
    made = OutlierFree(OutlierFreeConfig(fence=1.0))
    made.histogram = Histogram(64)
    # Bins of an eighth.
    made.histogram.width = -3
    counts = np.zeros(64, np.int64)
    counts[50] = 100
    assert made.choose(counts, -4.0, 4.0, INT8) == (-4, 4)
    # The quartiles in two bins that lie side by side: 18.5 and 19.5 eighths.
    counts[50:52] = 50
    expected = (17.5 / 8, 20.5 / 8)
    assert made.choose(counts, -4.0, 4.0, INT8) == pytest.approx(expected)


def test_merging_equals_counting_together() -> None:
    random = np.random.default_rng(0)
    wide, narrow = 100 * random.normal(size=200), random.normal(size=300) / 50
    for first, second in ((wide, narrow), (narrow, wide)):
        together, one, other = Histogram(64), Histogram(64), Histogram(64)
        together.update(np.concatenate([first, second]).astype(np.float32))
        one.update(first.astype(np.float32))
        other.update(second.astype(np.float32))
        one.merge(other)
        assert one.width == together.width
        np.testing.assert_array_equal(one.counts, together.counts)
        assert (one.low, one.high) == (together.low, together.high)


def test_what_saw_nothing_takes_the_others_place() -> None:
    torch = pytest.importorskip("torch")
    empty, full = (Percentile(PercentileConfig()) for _ in range(2))
    full.update(torch.linspace(-1, 1, 101))
    empty.merge(full)
    low, high = empty.range(INT8)
    assert isinstance(low, torch.Tensor) and low.dtype == torch.float32
    assert float(high) == pytest.approx(1, abs=0.02)
    # What saw data keeps its own place.
    array = Percentile(PercentileConfig())
    array.update(np.float32([0, 4]))
    array.merge(full)
    assert isinstance(array.range(INT8)[0], np.ndarray | np.generic)


def test_quantiles_at_the_ends() -> None:
    counts, edges = np.asarray([3, 0, 1]), np.arange(4.0)
    # Nothing lies below the first value; a share that a bin ends at is that bin's end.
    assert quantile(counts, edges, 0.0) == 0.0
    assert quantile(counts, edges, 0.25) == pytest.approx(1 / 3)
    assert quantile(counts, edges, 0.75) == 1.0
    assert quantile(counts, edges, 1.0) == 3.0
    # An empty first bin has no share of its own: its end is where the values begin.
    assert quantile(np.asarray([0, 4]), np.arange(3.0), 0.0) == 1.0


def test_an_end_of_an_l2_histogram_is_one_of_96_shares() -> None:
    """From all of what was seen down to a twentieth, at equal distances."""
    random = np.random.default_rng(1)
    x = np.concatenate([random.normal(size=3000), [-31.0, 47.0]]).astype(np.float32)
    made = L2Histogram(HistogramConfig())
    made.update(x)
    low, high = (float(end) for end in made.range(UINT4))
    shares = np.linspace(1, 0.05, 96)
    for end, most in ((low, -31.0), (high, 47.0)):
        assert np.abs(shares - end / most).min() < 1e-6
    # The least error of all pairs of shares that turns from the best common one on reach.
    counts, centres = made.histogram.counts[0], made.histogram.centres()
    ends = best_range(counts, centres, -31 * shares, 47 * shares, UINT4)
    for _ in range(2):
        ends = best_range(counts, centres, np.full(96, ends[0]), 47 * shares, UINT4)
        ends = best_range(counts, centres, -31 * shares, np.full(96, ends[1]), UINT4)
    assert (low, high) == pytest.approx(ends, rel=1e-6)
    # A symmetric grid knows one end: both are shrunk alike.
    low, high = (float(end) for end in made.range(INT4))
    assert low / -31 == pytest.approx(high / 47, rel=1e-6)


def test_a_range_is_within_what_was_seen_at_float32() -> None:
    low, high = best_range(
        np.asarray([5, 0, 1]),
        np.asarray([-1.0, 0.0, 1.0]),
        np.asarray([-1.0, -0.1]),
        np.asarray([1.0, 0.1]),
        INT8,
    )
    assert (low, high) == (-1, 1) and isinstance(low, float)


def test_extremes_are_float32_and_nothing_seen_is_said() -> None:
    made = MinMax(MinMaxConfig())
    assert made.low is None and made.high is None
    with pytest.raises(DataError) as raised:
        made.range(INT8)
    assert str(raised.value) == NO_DATA
    made.update(np.float64([-1, 2]))
    low, high = made.range(INT8)
    assert low.dtype == high.dtype == np.float32
    with pytest.raises(DataError) as raised:
        Percentile(PercentileConfig()).range(INT8)
    assert str(raised.value) == NO_DATA


# Entropy


def entropy_of(x: np.ndarray, spec: QuantSpec) -> tuple[float, float]:
    made = Entropy(EntropyConfig())
    made.histogram = Histogram(512)
    made.update(x.astype(np.float32))
    low, high = made.range(spec)
    return float(low), float(high)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(("zeros", "size"), [(0, 8), (0, 800), (40, 800)])
def test_one_sided_values_have_all_codes_of_their_side(
    sign: int, zeros: int, size: int
) -> None:
    """Zeros among them make no second side."""
    random = np.random.default_rng(0)
    x = sign * np.abs(random.standard_t(3, size=4000)) / size
    x[:zeros] = 0
    low, high = entropy_of(x, UINT4)
    width = np.abs(x).max() / 256
    width = 2.0 ** np.ceil(np.log2(width * (1 + 1e-9)))
    if sign > 0:
        sizes = np.bincount(np.floor(x / width).astype(int))
    else:
        # Bins below zero hold their upper end, and zeros lie above it.
        sizes = np.bincount(np.ceil(-x[x < 0] / width).astype(int) - 1)
    tried = np.unique(np.linspace(16, len(sizes), 128).astype(int))
    costs = [kl(sizes, int(t), 16) for t in tried]
    end = tried[int(np.argmin(costs))] * width
    far, near = (high, low) if sign > 0 else (-low, -high)
    assert far == pytest.approx(min(end, np.abs(x).max()), rel=1e-6)
    assert near == pytest.approx(0, abs=1e-2)


def test_as_many_bins_as_codes_need_no_search() -> None:
    # Signed int4: seven codes a side. Seven bins are kept, of eight the last may be cut.
    made = Entropy(EntropyConfig())
    made.histogram = Histogram(16)
    made.update(np.float32([-3.4, 3.4]))
    counts = np.zeros(16, np.int64)
    counts[8:15] = [50, 1, 1, 1, 1, 1, 1]
    assert made.choose(counts, -3.9, 3.9, INT4) == (-3.9, 3.9)
    counts[8:15] = [50, 1, 1, 1, 1, 1, 0]
    assert made.choose(counts, -3.9, 3.9, INT4) == (-3.9, 3.9)
    # One more than codes: what is cut ends at a bin's end.
    counts[8:16] = [50, 1, 1, 1, 1, 1, 1, 1]
    assert made.choose(counts, -3.9, 3.9, INT4)[1] in (3.5, 3.9)


def test_divergences_by_hand() -> None:
    # Two levels over four bins; an empty bin takes nothing of its level's mass.
    sizes = np.asarray([4, 2, 0, 2])
    assert kl(sizes, 4, 2) == pytest.approx(
        4 / 8 * np.log(4 / 3) + 2 / 8 * np.log(2 / 3)
    )
    # Of a bin that holds one value alone nothing is lost.
    assert kl(np.asarray([1, 1, 1, 1]), 4, 2) == pytest.approx(0)
    # What is cut goes into the last bin of P, which Q does not know.
    p, q = np.asarray([4, 5]) / 9, np.asarray([4, 2]) / 6
    assert kl(np.asarray([4, 2, 3]), 2, 2) == pytest.approx((p * np.log(p / q)).sum())
    # All of a last level may be empty.
    p = np.asarray([1, 0, 0, 3]) / 4
    found = kl(np.asarray([1, 0, 0, 0, 3]), 4, 4)
    assert found == pytest.approx(1 / 4 * np.log(1 / 4) + 3 / 4 * np.log(3 / 4 / 1e-12))


# Tokens


def test_a_token_calibrator_has_no_channels() -> None:
    with pytest.raises(DataError) as raised:
        TokenQuantile(TokenConfig(), axis=0)
    assert str(raised.value) == (
        "the token calibrator gives one range for a whole tensor; use granularity tensor "
        "with it"
    )
    made = TokenQuantile(TokenConfig())
    assert made.axis is None
    for spec in (INT8, UINT8):
        with pytest.raises(DataError) as raised:
            made.range(spec)
        assert str(raised.value) == NO_DATA


def test_tokens_are_kept_only_where_they_are_asked_for() -> None:
    asked, not_asked = (
        TokenQuantile(TokenConfig()),
        TokenQuantile(TokenConfig(quantile=0.9)),
    )
    for made in (asked, not_asked):
        made.update(np.zeros((0, 4), np.float32))
        assert made._sample._held is None
        made.update(np.float32([[1, 2, 3, 4]]))
    assert asked._sample.tokens.shape == (1, 4)
    assert not_asked._sample._held is None


def test_values_of_one_sign_end_at_zero() -> None:
    x = np.random.default_rng(0).uniform(1, 3, size=(50, 8)).astype(np.float32)
    for sign in (1, -1):
        made = TokenQuantile(TokenConfig(iterations=0))
        made.update(sign * x)
        low, high = (sign * float(end) for end in made.range(UINT8)[::sign])
        assert low == pytest.approx(0, abs=0.01)
        assert 2.5 < high <= x.max()
        assert isinstance(made.range(UINT8)[0], np.ndarray | np.generic)
        assert made.range(UINT8)[0].dtype == np.float32


def test_tokens_are_rows_along_the_last_axis() -> None:
    x = np.random.default_rng(0).normal(size=(2, 3, 5)).astype(np.float32)
    made = TokenQuantile(TokenConfig())
    rows = x.reshape(6, 5)
    expected = np.concatenate([rows.min(1), rows.max(1)])
    np.testing.assert_array_equal(made.seen(x), expected)
    # One token, or one feature: zero is within every range.
    np.testing.assert_array_equal(made.seen(np.float32([[3, 1, 2]])), [0, 3])
    np.testing.assert_array_equal(made.seen(np.float32([[3], [-1]])), [0, -1, 3, 0])
    assert made.seen(x[:0]).shape == (0, 3, 5)


def test_a_learned_range_is_cut_to_what_was_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = TokenQuantile(TokenConfig())
    made.update(np.float32([[1, -2], [3, 0.5]]))
    monkeypatch.setattr(OutputLoss, "learned", lambda *given: (-1e9, 1e9))
    low, high = made.range(UINT8)
    assert (float(low), float(high)) == (-2, 3)


def test_a_full_sample_is_kept_whole() -> None:
    sample = TokenSample()
    sample.update(np.ones((1024, 4), np.float32))
    assert sample.tokens.shape == (1024, 4)
    sample.update(np.ones((1, 4), np.float32))
    assert sample.tokens.shape == (513, 4)


def test_of_equal_losses_the_ends_stay_as_they_were() -> None:
    loss = loss_and_tokens(INT8)
    # A symmetric grid reaches from -20 to 20: the same loss, and not what was given.
    assert loss.learned((-18.0, 20.0), loss((-18.0, 20.0)), 1) == (-18, 20)


def test_a_coarse_step_tries_the_whole_range_alone() -> None:
    made = TokenQuantile(TokenConfig(step=0.9))
    made.update(np.float32([[1, 2], [3, -4]]))
    ((low, high),) = made._coarse(UINT8)
    assert (low, high) == (pytest.approx(-4, abs=0.01), pytest.approx(3, abs=0.01))


def test_samples_take_every_nth_token_over_all_batches() -> None:
    def numbered(start: int, stop: int) -> np.ndarray:
        return np.repeat(np.arange(start, stop, dtype=np.float64)[:, None], 4, axis=1)

    sample = TokenSample()
    # Thrice as many as fit: every fourth is kept in the end.
    for start in range(0, 3072, 7):
        sample.update(numbered(start, min(start + 7, 3072)))
    assert sample.tokens.dtype == np.float32
    np.testing.assert_array_equal(sample.tokens[:, 0], np.arange(0, 3072, 4))
    wide = TokenSample()
    wide.update(np.zeros((3, 1000), np.float16))
    # 2^18 elements hold 262 tokens of a thousand.
    assert wide._held.shape == (262, 1000) and wide._held.dtype == np.float32


def test_merged_samples_count_what_both_met() -> None:
    first, second, none = TokenSample(), TokenSample(), TokenSample()
    first.update(np.ones((3, 4), np.float32))
    second.update(np.full((5, 4), np.inf, np.float32))
    first.merge(none)
    assert first._met == 3
    first.merge(second)
    assert first._met == 8 and first.tokens.shape == (8, 4)
    with np.errstate(all="raise"):
        none.merge(first)
    assert none._met == 8
    np.testing.assert_array_equal(none.tokens, first.tokens)
    assert not np.shares_memory(none._held, first._held)


def loss_and_tokens(spec: QuantSpec) -> OutputLoss:
    random = np.random.default_rng(0)
    x = random.normal(size=(60, 8)).astype(np.float32)
    x[:3] *= 9
    return OutputLoss(x, [random.normal(size=(5, 8)).astype(np.float32)], spec)


@pytest.mark.parametrize("spec", [UINT8, INT8, UINT4], ids=str)
def test_the_descent_is_torchs_adam_with_a_falling_rate(spec: QuantSpec) -> None:
    torch = pytest.importorskip("torch")
    loss = loss_and_tokens(spec)
    start = (-20.0, 20.0) if spec.symmetric else (-18.0, 20.0)
    ends = torch.tensor(start, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([ends], lr=1.0, eps=1e-30)
    best, least = start, loss(start)
    for i in range(12):
        now = float(ends[0].detach()), float(ends[1].detach())
        error, gradient = loss._with_gradient(now)
        if error < least:
            best, least = now, error
        ends.grad = torch.from_numpy(gradient.copy())
        # A hundredth of the range, falling to nothing at the end.
        adam.param_groups[0]["lr"] = 0.01 * (start[1] - start[0]) * (1 - i / 12)
        adam.step()
    assert best != start
    found = loss.learned(start, loss(start), 12)
    assert found == pytest.approx(best, rel=1e-6)


def test_a_learned_range_holds_zero() -> None:
    spec = QuantSpec(dtype="uint2", symmetric=False)
    x = np.random.default_rng(0).uniform(5, 6, size=(40, 4)).astype(np.float32)
    loss = OutputLoss(x, [], spec)
    low, high = loss.learned((-0.5, 6.0), np.inf, 60)
    assert -0.6 < low <= 0 < high
    below = OutputLoss(-x, [], spec)
    low, high = below.learned((-6.0, 0.5), np.inf, 60)
    assert low < 0 <= high < 0.6


def test_a_range_of_no_width_is_left() -> None:
    loss = loss_and_tokens(UINT8)
    assert loss.learned((0.0, 0.0), np.inf, 5) == (0.0, 0.0)
    # A narrow one is learned like every other.
    assert loss.learned((-0.2, 0.2), loss((-0.2, 0.2)), 5) != (-0.2, 0.2)
    # Of equal losses the first is kept.
    assert loss.learned((-3.0, 3.0), loss((-3.0, 3.0)), 1) == (-3.0, 3.0)


def test_a_symmetric_grid_reaches_as_far_on_both_sides() -> None:
    loss = loss_and_tokens(INT8)
    assert loss._effective((-20.0, 3.0)) == loss._effective((-3.0, 20.0)) == (-20, 20)
    assert loss_and_tokens(UINT8)._effective((-20.0, 3.0)) == (-20, 3)


def test_the_error_is_that_of_all_readers() -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=(20, 4)).astype(np.float32)
    readers: Any = [random.normal(size=(n, 4)).astype(np.float32) for n in (3, 5)]
    both = OutputLoss(x, readers, UINT4)((-1.0, 1.0))
    alone = [OutputLoss(x, [w], UINT4)((-1.0, 1.0)) for w in readers]
    assert both == pytest.approx(sum(alone), rel=1e-5)
    assert loss_and_tokens(UINT8)._placed(0.5).dtype == np.float32


@pytest.mark.parametrize("spec", [UINT8, INT8, UINT4, INT4], ids=str)
def test_gradients_of_ends_by_hand(spec: QuantSpec) -> None:
    """LSQ+, section 3.1, in float64; a value at an end is within the range."""
    random = np.random.default_rng(0)
    steps = 2**spec.bits - (2 if spec.symmetric else 1)
    scale = 2.0**-4
    low = -scale * (steps // 2)
    high = low + scale * steps
    x = (1.3 * high * random.uniform(-1, 1, size=(40, 3))).astype(np.float32)
    x[0], x[1] = low, high
    weight = random.normal(size=(2, 3)).astype(np.float32)
    loss, found = OutputLoss(x, [weight], spec)._with_gradient((low, high))
    code = np.clip(np.round((x - low) / scale), 0, steps)
    if spec.bits == 4 and spec.symmetric:
        # Narrow symmetric types have one code more below.
        code = np.clip(np.round((x - low) / scale), -1, steps)
    error = low + scale * code - x.astype(np.float64)
    through = 2 * error @ weight.T.astype(np.float64) @ weight
    assert loss == pytest.approx(float((through * error).sum()) / 2, rel=1e-5)
    below, above = x < low, x > high
    inside = ~below & ~above
    moved = inside * error / scale / steps
    by_low = float((through * (below - moved)).sum())
    by_high = float((through * (above + moved)).sum())
    if spec.symmetric:
        by_high = (by_high - by_low) / 2
        by_low = -by_high
    assert found == pytest.approx([by_low, by_high], rel=1e-4)
