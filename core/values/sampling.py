"""How sure a score is: how many samples it is the mean of, and the interval of its true value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

CONFIDENCE = 1.959964
"""Standard deviations on either side that hold 95 % of a normal distribution."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """What the samples behind a score say of it.

    Attributes:
        count: Number of samples.
        low: Lower end of the 95 % interval of the mean over all the data there could be.
        high: Its upper end.
        is_count: Whether each sample is right or wrong (1 or 0), so that a difference of two scores
            is a number of samples.
    """

    count: int
    low: float
    high: float
    is_count: bool

    def samples_between(self, one: float, other: float) -> int:
        """Return how many samples two scores of all-or-nothing samples differ by."""
        return round(abs(one - other) * self.count)

    def to_row(self) -> list[Any]:
        """Return the fields in order, JSON-ready."""
        return [self.count, self.low, self.high, self.is_count]


def sampling_of(per_sample: Sequence[float] | np.ndarray) -> Sampling:
    """Return what the scores of single samples say of their mean.

    Of right-or-wrong samples it is the score interval (Wilson 1927; it stays within 0 and 1 and
    holds for rare errors), of others the normal interval of a mean.

    Args:
        per_sample: Scores, shape (samples,), at least one.
    """
    scores = np.asarray(per_sample, dtype=np.float64)
    count = len(scores)
    mean = float(scores.mean())
    if np.isin(scores, (0.0, 1.0)).all():
        low, high = _wilson(mean, count)
        return Sampling(count, low, high, True)
    deviation = float(scores.std(ddof=1)) if count > 1 else 0.0
    half = CONFIDENCE * deviation / count**0.5
    return Sampling(count, mean - half, mean + half, False)


def _wilson(share: float, count: int) -> tuple[float, float]:
    """Return the score interval of a share (Wilson 1927)."""
    squared = CONFIDENCE**2
    middle = (share + squared / (2 * count)) / (1 + squared / count)
    variance = share * (1 - share) / count + squared / (4 * count**2)
    half = CONFIDENCE * variance**0.5 / (1 + squared / count)
    return max(0.0, middle - half), min(1.0, middle + half)
