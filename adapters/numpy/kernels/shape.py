"""Shapes and the movement of whole arrays. Source: the ONNX specification of each name."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np

from octavo.adapters.numpy.graph import Array

from .axes import integers, scalar_int
from .registry import Build, Kernel, compiled, operator


@operator("Constant")
def constant(
    *,
    value: Any = None,
    value_float: Any = None,
    value_int: Any = None,
    value_floats: Any = None,
    value_ints: Any = None,
) -> Any:
    """ONNX Constant: the attribute as an array."""
    if value is not None:
        return value
    for floats in (value_float, value_floats):
        if floats is not None:
            return np.array(floats, dtype=np.float32)
    whole = value_ints if value_int is None else value_int
    return np.array(whole, dtype=np.int64)


@operator("ConstantOfShape")
def constant_of_shape(shape: Array, *, value: Any = None) -> Any:
    """ONNX ConstantOfShape: an array of one number."""
    fill = np.zeros(1, np.float32) if value is None else value
    number = fill.reshape(-1)[0]
    return np.full(integers(shape) or (), number, dtype=fill.dtype)


@operator("Shape")
def shape_of(x: Array, *, start: int = 0, end: int | None = None) -> Any:
    """ONNX Shape: the shape, or a part of it, int64."""
    return np.array(x.shape[start:end], dtype=np.int64)


@operator("Size")
def size_of(x: Array) -> Any:
    """ONNX Size: the number of elements, int64."""
    return np.array(x.size, dtype=np.int64)


@operator("Reshape")
def reshape(
    x: Array, given: Array | None = None, *, shape: Any = None, allowzero: int = 0
) -> Any:
    """ONNX Reshape: 0 keeps the input's length there unless ``allowzero``; -1 is inferred."""
    wanted = integers(given, shape) or ()
    if not allowzero:
        wanted = tuple(x.shape[i] if s == 0 else s for i, s in enumerate(wanted))
    return x.reshape(wanted)


@operator("Flatten")
def flatten(x: Array, *, axis: int = 1) -> Any:
    """ONNX Flatten: reshape to a matrix, split before ``axis``."""
    rows = math.prod(x.shape[:axis]) if axis else 1
    columns = x.size // rows if rows else math.prod(x.shape[axis:])
    return x.reshape(rows, columns)


@operator("Transpose")
def transpose(x: Array, *, perm: Any = None) -> Any:
    """ONNX Transpose: permute the axes; a view."""
    return x.transpose(perm)


@operator("Squeeze")
def squeeze(x: Array, given: Array | None = None, *, axes: Any = None) -> Any:
    """ONNX Squeeze: drop axes of length 1."""
    return np.squeeze(x, axis=integers(given, axes))


@operator("Unsqueeze")
def unsqueeze(x: Array, given: Array | None = None, *, axes: Any = None) -> Any:
    """ONNX Unsqueeze: insert axes of length 1; positions count in the result."""
    return np.expand_dims(x, integers(given, axes) or ())


@operator("Expand")
def expand(x: Array, shape: Array) -> Any:
    """ONNX Expand: broadcast, both ways."""
    wanted = integers(shape) or ()
    return np.broadcast_to(x, np.broadcast_shapes(x.shape, wanted))


@operator("Concat")
def concat(*xs: Array, axis: int) -> Any:
    """ONNX Concat: join along an axis."""
    return np.concatenate(xs, axis=axis)


@compiled("Split")
def split(build: Build) -> Kernel:
    """ONNX Split: cut along an axis, into given or equal lengths."""
    return partial(_split, len(build.node.outputs), **build.node.attributes)


def _split(
    outputs: int,
    x: Array,
    given: Any = None,
    *,
    axis: int = 0,
    split: Any = None,
    num_outputs: int | None = None,
) -> Any:
    lengths = integers(given, split)
    if lengths is not None:
        ends: Any = np.cumsum(lengths)[:-1]
    else:
        count = num_outputs or outputs
        # The last part is shorter where the length is no multiple.
        step = -(-x.shape[axis] // count)
        ends = range(step, step * count, step)
    return tuple(np.split(x, ends, axis=axis))


@operator("Tile")
def tile(x: Array, repeats: Array) -> Any:
    """ONNX Tile: repeat along each axis."""
    return np.tile(x, integers(repeats) or ())


@operator("Range")
def range_(start: Array, limit: Array, delta: Array) -> Any:
    """ONNX Range: start, start + delta, ... below limit."""
    return np.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype)


@operator("Trilu")
def trilu(x: Array, k: Array | None = None, *, upper: int = 1) -> Any:
    """ONNX Trilu: the upper or lower triangle."""
    diagonal = 0 if k is None else scalar_int(k)
    return np.triu(x, diagonal) if upper else np.tril(x, diagonal)


@operator("EyeLike")
def eye_like(x: Array, *, dtype: str | None = None, k: int = 0) -> Any:
    """ONNX EyeLike: ones on a diagonal."""
    kind = np.dtype(dtype) if dtype else x.dtype
    return np.eye(x.shape[0], x.shape[1], k=k, dtype=kind)


@operator("DepthToSpace")
def depth_to_space(x: Array, *, blocksize: int, mode: str = "DCR") -> Any:
    """ONNX DepthToSpace: move channels into blocks of pixels."""
    n, channels, height, width = x.shape
    b = blocksize
    rest = channels // (b * b)
    if mode == "DCR":
        blocks = x.reshape(n, b, b, rest, height, width)
        order = (0, 3, 4, 1, 5, 2)
    else:
        blocks = x.reshape(n, rest, b, b, height, width)
        order = (0, 1, 4, 2, 5, 3)
    pixels = blocks.transpose(order)
    return pixels.reshape(n, rest, height * b, width * b)


@operator("SpaceToDepth")
def space_to_depth(x: Array, *, blocksize: int, mode: str = "DCR") -> Any:
    """ONNX SpaceToDepth: move blocks of pixels into channels."""
    n, channels, height, width = x.shape
    b = blocksize
    rows = height // b
    columns = width // b
    blocks = x.reshape(n, channels, rows, b, columns, b)
    order = (0, 3, 5, 1, 2, 4) if mode == "DCR" else (0, 1, 3, 5, 2, 4)
    turned = blocks.transpose(order)
    return turned.reshape(n, channels * b * b, rows, columns)


# ONNX and NumPy call these by the same names; NumPy's others are not ONNX's.
_PAD_MODES: dict[str, Any] = {"reflect": "reflect", "edge": "edge", "wrap": "wrap"}


@operator("Pad")
def pad(
    x: Array,
    given: Array | None = None,
    value_in: Array | None = None,
    axes_in: Array | None = None,
    *,
    mode: str = "constant",
    pads: Any = None,
    value: float = 0.0,
) -> Any:
    """ONNX Pad: pad (or, with negative amounts, crop)."""
    axes = integers(axes_in) or tuple(range(x.ndim))
    widths, crop = _borders(x.shape, axes, integers(given, pads) or ())
    inner = x[tuple(crop)]
    if mode != "constant":
        return np.pad(inner, widths, mode=_PAD_MODES[mode])
    if value_in is None:
        fill = x.dtype.type(value)
    else:
        fill = np.asarray(value_in).reshape(())
    return np.pad(inner, widths, mode="constant", constant_values=fill)


def _borders(
    shape: tuple[int, ...], axes: tuple[int, ...], amounts: tuple[int, ...]
) -> tuple[list[tuple[int, int]], list[slice]]:
    """Return what is added to each axis, and what is left of it before."""
    widths = [(0, 0)] * len(shape)
    crop = [slice(None)] * len(shape)
    for i, axis in enumerate(axes):
        before = amounts[i]
        after = amounts[i + len(axes)]
        widths[axis] = (max(before, 0), max(after, 0))
        crop[axis] = slice(max(-before, 0), shape[axis] - max(-after, 0))
    return widths, crop
