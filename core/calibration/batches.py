"""A loader whose batches hold more than the model takes, or hold it in another form."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from octavo.core.errors import DataError
from octavo.core.values.calls import Call

from .sources import is_factory, raw_batches


class Batches:
    """Calibration data with a function that picks the model's inputs out of each batch.

    ```python
    octavo.Batches(loader, inputs=lambda batch: batch["image"])
    octavo.Batches(loader, inputs=lambda batch: octavo.Call(batch[0], mask=batch[1] > 0))
    ```

    Args:
        source: Whatever ``calibration`` takes: an iterable of batches, a DataLoader, a
            CalibrationDataReader, an array, an .npz path, or a function that returns a fresh
            iterable.
        inputs: Returns of one batch what the model takes: an array, a tuple or list of values in
            call order, a mapping of values by name, or a :class:`Call` of both. It is taken as it
            is: nothing is dropped and nothing guessed.

    Raises:
        DataError: If ``inputs`` is no function.
    """

    def __init__(self, source: Any, inputs: Callable[[Any], Any]) -> None:
        if not callable(inputs):
            raise DataError(
                f"Batches takes inputs=, a function of one batch; got {type(inputs).__name__}"
            )
        self.source = source
        self.inputs = inputs

    def __iter__(self) -> Iterator[Call]:
        source = self.source() if self.is_factory else self.source
        for index, raw in enumerate(raw_batches(source)):
            yield self.call(raw, index)

    @property
    def is_factory(self) -> bool:
        """True if the source is a function that returns a fresh iterable each time."""
        return is_factory(self.source)

    def call(self, raw: Any, index: int) -> Call:
        """Return what ``inputs`` picks out of one batch, as a call.

        Raises:
            DataError: If ``inputs`` raises; the message names the batch.
        """
        try:
            picked = self.inputs(raw)
        except Exception as error:
            raise DataError(
                f"inputs(batch) raised {type(error).__name__} on calibration batch {index}: {error}"
            ) from error
        if isinstance(picked, Call):
            return picked
        if isinstance(picked, Mapping):
            # A BatchEncoding iterates over other things than its keys.
            return Call(**{str(k): picked[k] for k in picked.keys()})  # noqa: SIM118
        return Call(*picked) if isinstance(picked, (tuple, list)) else Call(picked)
