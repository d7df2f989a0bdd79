"""What an observer and what a calibrator is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

from octavo.core.numerics.affine import Array
from octavo.core.numerics.channels import ChannelMap
from octavo.core.numerics.rows import Rows
from octavo.core.values.scheme import PartChoice, QuantSpec

from .parts import PartConfig


class Observer(ABC):
    """Watches one value over the calibration pass.

    Memory must not grow with the number of batches.
    """

    @abstractmethod
    def update(self, x: Array) -> None:
        """Take one batch's array, which must not be kept.

        Args:
            x: Of any shape; the channel axis keeps its length from batch to batch.
        """

    @abstractmethod
    def merge(self, other: Any) -> None:
        """Take in what another one of the same kind saw (a worker's share of the data)."""

    def rescaled(self, change: ChannelMap) -> Self | None:
        """Return what would have been seen had the value's channels been changed.

        Returns:
            None if this observer alone cannot know.
        """
        return None


class Calibrator(Observer):
    """Answers a range. Built from its card's config.

    Args:
        config: The card's settings.
        axis: None for one range over the whole tensor, else the channel axis: one range per
            channel.
    """

    def __init__(self, config: PartConfig, axis: int | None = None) -> None:
        self.config = config
        self.axis = axis

    @abstractmethod
    def range(self, spec: QuantSpec) -> tuple[Array, Array]:
        """Return (low, high) of what was seen.

        Args:
            spec: How the value will be quantized.

        Returns:
            float32, shape () or, with an axis, (channels,).
        """

    def range_for(
        self, spec: QuantSpec, readers: Callable[[], Sequence[Array]]
    ) -> tuple[Array, Array]:
        """Return (low, high) for a value that linear ops read; :meth:`range` unless overridden.

        Args:
            spec: How the value will be quantized.
            readers: Gives each such op's weight, float32, shape (outputs, channels); none where
                others read the value.
        """
        return self.range(spec)


@dataclass(frozen=True, slots=True)
class Probe:
    """One thing to observe.

    Attributes:
        value: Name of the value.
        calibrator: Who watches it; with ``rows`` the name of what is watched: ``gram``,
            ``channel_range``, ``channel_mean``.
        axis: Channel axis for one range per channel; None for the whole tensor.
        rows: How an op reads the value, where its input features are watched.
    """

    value: str
    calibrator: PartChoice
    axis: int | None = None
    rows: Rows | None = None
