"""What a calibrator is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Self

from ..numerics.affine import Array
from ..parts import PartConfig
from ..scheme import QuantSpec


class Calibrator(ABC):
    """Streams over batches and answers a range. Memory must not grow with the number of batches.

    Args:
        config: The card's settings.
        axis: None for one range over the whole tensor, else the channel axis: one range per channel.
    """

    def __init__(self, config: PartConfig, axis: int | None = None) -> None:
        self.config = config
        self.axis = axis

    @abstractmethod
    def update(self, x: Array) -> None:
        """Take one batch's array, of any shape (the channel axis keeps its length). It must not be kept."""

    @abstractmethod
    def merge(self, other: Self) -> None:
        """Take in what another one saw (a worker's share of the data)."""

    @abstractmethod
    def range(self, spec: QuantSpec) -> tuple[Array, Array]:
        """Return (low, high), float32, shape () or (channels,), for a tensor that will be quantized as ``spec``."""
