"""Convolution by im2col in bounded scratch memory, on channels-last memory.

Values keep ONNX's shape (N, C, ...), but a convolution writes channels-last memory and returns a
transposed view: element-wise operators keep that memory order, and the next convolution copies
whole runs of channels instead of single values. No layout pass is needed, and nothing else in the
graph notices.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from octavo.adapters.numpy.graph import Array
from octavo.adapters.numpy.kernels.linear import activate
from octavo.adapters.numpy.kernels.parallel import scratch, spread
from octavo.adapters.numpy.kernels.registry import Build, Kernel, compiled

from .geometry import Geometry, Lengths, channels_first, channels_last, padded, windows

Index = tuple[slice, ...]


def pieces(
    images: int, outputs: Lengths, row_bytes: int, scratch: int
) -> list[tuple[Index, int]]:
    """Cut (images, outputs...) so that a piece's rows fit into scratch memory.

    Args:
        images: How many.
        outputs: Size of the output.
        row_bytes: Of one output position.
        scratch: Bytes that a piece may take.

    Returns:
        Indices into (images, outputs...) and the number of rows that each takes.
    """
    lines = outputs[0]
    per_line = math.prod(outputs[1:])
    per_image = max(1, lines * per_line)
    images_at_once = scratch // (per_image * row_bytes)
    if images_at_once >= 1:
        parts = _parts(images, images_at_once)
        return [((part,), count * per_image) for part, count in parts]
    line_bytes = max(1, per_line * row_bytes)
    lines_at_once = max(1, scratch // line_bytes)
    found: list[tuple[Index, int]] = []
    for image, _ in _parts(images, 1):
        parts = _parts(lines, lines_at_once)
        found += [((image, part), count * per_line) for part, count in parts]
    return found


def _parts(length: int, step: int) -> Iterator[tuple[slice, int]]:
    """Yield slices of up to ``step``, and how long each is."""
    for first in range(0, length, step):
        end = min(first + step, length)
        yield slice(first, end), end - first


@dataclass(frozen=True, slots=True)
class Run:
    """How a convolution is run.

    Attributes:
        finish: Works in place on (rows, channels): bias, activation, requantization.
        scratch: Upper bound of scratch memory per thread, in bytes.
        threads: Threads that share the pieces.
        empty: Allocates the result.
        dtype: Type of the result; the input's where None.
    """

    finish: Callable[[Array], object]
    scratch: int
    threads: int = 1
    empty: Callable[..., Array] = np.empty
    dtype: Any = None


def _framed(x: Array, geometry: Geometry) -> tuple[Array, Array, Lengths]:
    """Return the padded channels-last input, its windows, and the output's size."""
    spatial = x.shape[2:]
    padding = geometry.padding(spatial)
    outputs = geometry.outputs(spatial, padding)
    source = padded(channels_last(x), padding)
    return source, windows(source, geometry, outputs), outputs


def _scratch_like(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    nbytes = math.prod(shape) * dtype.itemsize
    return scratch(nbytes)[:nbytes].view(dtype).reshape(shape)


def _columns(part: Array) -> Array:
    """Copy windows into this thread's scratch memory."""
    buffer = _scratch_like(part.shape, part.dtype)
    np.copyto(buffer, part)
    return buffer


def _grouped_columns(part: Array, groups: int) -> Array:
    """Copy windows into this thread's scratch memory, group by group."""
    *places, width = part.shape
    grouped = part.reshape(*places, groups, width // groups)
    return _columns(np.moveaxis(grouped, -2, 0))


def convolve(
    x: Array,
    geometry: Geometry,
    channels: int,
    groups: int,
    product: Callable[[Array, Array], object],
    how: Run,
) -> Array:
    """Run a convolution piece by piece: im2col into this thread's scratch, product, finish.

    Args:
        x: (N, C, ...), float32 or float64.
        geometry: The windows.
        channels: Output channels.
        groups: Groups; product gets (groups, rows, K) and (groups, rows, channels / groups) where
            this exceeds 1.
        product: Writes the product of the rows, shape (rows, K), with the weight into its second
            argument.
        how: What else belongs to it.

    Returns:
        (N, channels, ...) as a view of channels-last memory.
    """
    images, width = x.shape[:2]
    source, view, outputs = _framed(x, geometry)
    out = how.empty((images, *outputs, channels), how.dtype or x.dtype)
    taps = math.prod(geometry.kernel)
    depth = taps * width // groups
    row_bytes = max(1, taps * width * x.itemsize)
    work = pieces(images, outputs, row_bytes, how.scratch)
    # A kernel of one position reads the input itself: nothing is to be copied.
    is_dense = all(stride == 1 for stride in geometry.strides)
    is_pointwise = groups == 1 and taps == 1 and is_dense

    def run(i: int) -> None:
        index, rows = work[i]
        target = out[index].reshape(rows, channels)
        if is_pointwise:
            product(source[index].reshape(rows, width), target)
        elif groups == 1:
            columns = _columns(view[index])
            product(columns.reshape(rows, depth), target)
        else:
            columns = _grouped_columns(view[index], groups)
            split = target.reshape(rows, groups, channels // groups)
            product(columns.reshape(groups, rows, depth), split.transpose(1, 0, 2))
        how.finish(target)

    spread(len(work), run, how.threads)
    return channels_first(out)


def depthwise(x: Array, weight: Array, geometry: Geometry, how: Run) -> Array:
    """Convolve each channel by itself: shifted products, whole rows of (width, channel) at a time.

    Args:
        x: (N, C, ...).
        weight: (kernel..., C).
        geometry: The windows.
        how: What else belongs to it.
    """
    images, width = x.shape[:2]
    _, view, outputs = _framed(x, geometry)
    axes = len(outputs) + 1  # without the channels
    out = how.empty((images, *outputs, width), x.dtype)
    wide = _along_rows(weight, outputs[-1], x.dtype)
    first, *others = np.ndindex(*geometry.kernel)
    all_channels = slice(None)
    # An eighth of the scratch: output, product and the windows' rows stay in the cache together.
    work = pieces(images, outputs, width * x.itemsize, how.scratch // 8)

    def run(i: int) -> None:
        index, _ = work[i]
        rest = (slice(None),) * (axes - len(index))
        piece = out[index]
        product = _scratch_like(piece.shape, x.dtype)
        taps = view[(*index, *rest)]
        np.multiply(taps[(..., *first, all_channels)], wide[first], out=piece)
        for offset in others:
            np.multiply(taps[(..., *offset, all_channels)], wide[offset], out=product)
            piece += product
        how.finish(piece.reshape(-1, width))

    spread(len(work), run, how.threads)
    return channels_first(out)


def _along_rows(weight: Array, length: int, dtype: np.dtype[Any]) -> Array:
    """Repeat each tap's channels along a row, so that a product runs over the whole of it.

    Args:
        weight: (kernel..., C).
        length: Of the last spatial axis.
        dtype: Of the result.

    Returns:
        (kernel..., length, C).
    """
    *kernel, channels = weight.shape
    repeated = np.broadcast_to(weight[..., None, :], (*kernel, length, channels))
    return repeated.astype(dtype, copy=True)


@compiled("Conv", empty=True)
def conv(build: Build) -> Kernel:
    """ONNX Conv, with an activation fused where the graph was optimised.

    Groups, strides, dilations, any padding, any number of spatial axes.
    """
    groups = build.get("group", 1)
    activation = build.get("activation", "")
    known = build.constant(1)
    panel = None if known is None else panel_of(known, groups)

    def run(x: Array, w: Array, b: Array | None = None, *, empty: Any) -> Array:
        geometry = Geometry.read(build, w.shape[2:])

        def finish(y: Array) -> None:
            if b is not None:
                y += b
            activate(y, activation)

        how = Run(finish, build.scratch, build.threads, empty)
        weight = panel if panel is not None else panel_of(w, groups)
        channels = w.shape[0]
        is_depthwise = groups > 1 and groups == x.shape[1] == channels
        if is_depthwise:
            by_channel = weight.reshape(groups, *geometry.kernel)
            kernel_axes = range(1, by_channel.ndim)
            return depthwise(x, by_channel.transpose(*kernel_axes, 0), geometry, how)

        def product(rows: Array, out: Array) -> None:
            np.matmul(rows, weight, out=out)

        return convolve(x, geometry, channels, groups, product, how)

    return run


def panel_of(w: Array, groups: int) -> Array:
    """Lay a weight (O, C / g, kernel...) out as (kernel * C, O), or (g, kernel * C / g, O / g)."""
    taps_first = w.transpose(*range(2, w.ndim), 1, 0)
    return grouped_panel(taps_first, groups)


def grouped_panel(w: Array, groups: int) -> Array:
    """Lay a weight (kernel..., C / g, O) out as :func:`panel_of` does."""
    per_group, channels = w.shape[-2:]
    if groups == 1:
        return np.ascontiguousarray(w.reshape(-1, channels))
    width = channels // groups
    split = w.reshape(-1, per_group, groups, width)
    groups_first = split.transpose(2, 0, 1, 3)
    return np.ascontiguousarray(groups_first.reshape(groups, -1, width))
