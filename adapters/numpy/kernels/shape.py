"""Shapes, indices and data movement."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from .registry import Build, Kernel, compiled, operator


def _ints(given: np.ndarray | None, attribute: Sequence[int] | None) -> tuple[int, ...] | None:
    """Return axes that are an input in newer operator sets and an attribute in older ones."""
    if given is not None:
        return tuple(int(a) for a in np.asarray(given).reshape(-1))
    return None if attribute is None else tuple(attribute)


@operator("Constant")
def constant(
    *,
    value: Any = None,
    value_float: Any = None,
    value_int: Any = None,
    value_floats: Any = None,
    value_ints: Any = None,
) -> Any:
    """Return the attribute as an array."""
    if value is not None:
        return value
    if value_float is not None or value_floats is not None:
        return np.array(value_float if value_float is not None else value_floats, dtype=np.float32)
    return np.array(value_int if value_int is not None else value_ints, dtype=np.int64)


@operator("ConstantOfShape")
def constant_of_shape(shape: np.ndarray, *, value: Any = None) -> Any:
    """Fill an array."""
    fill = np.zeros(1, np.float32) if value is None else value
    return np.full(tuple(int(s) for s in shape), fill.reshape(-1)[0], dtype=fill.dtype)


@operator("Shape")
def shape_of(x: np.ndarray, *, start: int = 0, end: int | None = None) -> Any:
    """The shape, or a part of it, int64."""
    return np.array(x.shape[start:end], dtype=np.int64)


@operator("Size")
def size_of(x: np.ndarray) -> Any:
    """The number of elements, int64."""
    return np.array(x.size, dtype=np.int64)


@operator("Reshape")
def reshape(
    x: np.ndarray, given: np.ndarray | None = None, *, shape: Any = None, allowzero: int = 0
) -> Any:
    """Reshape; 0 keeps the input's length there unless ``allowzero``; -1 is inferred."""
    wanted = _ints(given, shape) or ()
    if not allowzero:
        wanted = tuple(x.shape[i] if s == 0 else s for i, s in enumerate(wanted))
    return x.reshape(wanted)


@operator("Flatten")
def flatten(x: np.ndarray, *, axis: int = 1) -> Any:
    """Reshape to a matrix, split before ``axis``."""
    rows = int(np.prod(x.shape[:axis])) if axis else 1
    return x.reshape(rows, x.size // rows if rows else int(np.prod(x.shape[axis:])))


@operator("Transpose")
def transpose(x: np.ndarray, *, perm: Any = None) -> Any:
    """Permute the axes; a view."""
    return x.transpose(perm)


@operator("Squeeze")
def squeeze(x: np.ndarray, given: np.ndarray | None = None, *, axes: Any = None) -> Any:
    """Drop axes of length 1."""
    return np.squeeze(x, axis=_ints(given, axes))


@operator("Unsqueeze")
def unsqueeze(x: np.ndarray, given: np.ndarray | None = None, *, axes: Any = None) -> Any:
    """Insert axes of length 1; positions count in the result."""
    return np.expand_dims(x, _ints(given, axes) or ())


@operator("Expand")
def expand(x: np.ndarray, shape: np.ndarray) -> Any:
    """Broadcast, both ways."""
    return np.broadcast_to(x, np.broadcast_shapes(x.shape, tuple(int(s) for s in shape)))


@operator("Concat")
def concat(*xs: np.ndarray, axis: int) -> Any:
    """Join along an axis."""
    return np.concatenate(xs, axis=axis)


@compiled("Split")
def split(build: Build) -> Kernel:
    """Cut along an axis, into given or equal lengths."""
    return partial(_split, len(build.node.outputs), **build.node.attributes)


def _split(
    outputs: int,
    x: np.ndarray,
    given: Any = None,
    *,
    axis: int = 0,
    split: Any = None,
    num_outputs: int | None = None,
) -> Any:
    lengths = _ints(given, split)
    if lengths is None:
        count = num_outputs or outputs
        step = -(-x.shape[axis] // count)
        return tuple(np.split(x, range(step, step * count, step), axis=axis))
    return tuple(np.split(x, np.cumsum(lengths)[:-1], axis=axis))


@operator("Slice")
def slice_(
    x: np.ndarray,
    start: Any = None,
    end: Any = None,
    along: Any = None,
    step: Any = None,
    *,
    starts: Any = None,
    ends: Any = None,
    axes: Any = None,
) -> Any:
    """Slice along axes; a view."""
    first, last = _ints(start, starts) or (), _ints(end, ends) or ()
    where = _ints(along, axes) or tuple(range(len(first)))
    by = _ints(step, None) or (1,) * len(first)
    index: list[Any] = [slice(None)] * x.ndim
    for a, b, axis, s in zip(first, last, where, by, strict=True):
        n = x.shape[axis]
        if s > 0:
            index[axis] = slice(a, b, s)
        else:
            # Python reads -1 as "the last one"; ONNX's end before the first element is None here.
            low = b + n if b < 0 else b
            index[axis] = slice(min(a, n - 1) if a >= 0 else a, None if low < 0 else low, s)
    return x[tuple(index)]


@operator("Gather")
def gather(x: np.ndarray, indices: np.ndarray, *, axis: int = 0) -> Any:
    """Take slices along an axis; negative indices count from the end."""
    return np.take(x, indices, axis=axis)


@operator("GatherElements")
def gather_elements(x: np.ndarray, indices: np.ndarray, *, axis: int = 0) -> Any:
    """Take single elements along an axis."""
    return np.take_along_axis(x, np.where(indices < 0, indices + x.shape[axis], indices), axis=axis)


@operator("GatherND")
def gather_nd(x: np.ndarray, indices: np.ndarray, *, batch_dims: int = 0) -> Any:
    """Take slices by index tuples."""
    depth = indices.shape[-1]
    batch = tuple(
        np.arange(n).reshape([-1 if i == axis else 1 for i in range(indices.ndim - 1)])
        for axis, n in enumerate(indices.shape[:batch_dims])
    )
    return x[(*batch, *(indices[..., i] for i in range(depth)))]


_SCATTER: dict[str, Any] = {"add": np.add, "mul": np.multiply, "max": np.maximum, "min": np.minimum}


@operator("ScatterElements", "Scatter")
def scatter_elements(
    x: np.ndarray,
    indices: np.ndarray,
    updates: np.ndarray,
    *,
    axis: int = 0,
    reduction: str = "none",
) -> Any:
    """Write single elements along an axis."""
    y = np.array(x)
    grid: list[Any] = list(np.indices(indices.shape, sparse=True))
    grid[axis % x.ndim] = np.where(indices < 0, indices + x.shape[axis], indices)
    if reduction == "none":
        y[tuple(grid)] = updates
    else:
        _SCATTER[reduction].at(y, tuple(grid), updates)
    return y


@operator("ScatterND")
def scatter_nd(
    x: np.ndarray, indices: np.ndarray, updates: np.ndarray, *, reduction: str = "none"
) -> Any:
    """Write slices by index tuples."""
    y = np.array(x)
    where = tuple(indices[..., i] for i in range(indices.shape[-1]))
    if reduction == "none":
        y[where] = updates
    else:
        _SCATTER[reduction].at(y, where, updates)
    return y


@operator("Tile")
def tile(x: np.ndarray, repeats: np.ndarray) -> Any:
    """Repeat along each axis."""
    return np.tile(x, tuple(int(r) for r in repeats))


@operator("Range")
def range_(start: np.ndarray, limit: np.ndarray, delta: np.ndarray) -> Any:
    """start, start + delta, ... below limit."""
    return np.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype)


@operator("OneHot")
def one_hot(indices: np.ndarray, depth: np.ndarray, values: np.ndarray, *, axis: int = -1) -> Any:
    """values[1] at the index, values[0] elsewhere."""
    n = int(np.asarray(depth).reshape(()))
    hot = np.expand_dims(np.mod(indices, n), axis) == np.arange(n).reshape(
        [-1 if i == axis % (indices.ndim + 1) else 1 for i in range(indices.ndim + 1)]
    )
    in_range = np.expand_dims((indices >= -n) & (indices < n), axis)
    return np.where(hot & in_range, values[1], values[0]).astype(values.dtype, copy=False)


@operator("Trilu")
def trilu(x: np.ndarray, k: np.ndarray | None = None, *, upper: int = 1) -> Any:
    """Upper or lower triangle."""
    return (np.triu if upper else np.tril)(x, 0 if k is None else int(np.asarray(k).reshape(())))


@operator("EyeLike")
def eye_like(x: np.ndarray, *, dtype: str | None = None, k: int = 0) -> Any:
    """Ones on a diagonal."""
    return np.eye(x.shape[0], x.shape[1], k=k, dtype=np.dtype(dtype) if dtype else x.dtype)


@operator("NonZero")
def non_zero(x: np.ndarray) -> Any:
    """Indices of the elements that are not zero, one column each."""
    return np.array(np.nonzero(x), dtype=np.int64).reshape(x.ndim, -1)


@operator("Compress")
def compress(x: np.ndarray, condition: np.ndarray, *, axis: int | None = None) -> Any:
    """Keep slices where the condition holds."""
    return np.compress(condition, x, axis=axis)


@operator("ReverseSequence")
def reverse_sequence(
    x: np.ndarray, lengths: np.ndarray, *, batch_axis: int = 1, time_axis: int = 0
) -> Any:
    """Reverse the first lengths[b] steps of each sequence."""
    y = x.swapaxes(0, time_axis) if time_axis else x
    if batch_axis not in (0, 1) or {batch_axis, time_axis} != {0, 1}:
        y = np.moveaxis(x, (time_axis, batch_axis), (0, 1))
    steps = np.arange(y.shape[0])[:, None]
    order = np.where(steps < lengths[None, :], lengths[None, :] - 1 - steps, steps)
    y = y[order, np.arange(y.shape[1])[None, :]]
    return np.moveaxis(y, (0, 1), (time_axis, batch_axis))


@operator("DepthToSpace")
def depth_to_space(x: np.ndarray, *, blocksize: int, mode: str = "DCR") -> Any:
    """Move channels into blocks of pixels."""
    n, c, h, w = x.shape
    b = blocksize
    if mode == "DCR":
        y = x.reshape(n, b, b, c // (b * b), h, w).transpose(0, 3, 4, 1, 5, 2)
    else:
        y = x.reshape(n, c // (b * b), b, b, h, w).transpose(0, 1, 4, 2, 5, 3)
    return y.reshape(n, c // (b * b), h * b, w * b)


@operator("SpaceToDepth")
def space_to_depth(x: np.ndarray, *, blocksize: int, mode: str = "DCR") -> Any:
    """Move blocks of pixels into channels."""
    n, c, h, w = x.shape
    b = blocksize
    order = (0, 3, 5, 1, 2, 4) if mode == "DCR" else (0, 1, 3, 5, 2, 4)
    return (
        x.reshape(n, c, h // b, b, w // b, b).transpose(order).reshape(n, c * b * b, h // b, w // b)
    )


_MODES: dict[str, Any] = {"reflect": "reflect", "edge": "edge", "wrap": "wrap"}


@operator("Pad")
def pad(
    x: np.ndarray, given: np.ndarray | None = None, value_in: np.ndarray | None = None, along: np.ndarray | None = None,
    *, mode: str = "constant", pads: Any = None, value: float = 0.0,
) -> Any:  # fmt: skip
    """Pad (or, with negative amounts, crop)."""
    amounts = _ints(given, pads) or ()
    axes = _ints(along, None) or tuple(range(x.ndim))
    widths, crop = [(0, 0)] * x.ndim, [slice(None)] * x.ndim
    for i, axis in enumerate(axes):
        before, after = amounts[i], amounts[i + len(axes)]
        widths[axis] = (max(before, 0), max(after, 0))
        crop[axis] = slice(max(-before, 0), x.shape[axis] - max(-after, 0))
    fill = x.dtype.type(value) if value_in is None else np.asarray(value_in).reshape(())
    inner = x[tuple(crop)]
    return (
        np.pad(inner, widths, mode="constant", constant_values=fill)
        if mode == "constant"
        else np.pad(inner, widths, mode=_MODES[mode])
    )
