"""Calibration data of any common form, as checked batches that can be read more than once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from octavo.core.errors import DataError, UnsafeFile
from octavo.core.numerics.arrays import to_numpy
from octavo.core.values.calls import Batch, Call, arrays_in, changed, flat, named_leaves
from octavo.core.values.graph import InputInfo
from octavo.core.values.takes import Reads
from octavo.core.values.trees import PLAIN, is_array, is_container, mapped

from .batches import Batches
from .reading import REMEDY, choose, takes_of

BATCH_SIZE = 32
"""Rows per batch where a whole array is given."""

LIMIT_BYTES = 2 * 2**30
"""How much a one-shot source may hold when it is kept in memory."""


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

    def __iter__(self) -> Iterator[Batch]:
        if self.batches is not None:
            yield from self.batches
            return
        assert self.factory is not None
        digest = hashlib.sha256()
        for index, raw in enumerate(self.factory()):
            batch = self._read(raw, index)
            self._digest_into(digest, batch)
            yield batch
        # Only a pass to the end comes here: its digest is had for the price of the pass.
        self._digests.append(digest.hexdigest()[:16])

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
        _check(batch, self.inputs, self.names, index)
        return batch

    @property
    def names(self) -> tuple[str, ...]:
        """Names of what the model takes in order."""
        return self.order if self.order is not None else tuple(i.name for i in self.inputs)

    def first(self) -> Batch:
        """Return the first batch."""
        for batch in self:
            return batch
        raise DataError("calibration data is empty: give at least one batch")

    def others(self, most: int, among: int = 8) -> tuple[Batch, ...]:
        """Return batches that differ from the first, and from each other, in shapes or plain values.

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
        """Return the data for another backend's view of the same model, whose inputs are single arrays.

        Batches in call order keep their order; trees are given as their arrays. Plain values are constants of that model.

        Raises:
            DataError: If a plain value differs from batch to batch.
        """
        constants = _plain(self.first(), self.names)
        names = tuple(i.name for i in inputs)

        def change(batch: Batch) -> Batch:
            for path, value in _plain(batch, self.names).items():
                if constants.get(path, value) != value:
                    raise DataError(
                        f"input {path!r} is {value!r} in one calibration batch and {constants[path]!r} in the first: in the model's "
                        "export it is a constant; calibrate with batches of one kind, or stay on the model's own backend"
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
            return CalibrationData(
                tuple(change(b) for b in self.batches), None, inputs, self.notes, None, order
            )
        return CalibrationData(
            None, lambda: (change(b) for b in self), inputs, self.notes, None, order
        )

    def digest(self) -> str:
        """Content digest of the kept leaves (of a factory's first batch; :attr:`read` has the rest), 16 hex digits."""
        digest = hashlib.sha256()
        for batch in self.batches if self.batches is not None else (self.first(),):
            self._digest_into(digest, batch)
        return digest.hexdigest()[:16]


def digest_leaf(digest: hashlib._Hash, name: str, leaf: Any, between: str = "") -> None:
    """Take a named leaf into a digest: an array by its content, a plain value by what it prints."""
    if not is_array(leaf):
        digest.update(between.join((name, type(leaf).__name__, repr(leaf))).encode())
        return
    array = np.ascontiguousarray(to_numpy(_dense(leaf)))
    digest.update(between.join((name, str(array.dtype), str(array.shape))).encode())
    digest.update(array.view(np.uint8).data if array.dtype != object else str(array).encode())


def _plain(batch: Batch, names: tuple[str, ...]) -> dict[str, Any]:
    return {path: leaf for path, leaf in named_leaves(batch, names) if not is_array(leaf)}


def _form(batch: Batch) -> object:
    """Return what tells batches apart without their numbers."""
    return tuple(
        (path, tuple(leaf.shape) if is_array(leaf) else repr(leaf))
        for path, leaf in named_leaves(batch)
    )


@dataclass(frozen=True)
class Raw:
    """Raw batches before the model's inputs are known: kept, or made again by a factory."""

    batches: tuple[Any, ...] | None
    factory: Callable[[], Iterable[Any]] | None

    def example(self) -> Any:
        """Return the first batch as the loader yields it, a lone array as a tuple of one; it may still hold labels."""
        first = (
            self.batches[0]
            if self.batches
            else next(iter(self.factory() if self.factory else ()), None)
        )
        return first if is_container(first) or isinstance(first, Call) else (first,)


def materialize(source: Any, *, limit: int = LIMIT_BYTES) -> Raw:
    """Read a source once, so that a one-shot generator is not silently empty at its second use.

    Args:
        source: An iterable of batches (lists, generators, a DataLoader), an object with ``get_next()`` (ONNX Runtime's
            CalibrationDataReader, :class:`Batches`), one array of samples, a mapping of input names to arrays of samples, an ``.npz``
            path, or a function that returns any of the iterables (a factory: nothing is kept in memory).
        limit: Bytes that an iterable may take in memory.

    Raises:
        DataError: If it is empty or exceeds the limit.
    """
    if isinstance(source, Raw):
        return source
    if source is None:
        raise DataError(
            "calibration data is missing: pass calibration=, an iterable of batches, an array, an .npz path or a factory"
        )
    factory: Callable[[], Iterable[Any]] | None = None
    if isinstance(source, Batches):
        factory = (lambda: iter(source)) if source.is_factory else None
    elif is_factory(source):
        factory = lambda: raw_batches(source())  # noqa: E731
    if factory is not None:
        if next(iter(factory()), None) is None:
            raise DataError(
                "the calibration factory gave no batch; it must return a fresh, non-empty iterable each time it is called"
            )
        return Raw(None, factory)
    kept: list[Any] = []
    total = 0
    for index, raw in enumerate(raw_batches(source)):
        total += sum(
            _nbytes(leaf) for _, leaf in named_leaves(raw if isinstance(raw, Call) else (raw,))
        )
        if total > limit:
            raise DataError(
                f"calibration data passes {limit / 2**30:.1f} GiB at batch {index}: pass a factory (a function that returns a fresh "
                "iterable), which is streamed and never kept, or fewer batches; a few hundred samples are usually enough"
            )
        kept.append(raw)
    if not kept:
        raise DataError(
            "calibration data is empty: give at least one batch (a one-shot generator may already be exhausted)"
        )
    return Raw(tuple(kept), None)


def calibration_data(
    source: Any,
    inputs: tuple[InputInfo, ...],
    reading: Reads | None = None,
    *,
    limit: int = LIMIT_BYTES,
) -> CalibrationData:
    """Read calibration data of any form and check it against the model's inputs.

    Args:
        source: What :func:`materialize` takes, or its result.
        inputs: What the model takes.
        reading: How raw batches are read; None reads them as single arrays for ``inputs``.
        limit: Bytes that an iterable may take in memory.

    Raises:
        DataError: If it is empty, not finite, or does not fit the model's inputs.
    """
    raw = materialize(source, limit=limit)
    if raw.batches is not None:
        return _kept(raw.batches, inputs, reading)
    assert raw.factory is not None
    reading = reading or choose(next(iter(raw.factory())), takes_of(inputs), None)
    return CalibrationData(
        None, raw.factory, inputs, _notes(reading), reading, reading.takes.positional
    )


def _kept(
    raw: tuple[Any, ...], inputs: tuple[InputInfo, ...], reading: Reads | None
) -> CalibrationData:
    reading = reading or choose(raw[0], takes_of(inputs), None)
    batches = tuple(reading(b, index) for index, b in enumerate(raw))
    for index, batch in enumerate(batches):
        _check(batch, inputs, reading.takes.positional, index)
    return CalibrationData(
        batches, None, inputs, _notes(reading), reading, reading.takes.positional
    )


def _notes(reading: Reads) -> tuple[str, ...]:
    return (reading.note,) if reading.note else ()


def is_factory(source: Any) -> bool:
    """True for a function that makes a fresh iterable of batches each time it is called."""
    return callable(source) and not any(
        hasattr(source, known) for known in ("__iter__", "get_next", "shape")
    )


def raw_batches(source: Any) -> Iterator[Any]:
    """Yield the batches of a source of any form but a factory, as they are.

    Raises:
        DataError: If it cannot be read.
    """
    if isinstance(source, (str, Path)):
        source = load_arrays(Path(source))
    if hasattr(source, "get_next"):
        if hasattr(source, "rewind"):
            source.rewind()
        yield from iter(source.get_next, None)
    elif isinstance(source, Mapping):
        yield from _slices(source)
    elif is_array(source):
        for start in range(0, source.shape[0] if source.shape else 0, BATCH_SIZE):
            yield source[start : start + BATCH_SIZE]
    elif hasattr(source, "__iter__"):
        yield from source
    else:
        raise DataError(
            f"calibration data of type {type(source).__name__} cannot be read; give an iterable of batches, an array, an .npz path or a factory"
        )


def _slices(source: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield some samples at a time of a mapping of names to arrays of samples; plain values go with each of them."""
    table = {str(k): source[k] for k in source.keys()}  # noqa: SIM118 - a BatchEncoding iterates over keys, an NpzFile has no items order
    found = [
        (path, leaf) for path, leaf in named_leaves(table) if is_array(leaf) and len(leaf.shape)
    ]
    rows = {path: int(leaf.shape[0]) for path, leaf in found}
    if len(set(rows.values())) > 1:
        raise DataError(
            f"calibration arrays differ in their number of samples: {rows}; the first axis counts samples. A mapping is a whole set of "
            "samples; give one batch as [batch]"
        )
    for start in range(0, max(rows.values(), default=0), BATCH_SIZE):
        cut = partial(_samples, slice(start, start + BATCH_SIZE))
        yield {name: mapped(value, cut) for name, value in table.items()}


def _samples(part: slice, leaf: Any) -> Any:
    """Return a part of an array's samples; what has none belongs to every batch."""
    return leaf[part] if is_array(leaf) and len(leaf.shape) else leaf


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read an .npz file, or a folder of .npy files, without pickle.

    Raises:
        DataError: If it is missing or damaged.
        UnsafeFile: If it holds pickled objects.
    """
    try:
        if path.is_dir():
            return {p.stem: np.load(p, allow_pickle=False) for p in sorted(path.glob("*.npy"))}
        loaded = np.load(path, allow_pickle=False)
        return (
            {path.stem: loaded}
            if isinstance(loaded, np.ndarray)
            else {k: loaded[k] for k in loaded.files}
        )
    except ValueError as error:
        if "pickle" in str(error).lower():
            raise UnsafeFile(
                f"{path} holds pickled objects, which could run code; save plain arrays with numpy.savez"
            ) from error
        raise DataError(f"{path} cannot be read as arrays: {error}") from error
    except (OSError, EOFError, KeyError) as error:
        raise DataError(f"{path} cannot be read as arrays: {error}") from error
    except Exception as error:  # zipfile.BadZipFile and relatives
        raise DataError(f"{path} is damaged: {error}; write it again with numpy.savez") from error


def _check(batch: Batch, inputs: tuple[InputInfo, ...], names: tuple[str, ...], index: int) -> None:
    """Look at every leaf of a batch.

    Raises:
        DataError: If one is not finite, of a shape that the model's file does not take, or neither array nor plain value.
    """
    expected = {i.name: i for i in inputs}
    for path, leaf in named_leaves(batch, names):
        if not is_array(leaf):
            if not isinstance(leaf, PLAIN):
                raise DataError(
                    f"calibration batch {index}, input {path!r}: {type(leaf).__name__} is no array, container or plain value; {REMEDY}"
                )
            continue
        info = expected.get(path)
        shape = tuple(int(d) for d in leaf.shape)
        if info is not None and info.shape is not None and not _fits(info.shape, shape):
            want = "(" + ", ".join("any" if d is None else str(d) for d in info.shape) + ")"
            raise DataError(
                f"calibration batch {index}, input {path!r}: expected shape {want}, got {shape}"
            )
        if not _finite(leaf):
            raise DataError(
                f"calibration batch {index}, input {path!r} holds NaN or Inf; remove those samples"
            )


def _fits(declared: tuple[int | None, ...], shape: tuple[int, ...]) -> bool:
    return len(declared) == len(shape) and all(
        e is None or e == g for e, g in zip(declared, shape, strict=True)
    )


def _finite(array: Any) -> bool:
    if isinstance(array, np.ndarray):
        if array.dtype.kind == "V":
            # bfloat16 and the 8-bit floats of ml_dtypes are no dtypes of the Array API standard.
            array = array.astype(np.float32)
        elif array.dtype.kind not in "fc":
            return True
    array = _dense(array)
    xp = array_namespace(array)
    floating = xp.isdtype(array.dtype, ("real floating", "complex floating"))
    return not floating or bool(xp.all(xp.isfinite(array)))


def _dense(array: Any) -> Any:
    """Return a tensor with all of its numbers in place; sparse ones have layouts of their own."""
    return (
        array
        if str(getattr(array, "layout", "torch.strided")) == "torch.strided"
        else array.to_dense()
    )


def _nbytes(leaf: Any) -> int:
    found = getattr(_dense(leaf), "nbytes", 0)
    return int(found) if isinstance(found, (int, np.integer)) else 0


def numpy_batch(batch: Batch) -> Batch:
    """Return the batch with every array as NumPy."""
    return changed(batch, lambda leaf: to_numpy(leaf) if is_array(leaf) else leaf)


def rows(batch: Batch) -> int:
    """Number of samples in a batch: the length of its first array's first axis."""
    first = next(iter(arrays_in(batch)), None)
    return int(first.shape[0]) if first is not None and len(first.shape) else 1
