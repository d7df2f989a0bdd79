"""Calibration data of any common form, as checked batches that can be read more than once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from octavo.core.errors import DataError
from octavo.core.numerics.arrays import to_numpy
from octavo.core.values.calls import Batch, arrays_in, changed, flat, named_leaves
from octavo.core.values.graph import InputInfo
from octavo.core.values.takes import Reads
from octavo.core.values.trees import is_array

from .checks import check_batch, digest_leaf
from .raw import LIMIT_BYTES, materialize
from .reading import choose_reading, takes_of


@dataclass(frozen=True)
class CalibrationData:
    """Checked batches, kept in memory or made again by a factory.

    Attributes:
        batches: The kept batches; None where ``factory`` makes them.
        factory: Makes a fresh iterable of raw batches.
        inputs: What the model takes.
        notes: What was left out of the batches (labels), for the ledger.
        reading: How raw batches are read; None where batches need none.
        order: Names of what the model takes in order; None takes those of ``inputs``.
    """

    batches: tuple[Batch, ...] | None
    factory: Callable[[], Iterable[Any]] | None
    inputs: tuple[InputInfo, ...]
    notes: tuple[str, ...] = ()
    reading: Reads | None = None
    order: tuple[str, ...] | None = None
    _digests: list[str] = field(default_factory=list, repr=False, compare=False)
    _counts: list[tuple[int, int]] = field(
        default_factory=list, repr=False, compare=False
    )

    def __iter__(self) -> Iterator[Batch]:
        if self.batches is not None:
            yield from self.batches
            return
        assert self.factory is not None
        digest = hashlib.sha256()
        batches = samples = 0
        for index, raw in enumerate(self.factory()):
            batch = self._read(raw, index)
            self._digest_into(digest, batch)
            batches += 1
            samples += rows(batch)
            yield batch
        # Only a pass to the end comes here: its digest is had for the price of the pass.
        self._digests.append(digest.hexdigest()[:16])
        self._counts.append((batches, samples))

    @property
    def counts(self) -> tuple[int | None, int | None]:
        """Numbers of batches and samples; None of a factory that was never read to its end."""
        if self.batches is not None:
            return len(self.batches), sum(map(rows, self.batches))
        return self._counts[0] if self._counts else (None, None)

    @property
    def read(self) -> str:
        """Digest of all batches of a factory, as its first whole pass gave them; '' before that."""
        return self._digests[0] if self._digests else ""

    def _digest_into(self, digest: hashlib._Hash, batch: Batch) -> None:
        for name, leaf in named_leaves(batch, self.names):
            digest_leaf(digest, name, leaf)

    def _read(self, raw: Any, index: int) -> Batch:
        if self.reading is None:
            return raw  # type: ignore[no-any-return]
        batch = self.reading(raw, index)
        check_batch(batch, self.inputs, self.names, index)
        return batch

    @property
    def names(self) -> tuple[str, ...]:
        """Names of what the model takes in order."""
        return (
            self.order if self.order is not None else tuple(i.name for i in self.inputs)
        )

    def first(self) -> Batch:
        """Return the first batch."""
        for batch in self:
            return batch
        raise DataError("calibration data is empty: give at least one batch")

    def others(self, most: int, among: int = 8) -> tuple[Batch, ...]:
        """Return batches that differ from the first, and each other, in shapes or plain values.

        Args:
            most: How many at most.
            among: How many batches of a factory are looked at.
        """
        found: dict[object, Batch] = {}
        source = iter(self) if self.batches is not None else islice(self, among)
        for batch in source:
            found.setdefault(_form(batch), batch)
            if len(found) > most:
                break
        return tuple(found.values())[1:]

    def numpy(self) -> CalibrationData:
        """Return the same data with every array as NumPy."""
        return self._changed(numpy_batch, self.inputs, self.order)

    def for_inputs(self, inputs: tuple[InputInfo, ...]) -> CalibrationData:
        """Return the data for another backend's view of the model, whose inputs are single arrays.

        Batches in call order keep their order; trees are given as their arrays. Plain values are
        constants of that model.

        Raises:
            DataError: If a plain value differs from batch to batch.
        """
        constants = _plain_values(self.first(), self.names)
        names = tuple(i.name for i in inputs)

        def change(batch: Batch) -> Batch:
            for path, value in _plain_values(batch, self.names).items():
                if constants.get(path, value) != value:
                    raise DataError(
                        f"input {path!r} is {value!r} in one calibration batch and "
                        f"{constants[path]!r} in the first: in the model's export it is a "
                        "constant; calibrate with batches of one kind, or stay on the model's "
                        "own backend"
                    )
            return flat(batch, names)

        return self._changed(change, inputs, None)

    def _changed(
        self,
        change: Callable[[Batch], Batch],
        inputs: tuple[InputInfo, ...],
        order: tuple[str, ...] | None,
    ) -> CalibrationData:
        if self.batches is not None:
            kept = tuple(change(b) for b in self.batches)
            return CalibrationData(kept, None, inputs, self.notes, None, order)
        return CalibrationData(
            None, lambda: (change(b) for b in self), inputs, self.notes, None, order
        )

    def digest(self) -> str:
        """Content digest of the kept leaves, 16 hex digits.

        Of a factory it is the first batch's; :attr:`read` has the rest.
        """
        digest = hashlib.sha256()
        for batch in self.batches if self.batches is not None else (self.first(),):
            self._digest_into(digest, batch)
        return digest.hexdigest()[:16]


def _plain_values(batch: Batch, names: tuple[str, ...]) -> dict[str, Any]:
    return {
        path: leaf for path, leaf in named_leaves(batch, names) if not is_array(leaf)
    }


def _form(batch: Batch) -> object:
    """Return what tells batches apart without their numbers."""
    return tuple(
        (path, tuple(leaf.shape) if is_array(leaf) else repr(leaf))
        for path, leaf in named_leaves(batch)
    )


def calibration_data(
    source: Any,
    inputs: tuple[InputInfo, ...],
    reading: Reads | None = None,
    *,
    limit: int = LIMIT_BYTES,
) -> CalibrationData:
    """Read calibration data of any form and check it against the model's inputs.

    Args:
        source: What :func:`.raw.materialize` takes, or its result.
        inputs: What the model takes.
        reading: How raw batches are read; None reads them as single arrays for ``inputs``.
        limit: Bytes that an iterable may take in memory.

    Raises:
        DataError: If it is empty, not finite, or does not fit the model's inputs.
    """
    raw = materialize(source, limit=limit)
    if reading is None:
        reading = choose_reading(
            _first_of(raw.batches, raw.factory), takes_of(inputs), None
        )
    notes = (reading.note,) if reading.note else ()
    order = reading.takes.positional
    if raw.batches is None:
        return CalibrationData(None, raw.factory, inputs, notes, reading, order)
    batches = tuple(reading(batch, index) for index, batch in enumerate(raw.batches))
    for index, batch in enumerate(batches):
        check_batch(batch, inputs, order, index)
    return CalibrationData(batches, None, inputs, notes, reading, order)


def _first_of(
    batches: tuple[Any, ...] | None, factory: Callable[[], Iterable[Any]] | None
) -> Any:
    if batches is not None:
        return batches[0]
    assert factory is not None
    return next(iter(factory()))


def numpy_batch(batch: Batch) -> Batch:
    """Return the batch with every array as NumPy."""
    return changed(batch, lambda leaf: to_numpy(leaf) if is_array(leaf) else leaf)


def rows(batch: Batch) -> int:
    """Number of samples in a batch: the length of its first array's first axis."""
    first = next(iter(arrays_in(batch)), None)
    return int(first.shape[0]) if first is not None and len(first.shape) else 1


def resized(batch: Batch, size: int) -> Batch:
    """Return a batch of ``size`` samples: the first ones, over and over where there are fewer."""
    count = rows(batch)

    def sized(leaf: Any) -> Any:
        # What has another first axis than the samples is no list of them: a table, a temperature.
        has_samples = is_array(leaf) and len(leaf.shape) > 0 and leaf.shape[0] == count
        return leaf[np.arange(size) % count] if has_samples else leaf

    return changed(batch, sized)
