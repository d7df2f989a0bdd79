"""Calibrators that read a range off a streaming histogram."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Literal, Self

import numpy as np
from array_api_compat import array_namespace, device
from pydantic import Field

from octavo.core.contract.calibrator import Calibrator
from octavo.core.contract.parts import PartConfig
from octavo.core.errors import DataError
from octavo.core.numerics.affine import Array, integer_range, is_integer
from octavo.core.numerics.codec import choose, project_values
from octavo.core.values.scheme import QuantSpec

from .bins import BINS, CHANNEL_BINS, Histogram


class HistogramCalibrator(Calibrator):
    """Base of calibrators that read a range off a histogram. Bounded memory; exact merging."""

    def __init__(self, config: PartConfig, axis: int | None = None) -> None:
        super().__init__(config, axis)
        self.histogram = Histogram(BINS if axis is None else CHANNEL_BINS, axis)
        self._like: Array = None

    def update(self, x: Array) -> None:
        """Take one batch."""
        if self._like is None:
            xp = array_namespace(x)
            self._like = xp.zeros((), dtype=xp.float32, device=device(x))
        self.histogram.update(self.seen(x))

    def seen(self, x: Array) -> Array:
        """Return the numbers that are counted; the values themselves unless overridden."""
        return x

    def merge(self, other: Self) -> None:
        """Take in another's counts."""
        if self._like is None:
            self._like = other._like
        self.histogram.merge(other.histogram)

    def range(self, spec: QuantSpec) -> tuple[Array, Array]:
        """Return (low, high)."""
        seen = self.histogram
        if not seen.counts.size:
            raise DataError(
                "a calibrator was asked for a range before it saw data; give calibration batches"
            )
        chosen = [
            self.choose(counts, float(low), float(high), spec)
            for counts, low, high in zip(seen.counts, seen.low, seen.high, strict=True)
        ]
        ends = np.clip(np.asarray(chosen).T, seen.low, seen.high).astype(np.float32)
        low, high = ends[:, 0] if self.axis is None else ends
        xp = array_namespace(self._like)
        where = device(self._like)
        return xp.asarray(low, device=where), xp.asarray(high, device=where)

    @abstractmethod
    def choose(
        self, counts: np.ndarray, low: float, high: float, spec: QuantSpec
    ) -> tuple[float, float]:
        """Return (low, high) for one histogram; it is then cut to what was seen.

        Args:
            counts: int64, shape (bins,).
            low: The smallest value seen.
            high: The largest.
            spec: How the tensor will be quantized.
        """


class PercentileConfig(PartConfig):
    """The range of most values.

    Attributes:
        percentile: Share of the values that it holds, in percent.
    """

    kind: Literal["percentile"] = "percentile"
    percentile: float = Field(99.99, gt=0, le=100)


class Percentile(HistogramCalibrator):
    """The range that leaves out ``100 - percentile`` percent of the values, half at each end."""

    config: PercentileConfig

    def choose(
        self, counts: np.ndarray, low: float, high: float, spec: QuantSpec
    ) -> tuple[float, float]:
        """Read both quantiles off the cumulated counts."""
        share = self.config.percentile / 100
        edges = self.histogram.edges()
        below = quantile(counts, edges, (1 - share) / 2)
        above = quantile(counts, edges, (1 + share) / 2)
        return below, above


class OutlierFreeConfig(PartConfig):
    """The range without outliers by Tukey's rule.

    Attributes:
        fence: How many interquartile distances beyond the quartiles still belong; 3 leaves out what
            Tukey calls far out.
    """

    kind: Literal["outlier_free"] = "outlier_free"
    fence: float = Field(3.0, gt=0)


class OutlierFree(HistogramCalibrator):
    """The range of the values within Tukey's fences [Q1 - k (Q3 - Q1), Q3 + k (Q3 - Q1)].

    Source: Tukey 1977, "Exploratory Data Analysis", section 2D. Where the middle half of the values
    is constant the fences say nothing, and the whole range is kept.
    """

    config: OutlierFreeConfig

    def choose(
        self, counts: np.ndarray, low: float, high: float, spec: QuantSpec
    ) -> tuple[float, float]:
        """Read the quartiles off the cumulated counts."""
        edges = self.histogram.edges()
        first = quantile(counts, edges, 0.25)
        third = quantile(counts, edges, 0.75)
        reach = self.config.fence * (third - first)
        bin_width = 2.0**self.histogram.width
        return (first - reach, third + reach) if reach > bin_width else (low, high)


class TokenConfig(PartConfig):
    """A quantile over tokens of each token's extremes.

    Attributes:
        quantile: Share of the tokens that are not clipped.
    """

    kind: Literal["token"] = "token"
    quantile: float = Field(0.99, gt=0, le=1)


class TokenQuantile(HistogramCalibrator):
    """A quantile over tokens of each token's own largest and smallest value.

    Paper: Wei et al. 2022, "Outlier Suppression", section 4.2, token-wise clipping (its coarse
    stage): a few tokens, such as separators, hold the outliers, and clipping them costs little. A
    token is a row along the last axis.
    """

    config: TokenConfig

    def __init__(self, config: PartConfig, axis: int | None = None) -> None:
        super().__init__(config, None)
        if axis is not None:
            raise DataError(
                "the token calibrator gives one range for a whole tensor; use granularity tensor "
                "with it"
            )

    def seen(self, x: Array) -> Array:
        """Return both extremes of each token."""
        if 0 in x.shape:
            return x
        xp = array_namespace(x)
        tokens = xp.reshape(x, (-1, x.shape[-1]))
        zeros = 0 * tokens[:, 0]
        smallest = xp.minimum(xp.min(tokens, axis=1), zeros)
        largest = xp.maximum(xp.max(tokens, axis=1), zeros)
        return xp.concat([smallest, largest])

    def choose(
        self, counts: np.ndarray, low: float, high: float, spec: QuantSpec
    ) -> tuple[float, float]:
        """Read the quantile off the negative extremes and off the positive ones."""
        share = self.config.quantile
        edges = self.histogram.edges()
        half = len(counts) // 2
        # Extremes at zero belong to the side that they bound; they fall into the first bin above
        # zero.
        negative = counts[:half]
        positive = counts[half:]
        below = (
            quantile(negative, edges[: half + 1], 1 - share) if negative.sum() else 0.0
        )
        return below, quantile(positive, edges[half:], share)


class MseConfig(PartConfig):
    """The shrunk range of least expected squared error, both ends alike."""

    kind: Literal["mse"] = "mse"


class MeanSquaredError(HistogramCalibrator):
    """The shrunk range of least expected squared error, both ends shrunk alike.

    Source: Sung et al. 2015, "Resiliency of Deep Neural Networks under Quantization"; Banner et al.
    2019, "Post training 4-bit quantization of convolutional networks", section 3.
    """

    config: MseConfig

    def choose(
        self, counts: np.ndarray, low: float, high: float, spec: QuantSpec
    ) -> tuple[float, float]:
        """Try 100 ranges."""
        shares = np.linspace(1.0, 0.1, 100)
        return best_range(
            counts, self.histogram.centres(), low * shares, high * shares, spec
        )


class HistogramConfig(PartConfig):
    """The range of least expected squared error, each end by itself."""

    kind: Literal["histogram"] = "histogram"


class L2Histogram(HistogramCalibrator):
    """The range of least expected squared error, each end moved alone.

    The criterion of torch.ao.quantization's HistogramObserver; the search here takes turns between
    the ends, thrice.
    """

    config: HistogramConfig

    def choose(
        self, counts: np.ndarray, low: float, high: float, spec: QuantSpec
    ) -> tuple[float, float]:
        """Move the upper end, the lower end, and again."""
        shares = np.linspace(1.0, 0.05, 96)
        centres = self.histogram.centres()
        a, b = best_range(counts, centres, low * shares, high * shares, spec)
        for _ in range(2 if not spec.symmetric else 0):
            a, b = best_range(counts, centres, np.full(96, a), high * shares, spec)
            a, b = best_range(counts, centres, low * shares, np.full(96, b), spec)
        return a, b


class EntropyConfig(PartConfig):
    """The range of least Kullback-Leibler divergence."""

    kind: Literal["entropy"] = "entropy"


class Entropy(HistogramCalibrator):
    """The range whose quantized distribution tells least from the observed one.

    By Kullback-Leibler divergence. Source: Migacz 2017, "8-bit Inference with TensorRT": for each
    threshold, P is the histogram with everything beyond it in the last bin, Q the histogram within
    it, merged into as many levels as the dtype has on that side and spread again over the bins that
    were not empty. Signed values use magnitudes and a range symmetric about zero.
    """

    config: EntropyConfig

    def choose(
        self, counts: np.ndarray, low: float, high: float, spec: QuantSpec
    ) -> tuple[float, float]:
        """Try thresholds from the number of levels up to all bins."""
        two_sided = low < 0 < high
        sizes = _magnitudes(counts, two_sided=two_sided, positive=high > 0)
        qmin, qmax = integer_range(spec) if is_integer(spec) else (-127, 127)
        codes = qmax - qmin + 1
        levels = codes // 2 if two_sided or spec.symmetric else codes
        used = int(np.flatnonzero(sizes).max(initial=0)) + 1
        if used <= levels:
            return low, high
        thresholds = np.unique(np.linspace(levels, used, 128).astype(int))
        found = [
            divergence(sizes[:used], int(threshold), levels) for threshold in thresholds
        ]
        best = float(thresholds[int(np.argmin(found))])
        end = best * 2.0**self.histogram.width
        return max(low, -end), min(high, end)


def _magnitudes(counts: np.ndarray, *, two_sided: bool, positive: bool) -> np.ndarray:
    """Return counts by distance from zero: of both sides together, or of one alone."""
    half = len(counts) // 2
    below: np.ndarray = counts[:half][::-1]
    above: np.ndarray = counts[half:]
    if two_sided:
        both: np.ndarray = above + below
        return both
    return above if positive else below


def divergence(sizes: np.ndarray, threshold: int, levels: int) -> float:
    """Return KL(P || Q) for one threshold; see :class:`Entropy`.

    Args:
        sizes: Counts of magnitudes, shape (bins,).
        threshold: Bins that are kept.
        levels: Codes that they share.
    """
    inside = sizes[:threshold].astype(np.float64)
    p = inside.copy()
    p[-1] += sizes[threshold:].sum()
    level = np.arange(threshold) * levels // threshold
    filled = sizes[:threshold] > 0
    mass = np.bincount(level, inside, levels)
    places = np.bincount(level, filled, levels)
    spread_again = (mass / np.maximum(places, 1))[level]
    q = np.where(filled, spread_again, 0.0)
    p = p / p.sum()
    q = q / max(q.sum(), 1.0)
    # A bin that P fills and Q does not (clipped mass in an empty last bin) counts as nearly
    # impossible, not as infinite.
    mine = p > 0
    return float(np.sum(p[mine] * np.log(p[mine] / np.maximum(q[mine], 1e-12))))


def best_range(
    counts: np.ndarray,
    centres: np.ndarray,
    lows: np.ndarray,
    highs: np.ndarray,
    spec: QuantSpec,
) -> tuple[float, float]:
    """Return the range of least expected squared error among candidates of shape (candidates,)."""
    filled = counts > 0
    values = centres[filled].astype(np.float32)
    weights = counts[filled].astype(np.float64)
    params: Any = choose(lows.astype(np.float32), highs.astype(np.float32), spec, None)[
        0
    ]
    scale = params.scale[:, None]
    zero_point = params.zero_point[:, None]
    projected = project_values(values[None, :], scale, zero_point, spec)
    errors = ((projected - values) ** 2) @ weights
    best = int(np.argmin(errors))
    return float(lows[best]), float(highs[best])


def quantile(counts: np.ndarray, edges: np.ndarray, share: float) -> float:
    """Return the value below which ``share`` of the counts lie, linear within a bin."""
    total = np.concatenate([[0], np.cumsum(counts)]) / counts.sum()
    at = int(np.searchsorted(total, share, side="left"))
    at = min(max(at, 1), len(counts))
    below, start = total[at - 1], edges[at - 1]
    inside = total[at] - below
    part = (share - below) / inside if inside > 0 else 1.0
    width = edges[at] - start
    return float(start + min(max(part, 0.0), 1.0) * width)
