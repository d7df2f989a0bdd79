"""Reading and writing by index. Source: the ONNX operator specification of each name."""

from __future__ import annotations

from typing import Any

import numpy as np

from octavo.adapters.numpy.graph import Array

from .axes import along, integers, scalar_int
from .registry import operator


@operator("Slice")
def slice_(
    x: Array,
    start: Any = None,
    end: Any = None,
    axes_in: Any = None,
    step: Any = None,
    *,
    starts: Any = None,
    ends: Any = None,
    axes: Any = None,
) -> Any:
    """ONNX Slice: slice along axes; a view."""
    first = integers(start, starts) or ()
    last = integers(end, ends) or ()
    where = integers(axes_in, axes) or tuple(range(len(first)))
    by = integers(step) or (1,) * len(first)
    index = [slice(None)] * x.ndim
    for a, b, axis, s in zip(first, last, where, by, strict=True):
        index[axis] = slice(a, b, s) if s > 0 else _backwards(a, b, s, x.shape[axis])
    return x[tuple(index)]


def _backwards(start: int, end: int, step: int, length: int) -> slice:
    # Python reads -1 as "the last one"; ONNX's end before the first element is None here.
    stop = end + length if end < 0 else end
    first = min(start, length - 1) if start >= 0 else start
    return slice(first, None if stop < 0 else stop, step)


def _from_the_front(indices: Array, length: int) -> Array:
    """Return indices that may count from the end as indices that do not."""
    return np.where(indices < 0, indices + length, indices)


@operator("Gather")
def gather(x: Array, indices: Array, *, axis: int = 0) -> Any:
    """ONNX Gather: slices along an axis; negative indices count from the end."""
    return np.take(x, indices, axis=axis)


@operator("GatherElements")
def gather_elements(x: Array, indices: Array, *, axis: int = 0) -> Any:
    """ONNX GatherElements: single elements along an axis."""
    where = _from_the_front(indices, x.shape[axis])
    return np.take_along_axis(x, where, axis=axis)


@operator("GatherND")
def gather_nd(x: Array, indices: Array, *, batch_dims: int = 0) -> Any:
    """ONNX GatherND: slices by index tuples."""
    ndim = indices.ndim - 1
    batch = []
    for axis in range(batch_dims):
        places = np.arange(indices.shape[axis])
        batch.append(along(places, axis, ndim))
    return x[(*batch, *_columns(indices))]


def _columns(indices: Array) -> tuple[Array, ...]:
    return tuple(indices[..., i] for i in range(indices.shape[-1]))


_SCATTER: dict[str, Any] = {
    "add": np.add,
    "mul": np.multiply,
    "max": np.maximum,
    "min": np.minimum,
}


def _scattered(
    x: Array, where: tuple[Array, ...], updates: Array, reduction: str
) -> Array:
    """Return a copy of ``x`` with updates written, or combined with what is there."""
    y = np.array(x)
    if reduction == "none":
        y[where] = updates
    else:
        _SCATTER[reduction].at(y, where, updates)
    return y


@operator("ScatterElements", "Scatter")
def scatter_elements(
    x: Array, indices: Array, updates: Array, *, axis: int = 0, reduction: str = "none"
) -> Any:
    """ONNX ScatterElements: write single elements along an axis."""
    grid: list[Array] = list(np.indices(indices.shape, sparse=True))
    grid[axis % x.ndim] = _from_the_front(indices, x.shape[axis])
    return _scattered(x, tuple(grid), updates, reduction)


@operator("ScatterND")
def scatter_nd(
    x: Array, indices: Array, updates: Array, *, reduction: str = "none"
) -> Any:
    """ONNX ScatterND: write slices by index tuples."""
    return _scattered(x, _columns(indices), updates, reduction)


@operator("OneHot")
def one_hot(indices: Array, depth: Array, values: Array, *, axis: int = -1) -> Any:
    """ONNX OneHot: values[1] at the index, values[0] elsewhere."""
    n = scalar_int(depth)
    at = along(np.arange(n), axis, indices.ndim + 1)
    in_range = (indices >= -n) & (indices < n)
    is_hot = np.expand_dims(np.mod(indices, n), axis) == at
    is_hot &= np.expand_dims(in_range, axis)
    cold, hot = values
    return np.where(is_hot, hot, cold).astype(values.dtype, copy=False)


@operator("NonZero")
def non_zero(x: Array) -> Any:
    """ONNX NonZero: indices of the elements that are not zero, one column each."""
    indices = np.array(np.nonzero(x), dtype=np.int64)
    return indices.reshape(x.ndim, -1)


@operator("Compress")
def compress(x: Array, condition: Array, *, axis: int | None = None) -> Any:
    """ONNX Compress: slices where the condition holds."""
    return np.compress(condition, x, axis=axis)


@operator("ReverseSequence")
def reverse_sequence(
    x: Array, lengths: Array, *, batch_axis: int = 1, time_axis: int = 0
) -> Any:
    """ONNX ReverseSequence: reverse the first lengths[b] steps of each sequence."""
    axes = (time_axis, batch_axis)
    y = np.moveaxis(x, axes, (0, 1))
    count, batch = y.shape[:2]
    steps = np.arange(count)[:, None]
    length = lengths[None, :]
    order = np.where(steps < length, length - 1 - steps, steps)
    rows = np.arange(batch)[None, :]
    return np.moveaxis(y[order, rows], (0, 1), axes)
