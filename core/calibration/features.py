"""Observers of an op's input features: what algorithms and rescalings ``need`` of calibration."""

from __future__ import annotations

from copy import copy
from typing import Self

from array_api_compat import array_namespace

from octavo.core.contract.calibrator import Observer
from octavo.core.errors import DataError
from octavo.core.numerics.affine import Array
from octavo.core.numerics.channels import ChannelMap
from octavo.core.numerics.rows import Rows

_CANCELLED = 1e-3
"""Least share of a feature's energy that centring may leave.

float32 sums know it to about 1e-6 of the whole.
"""


class FeatureObserver(Observer):
    """Sees the rows that an op's weight multiplies, per group of a grouped convolution.

    Args:
        rows: How the op reads its input.
    """

    _follows: frozenset[str] = frozenset()

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self.count = 0
        self._value: Array = None
        self._own = False  # whether no other observer holds the same array

    @property
    def value(self) -> Array:
        """What was seen, float32; the first axis are the groups.

        Raises:
            DataError: If nothing was seen.
        """
        if self._value is None:
            raise DataError(
                "an algorithm was asked for before calibration saw its op's input; give "
                "calibration batches"
            )
        return self._value

    def update(self, x: Array) -> None:
        """Take one batch."""
        for chunk in self.rows.chunks(x):
            self._take(self._of(chunk), own=True)
            self.count += chunk.shape[1]

    def merge(self, other: Self) -> None:
        """Take in another's."""
        if other._value is not None:
            self._take(other._value, own=False)
            self.count += other.count

    def joined(self, other: Self | None) -> Self:
        """Return what both saw together; neither is changed."""
        together = self._derived(self._value)
        if other is not None:
            together.merge(other)
        return together

    def rescaled(self, change: ChannelMap) -> Self | None:
        """Divide, exactly for all of them.

        Sums also shift, and sums and Gram matrices rotate where features are channels.
        """
        if self._value is None:
            return None
        if change.carries <= {"scale"}:
            if change.scale is None:
                return self._derived(self._value)
            return self._derived(self._divided(self.rows.features_of(change.scale)))
        features_are_channels = not self.rows.kernel
        if features_are_channels and change.carries <= self._follows:
            return self._derived(self._changed(change))
        return None

    def _derived(self, value: Array) -> Self:
        derived = copy(self)
        derived._value = value
        derived._own = False
        return derived

    def _take(self, seen: Array, *, own: bool) -> None:
        if self._value is None:
            self._value = seen
            self._own = own
        else:
            self._value = self._join(self._value, seen)
            self._own = True

    def _of(self, chunk: Array) -> Array:
        raise NotImplementedError

    def _join(self, one: Array, other: Array) -> Array:
        return one + other

    def _divided(self, factors: Array) -> Array:
        return self._value / factors

    def _changed(self, change: ChannelMap) -> Array:
        raise NotImplementedError


class Gram(FeatureObserver):
    """Sum of X^T X over all rows seen: (groups, features, features)."""

    _follows = frozenset({"scale", "rotation"})

    def _of(self, chunk: Array) -> Array:
        xp = array_namespace(chunk)
        return xp.matmul(xp.matrix_transpose(chunk), chunk)

    def _join(self, one: Array, other: Array) -> Array:
        if not self._own:
            return one + other
        # The largest arrays of a calibration: a third one for the sum would be its peak.
        one += other
        return one

    def _divided(self, factors: Array) -> Array:
        return self._value / (factors[:, :, None] * factors[:, None, :])

    def _changed(self, change: ChannelMap) -> Array:
        xp = array_namespace(self._value)
        return change.apply(xp.matrix_transpose(change.apply(self._value)))

    def centred(self, sums: FeatureSum, shift: Array) -> Self | None:
        """Return what would have been seen of x - shift.

        It is G - z m^T - m z^T + n z z^T, m the sums over n rows. None where so much cancels that
        float32 leaves fewer than three digits, and for convolutions, whose padding is not shifted.
        """
        if self._value is None or self.rows.kernel or sums.count != self.count:
            return None
        xp = array_namespace(self._value)
        # In float64: the difference may be far smaller than its terms.
        gram = xp.astype(self._value[0, ...], xp.float64)
        m = xp.astype(sums.value[0, ...], xp.float64)
        z = xp.astype(shift, xp.float64)
        cross = z[:, None] * m[None, :]
        moved = (
            gram
            - cross
            - xp.matrix_transpose(cross)
            + self.count * z[:, None] * z[None, :]
        )
        least = _CANCELLED * xp.linalg.diagonal(gram)
        if bool(xp.any(xp.linalg.diagonal(moved) < least)):
            return None
        return self._derived(xp.astype(moved, xp.float32)[None, ...])


class FeatureAbsMax(FeatureObserver):
    """Largest absolute value of each feature: (groups, features)."""

    def _of(self, chunk: Array) -> Array:
        xp = array_namespace(chunk)
        return xp.maximum(xp.max(chunk, axis=1), -xp.min(chunk, axis=1))

    def _join(self, one: Array, other: Array) -> Array:
        return array_namespace(one).maximum(one, other)

    def within(self, low: Array, high: Array) -> Self:
        """Return what would have been seen of channels within these ranges, shape (channels,).

        Features are channels here.
        """
        xp = array_namespace(low)
        largest = xp.maximum(xp.abs(low), xp.abs(high))
        return self._derived(largest[None, ...])


class FeatureSum(FeatureObserver):
    """Sum of each feature; divided by ``count`` its mean: (groups, features)."""

    _follows = frozenset({"scale", "shift", "rotation"})

    def _of(self, chunk: Array) -> Array:
        return array_namespace(chunk).sum(chunk, axis=1)

    def _changed(self, change: ChannelMap) -> Array:
        return self.count * change.apply(self._value / max(1, self.count))


class FeatureSquare(FeatureObserver):
    """Sum of the squares of each feature, a Gram matrix's diagonal: (groups, features)."""

    def _of(self, chunk: Array) -> Array:
        return array_namespace(chunk).sum(chunk * chunk, axis=1)

    def _divided(self, factors: Array) -> Array:
        return self._value / (factors * factors)


FEATURE_OBSERVERS: dict[str, type[FeatureObserver]] = {
    "gram": Gram,
    "channel_range": FeatureAbsMax,
    "channel_mean": FeatureSum,
    "channel_square": FeatureSquare,
}
"""What a card may ``need``, and who observes it."""
