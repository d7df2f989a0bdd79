"""Observers of an op's input features: what algorithms and rescalings ``need`` of calibration."""

from __future__ import annotations

from copy import copy
from typing import Self

from array_api_compat import array_namespace

from ..errors import DataError
from ..numerics.affine import Array
from ..numerics.rows import Rows
from .base import Observer


class FeatureObserver(Observer):
    """Sees the rows that an op's weight multiplies, per group of a grouped convolution.

    Args:
        rows: How the op reads its input.
    """

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self.count = 0
        self._value: Array = None

    @property
    def value(self) -> Array:
        """What was seen, float32; the first axis are the groups.

        Raises:
            DataError: If nothing was seen.
        """
        if self._value is None:
            raise DataError("an algorithm was asked for before calibration saw its op's input; give calibration batches")
        return self._value

    def update(self, x: Array) -> None:
        """Take one batch."""
        for chunk in self.rows.chunks(x):
            self._take(self._of(chunk))
            self.count += chunk.shape[1]

    def merge(self, other: Self) -> None:
        """Take in another's."""
        if other._value is not None:
            self._take(other._value)
            self.count += other.count

    def joined(self, other: Self | None) -> Self:
        """Return what both saw together; neither is changed."""
        together = copy(self)
        if other is not None:
            together.merge(other)
        return together

    def rescaled(self, factors: Array) -> Self | None:
        """Divide; exact for all of them."""
        if self._value is None:
            return None
        derived = copy(self)
        derived._value = self._divided(self.rows.features_of(factors))
        return derived

    def _take(self, seen: Array) -> None:
        self._value = seen if self._value is None else self._join(self._value, seen)

    def _of(self, chunk: Array) -> Array:
        raise NotImplementedError

    def _join(self, one: Array, other: Array) -> Array:
        return one + other

    def _divided(self, factors: Array) -> Array:
        return self._value / factors


class Gram(FeatureObserver):
    """Sum of X^T X over all rows seen: (groups, features, features)."""

    def _of(self, chunk: Array) -> Array:
        xp = array_namespace(chunk)
        return xp.matmul(xp.matrix_transpose(chunk), chunk)

    def _divided(self, factors: Array) -> Array:
        return self._value / (factors[:, :, None] * factors[:, None, :])


class FeatureAbsMax(FeatureObserver):
    """Largest absolute value of each feature: (groups, features)."""

    def _of(self, chunk: Array) -> Array:
        xp = array_namespace(chunk)
        return xp.maximum(xp.max(chunk, axis=1), -xp.min(chunk, axis=1))

    def _join(self, one: Array, other: Array) -> Array:
        return array_namespace(one).maximum(one, other)


class FeatureSum(FeatureObserver):
    """Sum of each feature; divided by ``count`` its mean: (groups, features)."""

    def _of(self, chunk: Array) -> Array:
        return array_namespace(chunk).sum(chunk, axis=1)


FEATURES: dict[str, type[FeatureObserver]] = {"gram": Gram, "channel_range": FeatureAbsMax, "channel_mean": FeatureSum}
"""What a card may ``need``, and who observes it."""
