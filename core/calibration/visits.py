"""How many batches came by each value in calibration.

A branch of a model may be taken by some of them only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from octavo.core.contract.adapter import Sink
from octavo.core.numerics.affine import Array
from octavo.core.values.calls import Batch


class Numbered:
    """Batches that tell which of them was read last.

    They can be read as often as what they are made of.

    Attributes:
        number: Of the batch that was read last in the pass that goes on, from 1.
    """

    def __init__(self, batches: Iterable[Batch]) -> None:
        self._batches = batches
        self.number = 0

    def __iter__(self) -> Iterator[Batch]:
        for number, batch in enumerate(self._batches, 1):
            self.number = number
            yield batch


class Met:
    """A sink that counts, for each value, the batches in which it came, and hands it on.

    Args:
        source: Where the batches are read from: one after the other, each run before the next is
            read.
        sink: Where values go.

    Attributes:
        batches: Value -> number of batches in which it came.
    """

    def __init__(self, source: Numbered, sink: Sink) -> None:
        self.batches: dict[str, int] = {}
        self._source = source
        self._sink = sink
        self._last: dict[str, int] = {}

    @property
    def all(self) -> int:
        """Number of batches."""
        return self._source.number

    def __call__(self, value: str, x: Array) -> None:
        """Take one array of one value."""
        if self._last.get(value) != self._source.number:
            self._last[value] = self._source.number
            self.batches[value] = self.batches.get(value, 0) + 1
        self._sink(value, x)
