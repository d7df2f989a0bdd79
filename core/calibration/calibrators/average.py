"""The moving average of each batch's extremes."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field

from octavo.core.contract.parts import PartConfig
from octavo.core.numerics.affine import Array

from .minmax import MinMax


class MovingAverageConfig(PartConfig):
    """Averages of each batch's extremes.

    Attributes:
        momentum: Weight of the newest batch.
    """

    kind: Literal["moving_average"] = "moving_average"
    momentum: float = Field(0.1, gt=0, le=1)


class MovingAverage(MinMax):
    """low = (1 - c) low + c min(batch), and so the other end, starting from the first batch.

    Source: Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference", section 3.1. It depends on the order of the batches; merging
    weighs each side by its number of batches.
    """

    config: MovingAverageConfig

    def __init__(self, config: PartConfig, axis: int | None = None) -> None:
        super().__init__(config, axis)
        self.batches = 0

    def _take(self, low: Array, high: Array) -> None:
        self.batches += 1
        if self.low is None:
            self.low = low
            self.high = high
        else:
            self._move_to(low, high, self.config.momentum)

    def merge(self, other: Self) -> None:
        """Take in another's averages."""
        if other.low is None:
            return
        if self.low is None:
            self.low = other.low
            self.high = other.high
            self.batches = other.batches
            return
        batches = self.batches + other.batches
        self._move_to(other.low, other.high, other.batches / batches)
        self.batches = batches

    def _move_to(self, low: Array, high: Array, share: float) -> None:
        self.low = self.low + share * (low - self.low)
        self.high = self.high + share * (high - self.high)
