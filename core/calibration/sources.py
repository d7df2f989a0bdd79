"""Raw batches out of whatever holds them: iterables, readers, arrays of samples, files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from array_api_compat import is_array_api_obj

from octavo.core.errors import DataError, UnsafeFile
from octavo.core.values.calls import Call, named_leaves
from octavo.core.values.trees import is_array, mapped

BATCH_SIZE = 32
"""Rows per batch where a whole array is given."""


def is_factory(source: Any) -> bool:
    """True for a function that makes a fresh iterable of batches each time it is called."""
    is_source = any(
        hasattr(source, known) for known in ("__iter__", "get_next", "shape")
    )
    return callable(source) and not is_source


def raw_batches(source: Any) -> Iterator[Any]:
    """Yield the batches of a source of any form but a factory, as they are.

    Arrays of libraries that are not of the Array API standard (TensorFlow's) become NumPy's.

    Raises:
        DataError: If it cannot be read.
    """
    for batch in _as_they_are(source):
        if isinstance(batch, Call):
            ordered, named = mapped((batch.args, dict(batch.kwargs)), _standard)
            yield Call(*ordered, **named)
        else:
            yield mapped(batch, _standard)


def _standard(leaf: Any) -> Any:
    """Return an array of a library that is not of the Array API standard as NumPy's."""
    is_foreign = is_array(leaf) and not is_array_api_obj(leaf)
    return np.asarray(leaf) if is_foreign and hasattr(leaf, "__array__") else leaf


def _as_they_are(source: Any) -> Iterator[Any]:
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
            f"calibration data of type {type(source).__name__} cannot be read; "
            "give an iterable of batches, an array, an .npz path or a factory"
        )


def _slices(source: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield some samples at a time of a mapping of names to arrays of samples.

    Plain values go with each of them.
    """
    # A BatchEncoding iterates over keys, an NpzFile has no items order.
    table = {str(k): source[k] for k in source.keys()}  # noqa: SIM118
    rows = {
        path: int(leaf.shape[0])
        for path, leaf in named_leaves(table)
        if _has_samples(leaf)
    }
    if len(set(rows.values())) > 1:
        raise DataError(
            f"calibration arrays differ in their number of samples: {rows}; the first axis counts "
            "samples. A mapping is a whole set of samples; give one batch as [batch]"
        )
    for start in range(0, max(rows.values(), default=0), BATCH_SIZE):
        cut = partial(_samples, slice(start, start + BATCH_SIZE))
        yield {name: mapped(value, cut) for name, value in table.items()}


def _has_samples(leaf: Any) -> bool:
    return is_array(leaf) and len(leaf.shape) > 0


def _samples(part: slice, leaf: Any) -> Any:
    """Return a part of an array's samples; what has none belongs to every batch."""
    return leaf[part] if _has_samples(leaf) else leaf


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read an .npz file, or a folder of .npy files, without pickle.

    Raises:
        DataError: If it is missing or damaged.
        UnsafeFile: If it holds pickled objects.
    """
    try:
        return _read_arrays(path)
    except ValueError as error:
        # NumPy refuses pickled objects with a plain ValueError, which only its text tells apart.
        if "pickle" in str(error).lower() and not _is_foreign(path):
            raise UnsafeFile(
                f"{path} holds pickled objects, which could run code; "
                "save plain arrays with numpy.savez"
            ) from error
        if _is_foreign(path):
            raise DataError(
                f"{path} is no .npz and no .npy file; write it with numpy.savez"
            ) from error
        raise DataError(f"{path} cannot be read as arrays: {error}") from error
    except (OSError, EOFError, KeyError) as error:
        raise DataError(f"{path} cannot be read as arrays: {error}") from error
    except Exception as error:  # zipfile.BadZipFile and relatives
        raise DataError(
            f"{path} is damaged: {error}; write it again with numpy.savez"
        ) from error


def _is_foreign(path: Path) -> bool:
    """Return whether a file is neither an array, nor an archive, nor a pickle: what is neither of
    the first two NumPy takes for a pickle."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(6)
    return not head.startswith((b"\x93NUMPY", b"PK", b"\x80"))


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    if path.is_dir():
        return {
            p.stem: np.load(p, allow_pickle=False) for p in sorted(path.glob("*.npy"))
        }
    loaded = np.load(path, allow_pickle=False)
    if isinstance(loaded, np.ndarray):
        return {path.stem: loaded}
    return {name: loaded[name] for name in loaded.files}
