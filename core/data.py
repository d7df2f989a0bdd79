"""Calibration data of any common form, as checked batches that can be read more than once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from .adapter import Batch
from .errors import DataError, UnsafeFile, nearest
from .evaluation import to_numpy
from .graph import InputInfo

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
    """

    batches: tuple[Batch, ...] | None
    factory: Callable[[], Iterable[Any]] | None
    inputs: tuple[InputInfo, ...]
    notes: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[Batch]:
        if self.batches is not None:
            yield from self.batches
            return
        assert self.factory is not None
        for index, raw in enumerate(self.factory()):
            yield _batch(raw, self.inputs, index)[0]

    def first(self) -> Batch:
        """Return the first batch."""
        for batch in self:
            return batch
        raise DataError("calibration data is empty: give at least one batch")

    def numpy(self) -> CalibrationData:
        """Return the same data with every array as NumPy."""
        if self.batches is not None:
            return CalibrationData(tuple(numpy_batch(b) for b in self.batches), None, self.inputs, self.notes)
        make = self.factory
        assert make is not None
        return CalibrationData(
            None, lambda: (numpy_batch(_batch(raw, self.inputs, i)[0]) for i, raw in enumerate(make())), self.inputs, self.notes
        )

    def for_inputs(self, inputs: tuple[InputInfo, ...]) -> CalibrationData:
        """Return the data for another backend's view of the same model: positional batches keep their order."""
        return CalibrationData(self.batches, self.factory, inputs, self.notes)

    def digest(self) -> str:
        """Content digest of the kept arrays (of a factory's first batch only), 16 hex digits."""
        digest = hashlib.sha256()
        for batch in self.batches if self.batches is not None else (self.first(),):
            for name, array in named(batch, self.inputs):
                array = np.ascontiguousarray(to_numpy(array))
                digest.update(f"{name}{array.dtype}{array.shape}".encode())
                digest.update(array.view(np.uint8).data if array.dtype != object else str(array).encode())
        return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Raw:
    """Raw batches before the model's inputs are known: kept, or made again by a factory."""

    batches: tuple[Any, ...] | None
    factory: Callable[[], Iterable[Any]] | None

    def example(self) -> Batch:
        """Return the first batch; it may still hold labels at its end."""
        first = self.batches[0] if self.batches else next(iter(self.factory() if self.factory else ()), None)
        return _batch(first, (), 0)[0]


def materialize(source: Any, *, limit: int = LIMIT_BYTES) -> Raw:
    """Read a source once, so that a one-shot generator is not silently empty at its second use.

    Args:
        source: An iterable of batches (lists, generators, a DataLoader), an object with ``get_next()`` (ONNX Runtime's
            CalibrationDataReader), one array of samples, a mapping of input names to arrays of samples, an ``.npz``
            path, or a function that returns any of the iterables (a factory: nothing is kept in memory).
        limit: Bytes that an iterable may take in memory.

    Raises:
        DataError: If it is empty or exceeds the limit.
    """
    if isinstance(source, Raw):
        return source
    if source is None:
        raise DataError("calibration data is missing: pass calibration=, an iterable of batches, an array, an .npz path or a factory")
    if callable(source) and not hasattr(source, "__iter__") and not hasattr(source, "get_next") and not hasattr(source, "shape"):
        if next(iter(_raw(source())), None) is None:
            raise DataError("the calibration factory gave no batch; it must return a fresh, non-empty iterable each time it is called")
        return Raw(None, lambda: _raw(source()))
    kept: list[Any] = []
    total = 0
    for index, raw in enumerate(_raw(source)):
        items = raw.values() if isinstance(raw, Mapping) else raw if isinstance(raw, (tuple, list)) else (raw,)
        total += sum(int(getattr(a, "nbytes", 0)) for a in items)
        if total > limit:
            raise DataError(
                f"calibration data passes {limit / 2**30:.1f} GiB at batch {index}: pass a factory (a function that returns a fresh "
                "iterable), which is streamed and never kept, or fewer batches; a few hundred samples are usually enough"
            )
        kept.append(raw)
    if not kept:
        raise DataError("calibration data is empty: give at least one batch (a one-shot generator may already be exhausted)")
    return Raw(tuple(kept), None)


def calibration_data(source: Any, inputs: tuple[InputInfo, ...], *, limit: int = LIMIT_BYTES) -> CalibrationData:
    """Read calibration data of any form and check it against the model's inputs.

    Args:
        source: What :func:`materialize` takes, or its result.
        inputs: What the model takes.
        limit: Bytes that an iterable may take in memory.

    Raises:
        DataError: If it is empty, not finite, or does not fit the model's inputs.
    """
    raw = materialize(source, limit=limit)
    if raw.batches is None:
        assert raw.factory is not None
        _, notes = _batch(next(iter(raw.factory())), inputs, 0)
        return CalibrationData(None, raw.factory, inputs, notes)
    checked = [_batch(b, inputs, index) for index, b in enumerate(raw.batches)]
    return CalibrationData(tuple(b for b, _ in checked), None, inputs, checked[0][1])


def _raw(source: Any) -> Iterable[Any]:
    if isinstance(source, (str, Path)):
        source = load_arrays(Path(source))
    if hasattr(source, "get_next"):
        if hasattr(source, "rewind"):
            source.rewind()
        yield from iter(source.get_next, None)
    elif isinstance(source, Mapping) and hasattr(source, "keys"):
        arrays = {k: source[k] for k in source.keys()}  # noqa: SIM118 - a BatchEncoding iterates over keys, an NpzFile has no items order
        rows = {k: len(a) for k, a in arrays.items() if getattr(a, "ndim", 1)}
        if len(set(rows.values())) > 1:
            raise DataError(f"calibration arrays differ in their number of samples: {rows}; the first axis counts samples")
        for start in range(0, max(rows.values(), default=0), BATCH_SIZE):
            yield {k: a[start : start + BATCH_SIZE] for k, a in arrays.items()}
    elif hasattr(source, "shape") and hasattr(source, "dtype"):
        for start in range(0, source.shape[0] if source.shape else 0, BATCH_SIZE):
            yield source[start : start + BATCH_SIZE]
    elif hasattr(source, "__iter__"):
        yield from source
    else:
        raise DataError(
            f"calibration data of type {type(source).__name__} cannot be read; give an iterable of batches, an array, an .npz path or a factory"
        )


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
        return {path.stem: loaded} if isinstance(loaded, np.ndarray) else {k: loaded[k] for k in loaded.files}
    except ValueError as error:
        if "pickle" in str(error).lower():
            raise UnsafeFile(f"{path} holds pickled objects, which could run code; save plain arrays with numpy.savez") from error
        raise DataError(f"{path} cannot be read as arrays: {error}") from error
    except (OSError, EOFError, KeyError) as error:
        raise DataError(f"{path} cannot be read as arrays: {error}") from error
    except Exception as error:  # zipfile.BadZipFile and relatives
        raise DataError(f"{path} is damaged: {error}; write it again with numpy.savez") from error


def _batch(raw: Any, inputs: tuple[InputInfo, ...], index: int) -> tuple[Batch, tuple[str, ...]]:
    """Bring one raw batch into form and check it."""
    notes: tuple[str, ...] = ()
    known = [i.name for i in inputs]
    if isinstance(raw, Mapping) and hasattr(raw, "keys"):
        table = {str(k): raw[k] for k in raw.keys()}  # noqa: SIM118
        batch: Batch = {k: v for k, v in table.items() if not known or k in known}
        extra = [k for k in table if k not in batch]
        if not batch:
            raise DataError(f"calibration batch {index} has keys {list(table)}, and the model takes {known}")
        if extra:
            notes = (f"calibration keys that are not inputs of the model were left out: {', '.join(extra)}",)
    elif isinstance(raw, (tuple, list)):
        batch = tuple(raw)
        if known and len(batch) > len(known):
            notes = (f"calibration batches have {len(batch)} items and the model takes {len(known)}: the rest (labels?) was left out",)
            batch = batch[: len(known)]
    else:
        batch = (raw,)
    _check(batch, inputs, index)
    return batch, notes


def _check(batch: Batch, inputs: tuple[InputInfo, ...], index: int) -> None:
    expected = {i.name: i for i in inputs}
    for name, array in named(batch, inputs):
        if not hasattr(array, "shape") or not hasattr(array, "dtype"):
            raise DataError(f"calibration batch {index}, input {name!r}: {type(array).__name__} is no array; give NumPy arrays or tensors")
        info = expected.get(name)
        shape = tuple(int(d) for d in array.shape)
        if (
            info is not None
            and info.shape is not None
            and (len(shape) != len(info.shape) or any(e is not None and e != g for e, g in zip(info.shape, shape, strict=True)))
        ):
            want = "(" + ", ".join("any" if d is None else str(d) for d in info.shape) + ")"
            raise DataError(f"calibration batch {index}, input {name!r}: expected shape {want}, got {shape}")
        if not _finite(array):
            raise DataError(f"calibration batch {index}, input {name!r} holds NaN or Inf; remove those samples")


def _finite(array: Any) -> bool:
    xp = array_namespace(array)
    if isinstance(array, np.ndarray) and array.dtype.kind == "V":
        # bfloat16 and the 8-bit floats of ml_dtypes are no dtypes of the Array API standard.
        array = array.astype(np.float32)
    floating = xp.isdtype(array.dtype, ("real floating", "complex floating"))
    return not floating or bool(xp.all(xp.isfinite(array)))


def named(batch: Batch, inputs: tuple[InputInfo, ...]) -> list[tuple[str, Any]]:
    """Return (input name, array) pairs of a batch, in its order.

    Raises:
        DataError: If a name is not an input of the model.
    """
    if isinstance(batch, Mapping):
        known = [i.name for i in inputs]
        for name in batch:
            if known and name not in known:
                raise DataError(f"{name!r} is not an input of the model{nearest(str(name), known)}")
        return list(batch.items())
    return [(inputs[i].name if i < len(inputs) else f"input {i}", a) for i, a in enumerate(batch)]


def numpy_batch(batch: Batch) -> Batch:
    """Return the batch with every array as NumPy."""
    if isinstance(batch, Mapping):
        return {k: to_numpy(v) for k, v in batch.items()}
    return tuple(to_numpy(v) for v in batch)


def rows(batch: Batch) -> int:
    """Number of samples in a batch: the length of its first array's first axis."""
    first = next(iter(batch.values() if isinstance(batch, Mapping) else batch))
    return int(first.shape[0]) if len(first.shape) else 1
