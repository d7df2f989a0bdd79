"""A batch as the arrays that a graph takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from octavo.adapters.numpy.graph import Array
from octavo.adapters.numpy.kernels.casting import DType, dtype_of
from octavo.core.errors import DataError, nearest
from octavo.core.values.calls import Batch, Call, flat
from octavo.core.values.graph import InputInfo

_WHOLE = "iub"
_FLOATS = "fV"  # NumPy calls bfloat16 a void type


def feed(inputs: Sequence[InputInfo], batch: Batch | Any) -> list[Array]:
    """Return a batch as arrays in the order of the inputs.

    Raises:
        DataError: If names, number, rank or lengths are not the graph's.
    """
    names = tuple(info.name for info in inputs)
    if isinstance(batch, list):
        batch = tuple(batch)
    if isinstance(batch, (Mapping, tuple, Call)):
        batch = flat(batch, names)
    values = _in_order(names, batch)
    pairs = zip(inputs, values, strict=True)
    return [_checked(info, np.asarray(value)) for info, value in pairs]


def _in_order(names: tuple[str, ...], batch: Any) -> list[Any]:
    """Return a batch's values in the order of the inputs."""
    listed = ", ".join(names)
    if isinstance(batch, Mapping):
        for name in names:
            if name not in batch:
                raise DataError(
                    f"the batch lacks input {name!r}{nearest(name, batch)}; "
                    f"the model takes {listed}"
                )
        return [batch[name] for name in names]
    values = list(batch) if isinstance(batch, tuple) else [batch]
    if len(values) != len(names):
        raise DataError(
            f"the model takes {len(names)} input(s) ({listed}), the batch has {len(values)}"
        )
    return values


def _checked(info: InputInfo, array: Array) -> Array:
    """Return an array in the type of its input, if that and its shape fit."""
    wanted = dtype_of(info.dtype)
    if array.dtype != wanted:
        if not _converts(array.dtype, wanted):
            raise DataError(
                f"input {info.name!r} is {array.dtype}, the model takes {info.dtype}"
            )
        array = array.astype(wanted)
    if info.shape is not None and not _fits(array.shape, info.shape):
        sizes = ", ".join("any" if size is None else str(size) for size in info.shape)
        raise DataError(
            f"input {info.name!r} has shape {array.shape}, the model takes ({sizes})"
        )
    return array


def _converts(given: DType, wanted: DType) -> bool:
    """True between types of one kind, and from whole numbers to floats."""
    if given.kind == wanted.kind:
        return True
    if given.kind in _FLOATS:
        return wanted.kind in _FLOATS
    # Not to bfloat16, nor to booleans.
    return given.kind in _WHOLE and wanted.kind in "iuf"


def _fits(shape: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    if len(shape) != len(wanted):
        return False
    pairs = zip(shape, wanted, strict=True)
    return all(size is None or size == n for n, size in pairs)
