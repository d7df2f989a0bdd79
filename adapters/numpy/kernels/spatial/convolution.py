"""Convolution by im2col in bounded scratch memory, on channels-last memory.

Values keep ONNX's shape (N, C, ...), but a convolution writes channels-last memory and returns a transposed view:
element-wise operators keep that memory order, and the next convolution copies whole runs of channels instead of
single values. No layout pass is needed, and nothing else in the graph notices.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from octavo.adapters.numpy.kernels.linear import activate
from octavo.adapters.numpy.kernels.parallel import scratch, spread
from octavo.adapters.numpy.kernels.registry import Build, Kernel, compiled


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
            for size, k, s, d in zip(
                spatial, self.kernel, self.strides, self.dilations, strict=True
            ):
                total = max((-(-size // s) - 1) * s + (k - 1) * d + 1 - size, 0)
                less, more = total // 2, total - total // 2
                pairs.append((less, more) if self.auto_pad == "SAME_UPPER" else (more, less))
            return tuple(pairs)
        return tuple(zip(self.pads[:n], self.pads[n:], strict=True))

    def outputs(
        self, spatial: tuple[int, ...], padding: tuple[tuple[int, int], ...]
    ) -> tuple[int, ...]:
        """Return the output size per axis."""
        sizes = []
        for size, k, s, d, (before, after) in zip(
            spatial, self.kernel, self.strides, self.dilations, padding, strict=True
        ):
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
    result[
        (slice(None), *(slice(b, b + s) for s, (b, _) in zip(x.shape[1:-1], padding, strict=True)))
    ] = x
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


def pieces(
    images: int, outputs: tuple[int, ...], row_bytes: int, scratch: int
) -> list[tuple[tuple[slice, ...], int]]:
    """Cut (images, outputs...) so that a piece's rows of ``row_bytes`` fit into ``scratch``: indices and numbers of rows."""
    lines, inner = outputs[0], math.prod(outputs[1:])
    per_image = max(1, lines * inner)
    whole = scratch // (per_image * row_bytes)
    if whole >= 1:
        return [
            ((slice(n, min(n + whole, images)),), (min(n + whole, images) - n) * per_image)
            for n in range(0, images, whole)
        ]
    depth = max(1, scratch // max(1, inner * row_bytes))
    return [
        ((slice(n, n + 1), slice(r, min(r + depth, lines))), (min(r + depth, lines) - r) * inner)
        for n in range(images)
        for r in range(0, lines, depth)
    ]


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

    finish: Callable[[np.ndarray], object]
    scratch: int
    threads: int = 1
    empty: Callable[..., np.ndarray] = np.empty
    dtype: Any = None


def convolve(
    x: np.ndarray,
    geometry: Geometry,
    channels: int,
    groups: int,
    product: Callable[[np.ndarray, np.ndarray], object],
    how: Run,
) -> np.ndarray:
    """Run a convolution piece by piece: im2col into this thread's scratch, product, finish.

    Args:
        x: (N, C, ...), float32 or float64.
        geometry: The windows.
        channels: Output channels.
        groups: Groups; product gets (groups, rows, K) and (groups, rows, channels / groups) where this exceeds 1.
        product: Writes the product of the rows, shape (rows, K), with the weight into its second argument.
        how: What else belongs to it.

    Returns:
        (N, channels, ...) as a view of channels-last memory.
    """
    spatial = x.shape[2:]
    padding = geometry.padding(spatial)
    outputs = geometry.outputs(spatial, padding)
    source = padded(channels_last(x), padding)
    view = windows(source, geometry, outputs)
    out = how.empty((x.shape[0], *outputs, channels), how.dtype or x.dtype)
    taps, width = math.prod(geometry.kernel), x.shape[1]
    pointwise = taps == 1 and all(s == 1 for s in geometry.strides)
    work = pieces(x.shape[0], outputs, max(1, taps * width * x.itemsize), how.scratch)

    def columns(index: tuple[slice, ...], rows: int) -> np.ndarray:
        if pointwise and groups == 1:
            return source[index].reshape(rows, width)
        part = view[index]
        if groups > 1:
            part = part.reshape(*part.shape[:-1], groups, width // groups)
            part = np.moveaxis(part, -2, 0)
        buffer = scratch(part.size * x.itemsize)[: part.size * x.itemsize].view(x.dtype)
        np.copyto(buffer.reshape(part.shape), part)
        return buffer.reshape(
            (rows, taps * width) if groups == 1 else (groups, rows, taps * width // groups)
        )

    def run(i: int) -> None:
        index, rows = work[i]
        target = out[index].reshape(rows, channels)
        split = (
            target
            if groups == 1
            else target.reshape(rows, groups, channels // groups).transpose(1, 0, 2)
        )
        product(columns(index, rows), split)
        how.finish(target)

    spread(len(work), run, how.threads)
    return channels_first(out)


def depthwise(x: np.ndarray, weight: np.ndarray, geometry: Geometry, how: Run) -> np.ndarray:
    """Convolve each channel by itself: shifted products, whole rows of (width, channel) at a time.

    Args:
        x: (N, C, ...).
        weight: (kernel..., C).
        geometry: The windows.
        how: What else belongs to it.
    """
    spatial = x.shape[2:]
    padding = geometry.padding(spatial)
    outputs = geometry.outputs(spatial, padding)
    source = padded(channels_last(x), padding)
    view = windows(source, geometry, outputs)
    n, width = len(outputs), x.shape[1]
    out = how.empty((x.shape[0], *outputs, width), x.dtype)
    wide = np.broadcast_to(weight[..., None, :], (*geometry.kernel, outputs[-1], width)).astype(
        x.dtype, copy=True
    )
    offsets = list(np.ndindex(*geometry.kernel))

    work = pieces(x.shape[0], outputs, width * x.itemsize, how.scratch // 8)

    def run(i: int) -> None:
        index, _ = work[i]
        piece = out[index]
        product = scratch(piece.nbytes)[: piece.nbytes].view(x.dtype).reshape(piece.shape)
        everything = (*index, *(slice(None),) * (n + 1 - len(index)))
        for step, offset in enumerate(offsets):
            np.multiply(view[(*everything, *offset)], wide[offset], out=product if step else piece)
            if step:
                piece += product
        how.finish(piece.reshape(-1, width))

    spread(len(work), run, how.threads)
    return channels_first(out)


@compiled("Conv", empty=True)
def conv(build: Build) -> Kernel:
    """Convolution with groups, strides, dilations, any padding, any number of spatial axes, an activation fused."""
    groups = build.get("group", 1)
    activation = build.get("activation", "")
    known = build.constant(1)
    panel = None if known is None else panel_of(known, groups)

    def run(x: np.ndarray, w: np.ndarray, b: np.ndarray | None = None, *, empty: Any) -> np.ndarray:
        geometry = Geometry.read(build, w.shape[2:])

        def finish(y: np.ndarray) -> None:
            if b is not None:
                y += b
            activate(y, activation)

        how = Run(finish, build.scratch, build.threads, empty)
        weight = panel if panel is not None else panel_of(w, groups)
        if groups > 1 and groups == x.shape[1] and groups == w.shape[0]:
            return depthwise(
                x,
                weight.reshape(groups, *geometry.kernel).transpose(*range(1, w.ndim - 1), 0),
                geometry,
                how,
            )
        return convolve(
            x, geometry, w.shape[0], groups, lambda rows, out: np.matmul(rows, weight, out=out), how
        )

    return run


def panel_of(w: np.ndarray, groups: int) -> np.ndarray:
    """Lay a weight (O, C / g, kernel...) out as (kernel * C, O), or (g, kernel * C / g, O / g)."""
    o, c = w.shape[:2]
    last = w.transpose(*range(2, w.ndim), 1, 0).reshape(-1, c, o)
    if groups == 1:
        return np.ascontiguousarray(last.reshape(-1, o))
    split = last.reshape(-1, c, groups, o // groups).transpose(2, 0, 1, 3)
    return np.ascontiguousarray(split.reshape(groups, -1, o // groups))
