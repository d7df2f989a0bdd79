"""The smallest and the largest value seen."""

from __future__ import annotations

from copy import copy
from typing import Literal, Self

from array_api_compat import array_namespace

from octavo.core.contract.calibrator import Calibrator
from octavo.core.contract.parts import PartConfig
from octavo.core.errors import DataError
from octavo.core.numerics.affine import Array
from octavo.core.numerics.channels import ChannelMap
from octavo.core.values.scheme import QuantSpec


class MinMaxConfig(PartConfig):
    """The smallest and the largest value seen."""

    kind: Literal["minmax"] = "minmax"


class MinMax(Calibrator):
    """Range = [min, max] over everything seen. Exact, mergeable, two numbers per channel."""

    def __init__(self, config: PartConfig, axis: int | None = None) -> None:
        super().__init__(config, axis)
        self.low: Array = None
        self.high: Array = None

    def update(self, x: Array) -> None:
        """Take one batch."""
        xp = array_namespace(x)
        if 0 in x.shape:
            return
        axes = None
        if self.axis is not None:
            channels = self.axis % x.ndim
            axes = tuple(i for i in range(x.ndim) if i != channels)
        low = xp.min(x, axis=axes)
        high = xp.max(x, axis=axes)
        self._take(xp.astype(low, xp.float32), xp.astype(high, xp.float32))

    def _take(self, low: Array, high: Array) -> None:
        if self.low is None:
            self.low = low
            self.high = high
            return
        xp = array_namespace(low)
        self.low = xp.minimum(self.low, low)
        self.high = xp.maximum(self.high, high)

    def merge(self, other: Self) -> None:
        """Take in another's range."""
        if other.low is not None:
            self._take(other.low, other.high)

    def rescaled(self, change: ChannelMap) -> Self | None:
        """Move and divide the ranges.

        One range over the whole tensor does not tell its channels, nor ranges what a rotation
        mixes.
        """
        if self.axis is None or self.low is None or change.rotation is not None:
            return None
        derived = copy(self)
        derived.low = change.apply(self.low)
        derived.high = change.apply(self.high)
        return derived

    def whole(self) -> Self:
        """Return the range over the whole tensor that channel ranges amount to."""
        derived = copy(self)
        derived.axis = None
        if self.low is not None:
            xp = array_namespace(self.low)
            derived.low = xp.min(self.low)
            derived.high = xp.max(self.high)
        return derived

    def range(self, spec: QuantSpec) -> tuple[Array, Array]:
        """Return (low, high)."""
        if self.low is None:
            raise DataError(
                "a calibrator was asked for a range before it saw data; give calibration batches"
            )
        return self.low, self.high
