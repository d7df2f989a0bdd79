"""Calibrators that read a range off a streaming histogram."""

from __future__ import annotations

from abc import abstractmethod
from typing import Literal, Self

import numpy as np
from array_api_compat import array_namespace, device
from pydantic import Field

from octavo.core.contract.calibrator import Calibrator
from octavo.core.contract.parts import PartConfig
from octavo.core.errors import DataError
from octavo.core.numerics.affine import Array
from octavo.core.numerics.codec import choose_params, project_values
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
            self._like = xp.zeros((), device=device(x))
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
        chosen = []
        for counts, low, high in zip(seen.counts, seen.low, seen.high, strict=True):
            ends = self.choose(counts, float(low), float(high), spec)
            chosen.append(ends)
        within = np.clip(np.asarray(chosen).T, seen.low, seen.high)
        lows, highs = within.astype(np.float32)
        if self.axis is None:
            return self._placed(lows[0]), self._placed(highs[0])
        return self._placed(lows), self._placed(highs)

    def _placed(self, ends: np.ndarray) -> Array:
        """Return ends of ranges where the data was."""
        xp = array_namespace(self._like)
        return xp.asarray(ends, device=device(self._like))

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
        # Quartiles in one bin tell nothing of how far they lie apart.
        bin_width = 2.0**self.histogram.width
        if np.ceil(third / bin_width) - np.floor(first / bin_width) <= 1:
            return low, high
        return first - reach, third + reach


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
        lows = low * shares
        highs = high * shares
        return best_range(counts, self.histogram.centres(), lows, highs, spec)


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
        lows = low * shares
        highs = high * shares
        centres = self.histogram.centres()
        below, above = best_range(counts, centres, lows, highs, spec)
        # A symmetric grid knows the larger end alone: moving the other changes nothing.
        turns = 0 if spec.symmetric else 2
        for _ in range(turns):
            same_low = np.full_like(highs, below)
            below, above = best_range(counts, centres, same_low, highs, spec)
            same_high = np.full_like(lows, above)
            below, above = best_range(counts, centres, lows, same_high, spec)
        return below, above


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
    params, _ = choose_params(lows, highs, spec, None)
    scale = params.scale[:, None]
    zero_point = params.zero_point[:, None]
    projected = project_values(values[None, :], scale, zero_point, spec)
    errors = ((projected - values) ** 2) @ counts[filled]
    best = int(np.argmin(errors))
    return float(lows[best]), float(highs[best])


def quantile(counts: np.ndarray, edges: np.ndarray, share: float) -> float:
    """Return the value below which ``share`` of the counts lie, linear within a bin."""
    cumulated = np.concatenate([[0], np.cumsum(counts)]) / counts.sum()
    end = int(np.searchsorted(cumulated, share))
    # A share of 0 lies in the first bin, and rounding may carry one of 1 beyond the last.
    end = min(max(end, 1), len(counts))
    start = end - 1
    below = cumulated[start]
    inside = cumulated[end] - below
    part = (share - below) / inside if inside > 0 else 1.0
    part = min(max(part, 0.0), 1.0)
    width = edges[end] - edges[start]
    return float(edges[start] + part * width)
