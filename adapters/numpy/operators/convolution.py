"""Convolution by im2col in bounded scratch memory, on channels-last memory.

Values keep ONNX's shape (N, C, ...), but a convolution writes channels-last memory and returns a transposed view:
element-wise operators keep that memory order, and the next convolution copies whole runs of channels instead of
single values. No layout pass is needed, and nothing else in the graph notices.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from .linear import activate
from .registry import Build, Kernel, compiled


@dataclass(frozen=True, slots=True)
class Geometry:
    """Where a window goes: kernel, strides, dilations and padding per spatial axis."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]
    auto_pad: str = "NOTSET"
    ceil_mode: int = 0

    @classmethod
    def read(cls, build: Build, kernel: tuple[int, ...]) -> Geometry:
        """Read a node's attributes; ones and zeros where they are left out."""
        n = len(kernel)
        return cls(
            kernel,
            tuple(build.get("strides", (1,) * n)),
            tuple(build.get("dilations", (1,) * n)),
            tuple(build.get("pads", (0,) * (2 * n))),
            build.get("auto_pad", "NOTSET"),
            build.get("ceil_mode", 0),
        )

    def padding(self, spatial: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
        """Return (before, after) per axis for an input of this size."""
        n = len(self.kernel)
        if self.auto_pad == "VALID":
            return ((0, 0),) * n
        if self.auto_pad in ("SAME_UPPER", "SAME_LOWER"):
            pairs = []
            for size, k, s, d in zip(spatial, self.kernel, self.strides, self.dilations, strict=True):
                total = max((-(-size // s) - 1) * s + (k - 1) * d + 1 - size, 0)
                less, more = total // 2, total - total // 2
                pairs.append((less, more) if self.auto_pad == "SAME_UPPER" else (more, less))
            return tuple(pairs)
        return tuple(zip(self.pads[:n], self.pads[n:], strict=True))

    def outputs(self, spatial: tuple[int, ...], padding: tuple[tuple[int, int], ...]) -> tuple[int, ...]:
        """Return the output size per axis."""
        sizes = []
        for size, k, s, d, (before, after) in zip(spatial, self.kernel, self.strides, self.dilations, padding, strict=True):
            room = size + before + after - (k - 1) * d - 1
            count = (-(-room // s) if self.ceil_mode else room // s) + 1
            # With ceil_mode a window must not begin in the padding behind the input.
            if self.ceil_mode and (count - 1) * s >= size + before:
                count -= 1
            sizes.append(count)
        return tuple(sizes)


def channels_last(x: np.ndarray) -> np.ndarray:
    """View (N, C, ...) as (N, ..., C)."""
    return x.transpose(0, *range(2, x.ndim), 1)


def channels_first(x: np.ndarray) -> np.ndarray:
    """View (N, ..., C) as (N, C, ...)."""
    return x.transpose(0, x.ndim - 1, *range(1, x.ndim - 1))


def padded(x: np.ndarray, padding: tuple[tuple[int, int], ...], fill: Any = 0) -> np.ndarray:
    """Return channels-last ``x`` in contiguous memory with its border filled."""
    if not any(b or a for b, a in padding):
        return np.ascontiguousarray(x)
    sizes = [s + b + a for s, (b, a) in zip(x.shape[1:-1], padding, strict=True)]
    result = np.full((x.shape[0], *sizes, x.shape[-1]), fill, dtype=x.dtype)
    result[(slice(None), *(slice(b, b + s) for s, (b, _) in zip(x.shape[1:-1], padding, strict=True)))] = x
    return result


def windows(x: np.ndarray, geometry: Geometry, outputs: tuple[int, ...]) -> np.ndarray:
    """View padded channels-last ``x`` as (N, outputs..., kernel..., C) without a copy."""
    steps = x.strides[1:-1]
    return as_strided(
        x,
        (x.shape[0], *outputs, *geometry.kernel, x.shape[-1]),
        (
            x.strides[0],
            *(st * s for st, s in zip(steps, geometry.strides, strict=True)),
            *(st * d for st, d in zip(steps, geometry.dilations, strict=True)),
            x.strides[-1],
        ),
        writeable=False,
    )


def pieces(view: np.ndarray, row_bytes: int, axes: int, scratch: int) -> Iterator[tuple[tuple[slice, ...], int]]:
    """Cut (N, first spatial axis) so that a piece's rows fit into ``scratch`` bytes; yield index and number of rows."""
    images, lines = view.shape[0], view.shape[1]
    inner = math.prod(view.shape[2 : 1 + axes])
    per_image = lines * inner
    step = max(1, scratch // max(1, per_image * row_bytes))
    if step > 1 or per_image * row_bytes <= scratch:
        for n in range(0, images, step):
            count = min(step, images - n)
            yield (slice(n, n + count),), count * per_image
        return
    depth = max(1, scratch // max(1, inner * row_bytes))
    for n in range(images):
        for r in range(0, lines, depth):
            count = min(depth, lines - r)
            yield (slice(n, n + 1), slice(r, r + count)), count * inner


def convolve(
    x: np.ndarray,
    geometry: Geometry,
    channels: int,
    groups: int,
    product: Callable[[np.ndarray, np.ndarray], object],
    finish: Callable[[np.ndarray], None],
    scratch: int,
    fill: Any = 0,
    dtype: Any = None,
) -> np.ndarray:
    """Run a convolution piece by piece.

    Args:
        x: (N, C, ...), float32 (or float64).
        geometry: The windows.
        channels: Output channels.
        groups: Groups; product gets (groups, rows, K) and (groups, rows, channels / groups) where this exceeds 1.
        product: Writes the product of the rows, shape (rows, K), with the weight into its second argument.
        finish: Works in place on (rows, channels): bias, activation, requantization.
        scratch: Upper bound of scratch memory in bytes.
        fill: Value of the padding.
        dtype: Type of the result; the input's where None.

    Returns:
        (N, channels, ...) as a view of channels-last memory.
    """
    spatial = x.shape[2:]
    padding = geometry.padding(spatial)
    outputs = geometry.outputs(spatial, padding)
    source = padded(channels_last(x), padding, fill)
    view = windows(source, geometry, outputs)
    n = len(outputs)
    out = np.empty((x.shape[0], *outputs, channels), dtype=dtype or x.dtype)
    depth = math.prod(geometry.kernel) * x.shape[1]
    pointwise = math.prod(geometry.kernel) == 1 and all(s == 1 for s in geometry.strides)
    for index, rows in pieces(view, depth * x.itemsize, n, scratch):
        target = out[index].reshape(rows, channels)
        if groups == 1:
            product((source[index] if pointwise else view[index]).reshape(rows, depth), target)
        else:
            split = view[index].reshape(rows, depth // x.shape[1], groups, x.shape[1] // groups)
            columns = np.ascontiguousarray(split.transpose(2, 0, 1, 3)).reshape(groups, rows, depth // groups)
            product(columns, target.reshape(rows, groups, channels // groups).transpose(1, 0, 2))
        finish(target)
    return channels_first(out)


def depthwise(x: np.ndarray, weight: np.ndarray, geometry: Geometry, finish: Callable[[np.ndarray], None], fill: Any = 0) -> np.ndarray:
    """Convolve each channel by itself: shifted products, whole rows of (width, channel) at a time.

    Args:
        x: (N, C, ...).
        weight: (kernel..., C).
        geometry: The windows.
        finish: Works in place on (rows, channels).
        fill: Value of the padding.
    """
    spatial = x.shape[2:]
    padding = geometry.padding(spatial)
    outputs = geometry.outputs(spatial, padding)
    source = padded(channels_last(x), padding, fill)
    view = windows(source, geometry, outputs)
    n = len(outputs)
    out = np.empty((x.shape[0], *outputs, x.shape[1]), dtype=x.dtype)
    wide = np.broadcast_to(weight[..., None, :], (*geometry.kernel, outputs[-1], x.shape[1])).astype(x.dtype, copy=True)
    product = np.empty((1, *out.shape[1:]), dtype=x.dtype)
    for i in range(x.shape[0]):
        piece = out[i : i + 1]
        for step, offset in enumerate(np.ndindex(*geometry.kernel)):
            shifted = view[(slice(i, i + 1), *(slice(None),) * n, *offset)]
            if step:
                np.multiply(shifted, wide[offset], out=product)
                piece += product
            else:
                np.multiply(shifted, wide[offset], out=piece)
        finish(piece.reshape(-1, x.shape[1]))
    return channels_first(out)


@compiled("Conv")
def conv(build: Build) -> Kernel:
    """Convolution with groups, strides, dilations, any padding, any number of spatial axes, an activation fused."""
    groups = build.get("group", 1)
    activation = build.get("activation", "")
    known = build.constant(1)
    panel = None if known is None else panel_of(known, groups)

    def run(x: np.ndarray, w: np.ndarray, b: np.ndarray | None = None) -> np.ndarray:
        geometry = Geometry.read(build, w.shape[2:])

        def finish(y: np.ndarray) -> None:
            if b is not None:
                y += b
            activate(y, activation)

        weight = panel if panel is not None else panel_of(w, groups)
        if groups == x.shape[1] and groups == w.shape[0]:
            return depthwise(x, weight.reshape(groups, *geometry.kernel).transpose(*range(1, w.ndim - 1), 0), geometry, finish)
        return convolve(x, geometry, w.shape[0], groups, lambda rows, out: np.matmul(rows, weight, out=out), finish, build.scratch)

    return run


def panel_of(w: np.ndarray, groups: int) -> np.ndarray:
    """Lay a weight (O, C / g, kernel...) out as (kernel * C, O), or (g, kernel * C / g, O / g)."""
    o, c = w.shape[:2]
    last = w.transpose(*range(2, w.ndim), 1, 0).reshape(-1, c, o)
    if groups == 1:
        return np.ascontiguousarray(last.reshape(-1, o))
    split = last.reshape(-1, c, groups, o // groups).transpose(2, 0, 1, 3)
    return np.ascontiguousarray(split.reshape(groups, -1, o // groups))
