"""A streaming histogram that does not depend on the order of the data."""

from __future__ import annotations

import numpy as np
from array_api_compat import array_namespace, device

from octavo.core.numerics.affine import Array

BINS = 4096
"""Bins over the whole tensor; a power of two.

The values fill between half and all of them on their larger side.
"""

CHANNEL_BINS = 512
"""Bins of each channel."""

_SMALLEST = -149
"""Exponent of the smallest float32: no bin needs to be narrower."""


class Histogram:
    """Counts in bins [i, i + 1) * 2**width around zero.

    The width doubles, merging pairs, when a value falls outside. Because every width is a power of
    two and every bin starts at a multiple of it, the counts depend on the values alone, not on
    their order, their batches or their share among workers. Memory: 8 bytes a bin and channel.

    Args:
        bins: Number of bins, a power of two.
        axis: Channel axis for one histogram per channel; None for one.
    """

    def __init__(self, bins: int, axis: int | None = None) -> None:
        self.bins = bins
        self.axis = axis
        self.width = _SMALLEST
        self.counts: np.ndarray = np.zeros((0, bins), np.int64)
        self.low: np.ndarray = np.zeros(0)
        self.high: np.ndarray = np.zeros(0)

    def update(self, x: Array) -> None:
        """Take one array of finite values."""
        if 0 in x.shape:
            return
        rows = self._rows(x)
        xp = array_namespace(rows)
        low = _host(xp.min(rows, axis=1))
        high = _host(xp.max(rows, axis=1))
        largest = max(float(high.max()), -float(low.min()))
        self._widen(max(self._width_for(largest), self.width))
        self._add(self._count(rows), low, high)

    def _rows(self, x: Array) -> Array:
        """Return the values of each histogram, float32, shape (channels, values)."""
        xp = array_namespace(x)
        x = xp.astype(x, xp.float32)
        if self.axis is None:
            return xp.reshape(x, (1, -1))
        channels_first = xp.moveaxis(x, self.axis, 0)
        return xp.reshape(channels_first, (channels_first.shape[0], -1))

    def _count(self, rows: Array) -> np.ndarray:
        """Return how many values lie in each bin, shape (channels, bins)."""
        xp = array_namespace(rows)
        channels = rows.shape[0]
        # x * 2**-width is exact unless it underflows (values 2**-100 of the largest), and so is its
        # floor. float32 holds no factor for the smallest widths: values so small count as zero.
        if self.width > -126:
            place = xp.floor(rows * 2.0**-self.width)
        else:
            place = xp.zeros_like(rows)
        index = xp.astype(place, xp.int64) + self.bins // 2
        # All channels are counted at once: each has bins of its own in one long row.
        channel = xp.arange(channels, device=device(rows))
        offsets = self.bins * channel
        flat = xp.reshape(index + offsets[:, None], (-1,))
        counts = xp.bincount(flat, minlength=channels * self.bins)
        return _host(counts).reshape(channels, self.bins)

    def merge(self, other: Histogram) -> None:
        """Take in another's counts."""
        if not other.counts.size:
            return
        width = max(self.width, other.width)
        self._widen(width)
        counts = _coarser(other.counts, width - other.width)
        self._add(counts, other.low, other.high)

    def centres(self) -> np.ndarray:
        """Return the middle of each bin, float64, shape (bins,)."""
        places = np.arange(self.bins) - self.bins // 2
        return (places + 0.5) * 2.0**self.width

    def edges(self) -> np.ndarray:
        """Return where each bin starts, and where the last ends: float64, shape (bins + 1,)."""
        places = np.arange(self.bins + 1) - self.bins // 2
        return places * 2.0**self.width

    def _width_for(self, largest: float) -> int:
        if largest == 0.0:
            return _SMALLEST
        _, exponent = np.frexp(largest)
        bits_of_half = int(np.log2(self.bins // 2))
        return int(exponent) - bits_of_half

    def _widen(self, width: int) -> None:
        self.counts = _coarser(self.counts, width - self.width)
        self.width = width

    def _add(self, counts: np.ndarray, low: np.ndarray, high: np.ndarray) -> None:
        if self.counts.size:
            self.counts += counts
            self.low = np.minimum(self.low, low)
            self.high = np.maximum(self.high, high)
        else:
            self.counts = counts.copy()
            self.low = low.astype(np.float64)
            self.high = high.astype(np.float64)


def _coarser(counts: np.ndarray, doublings: int) -> np.ndarray:
    """Merge 2**doublings neighbours around zero into one bin."""
    if doublings <= 0 or not counts.size:
        return counts
    half = counts.shape[1] // 2
    # NumPy leaves shifts by 64 and more undefined; 62 leave the sign alone of any bin.
    target = (np.arange(-half, half) >> min(doublings, 62)) + half
    merged = np.zeros_like(counts)
    np.add.at(merged.T, target, counts.T)
    return merged


def _host(x: Array) -> np.ndarray:
    if hasattr(x, "cpu"):
        x = x.cpu()
    return np.asarray(x)
