"""The calibrator that keeps a distribution: the range of least Kullback-Leibler divergence."""

from __future__ import annotations

from typing import Literal

import numpy as np

from octavo.core.contract.parts import PartConfig
from octavo.core.numerics.affine import integer_range, is_integer
from octavo.core.values.scheme import QuantSpec

from .histogram import HistogramCalibrator


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
        levels = _codes_of(spec)
        if two_sided or spec.symmetric:
            levels = levels // 2
        used = int(np.flatnonzero(sizes).max(initial=0)) + 1
        if used <= levels:
            return low, high
        filled = sizes[:used]
        thresholds = np.unique(np.linspace(levels, used, 128).astype(int))
        found = [divergence(filled, int(bins), levels) for bins in thresholds]
        best = float(thresholds[int(np.argmin(found))])
        end = best * 2.0**self.histogram.width
        return max(low, -end), min(high, end)


def _codes_of(spec: QuantSpec) -> int:
    """Return how many codes a dtype has; floats count as int8 without its lowest code."""
    if not is_integer(spec):
        return 255
    qmin, qmax = integer_range(spec)
    return qmax - qmin + 1


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
    kept = sizes[:threshold]
    inside = kept.astype(np.float64)
    filled = kept > 0
    p = inside.copy()
    p[-1] += sizes[threshold:].sum()
    level = np.arange(threshold) * levels // threshold
    mass = np.bincount(level, inside)
    places = np.bincount(level, filled)
    spread_again = (mass / np.maximum(places, 1))[level]
    q = np.where(filled, spread_again, 0.0)
    p = p / p.sum()
    q = q / max(q.sum(), 1.0)
    # What P leaves empty adds nothing to the sum: p log p is 0 there.
    is_in_p = p > 0
    p = p[is_in_p]
    # A bin that P fills and Q does not (clipped mass in an empty last bin) counts as nearly
    # impossible, not as infinite.
    q = np.maximum(q[is_in_p], 1e-12)
    return float(np.sum(p * np.log(p / q)))
