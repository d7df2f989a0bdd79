"""Pooling. Source: the ONNX operator specification of each name."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from octavo.adapters.numpy.graph import Array
from octavo.adapters.numpy.kernels.axes import along
from octavo.adapters.numpy.kernels.registry import Build, Kernel, compiled, operator

from .geometry import (
    Geometry,
    Lengths,
    Padding,
    channels_first,
    channels_last,
    padded,
    windows,
)


def _spatial_axes(x: Array) -> tuple[int, ...]:
    return tuple(range(2, x.ndim))


@operator("GlobalAveragePool")
def global_average_pool(x: Array) -> Any:
    """ONNX GlobalAveragePool: mean over the spatial axes."""
    return x.mean(axis=_spatial_axes(x), keepdims=True, dtype=x.dtype)


@operator("GlobalMaxPool")
def global_max_pool(x: Array) -> Any:
    """ONNX GlobalMaxPool: maximum over the spatial axes."""
    return x.max(axis=_spatial_axes(x), keepdims=True)


@operator("GlobalLpPool")
def global_lp_pool(x: Array, *, p: int = 2) -> Any:
    """ONNX GlobalLpPool: p-norm over the spatial axes."""
    flat = x.reshape(*x.shape[:2], -1)
    norm = np.linalg.norm(flat, ord=p, axis=2)
    ones = (1,) * (x.ndim - 2)
    kept = norm.reshape(*norm.shape, *ones)
    return kept.astype(x.dtype, copy=False)


def _framed(x: Array, geometry: Geometry, fill: Any) -> tuple[Array, Lengths, Padding]:
    """Return the windows (N, outputs..., kernel..., C) of the padded input, outputs, padding."""
    spatial = x.shape[2:]
    padding = geometry.padding(spatial)
    outputs = geometry.outputs(spatial, padding)
    reached = geometry.reached(spatial, padding, outputs)
    source = padded(channels_last(x), reached, fill)
    return windows(source, geometry, outputs), outputs, padding


def _geometry(build: Build) -> Geometry:
    return Geometry.read(build, tuple(build.get("kernel_shape", ())))


def _window_axes(outputs: Lengths) -> tuple[int, ...]:
    n = len(outputs)
    return tuple(range(n + 1, 2 * n + 1))


@compiled("AveragePool")
def average_pool(build: Build) -> Kernel:
    """ONNX AveragePool: mean over windows; padding counts with ``count_include_pad``."""
    geometry = _geometry(build)
    include = bool(build.get("count_include_pad", 0))

    def run(x: Array) -> Array:
        view, outputs, padding = _framed(x, geometry, 0)
        sums = view.sum(axis=_window_axes(outputs), dtype=x.dtype)
        counts = np.ones(outputs, dtype=x.dtype)
        by_axis = _counted(geometry, x.shape[2:], padding, outputs, include)
        for axis, counted in enumerate(by_axis):
            column = along(counted, axis, len(outputs))
            counts *= column.astype(x.dtype)
        sums /= counts[..., None]
        return channels_first(sums)

    return run


def _counted(
    geometry: Geometry,
    spatial: Lengths,
    padding: Padding,
    outputs: Lengths,
    include: bool,
) -> list[Array]:
    """Return per axis how many positions of each window count."""
    found = []
    for size, axis, count, (before, after) in zip(
        spatial, geometry.axes(), outputs, padding, strict=True
    ):
        starts = np.arange(count) * axis.stride
        offsets = np.arange(axis.kernel) * axis.dilation
        taps = starts[:, None] + offsets
        # What lies behind the padding, where ceil_mode reaches, never counts.
        if include:
            low = 0
            high = before + size + after
        else:
            low = before
            high = before + size
        counts = (taps >= low) & (taps < high)
        found.append(counts.sum(axis=1))
    return found


@compiled("LpPool")
def lp_pool(build: Build) -> Kernel:
    """ONNX LpPool: p-norm over windows."""
    geometry = _geometry(build)
    p = build.get("p", 2)

    def run(x: Array) -> Array:
        view, outputs, _ = _framed(np.abs(x) ** p, geometry, 0)
        sums = view.sum(axis=_window_axes(outputs))
        return channels_first(sums ** x.dtype.type(1 / p))

    return run


@compiled("MaxPool")
def max_pool(build: Build) -> Kernel:
    """ONNX MaxPool: maximum over windows.

    With a second output, where it stands in the flattened input.
    """
    geometry = _geometry(build)
    order = "F" if build.get("storage_order", 0) else "C"
    written = build.node.outputs
    wants_indices = len(written) > 1 and bool(written[1])

    def run(x: Array) -> Any:
        lowest = np.iinfo(x.dtype).min if x.dtype.kind in "iu" else -np.inf
        view, outputs, padding = _framed(x, geometry, lowest)
        if wants_indices:
            return _maxima_and_indices(x, view, geometry, padding, order)
        everything = (slice(None),) * (len(outputs) + 1)
        # Shifted maxima over whole rows; a reduction over the small window axes would be many
        # times slower.
        first, *others = np.ndindex(*geometry.kernel)
        result = np.array(view[(*everything, *first)])
        for offset in others:
            np.maximum(result, view[(*everything, *offset)], out=result)
        return channels_first(result)

    return run


def _maxima_and_indices(
    x: Array, view: Array, geometry: Geometry, padding: Padding, order: Any
) -> tuple[Array, Array]:
    """Return the maxima of windows and their places in the flattened input, (N, C, outputs...)."""
    images, channels, *spatial = x.shape
    n = len(spatial)
    outputs = view.shape[1 : n + 1]
    taps = math.prod(geometry.kernel)
    channels_second = np.moveaxis(view, -1, 1)
    flat = channels_second.reshape(images, channels, *outputs, taps)
    best = flat.argmax(axis=-1)
    maxima = np.take_along_axis(flat, best[..., None], axis=-1)[..., 0]
    best_taps = np.unravel_index(best, geometry.kernel)
    place = _places(best_taps, spatial, geometry, padding)
    within = np.ravel_multi_index(place, tuple(spatial), order=order)
    ones = (1,) * n
    planes = np.arange(images * channels).reshape(images, channels, *ones)
    indices = within + planes * math.prod(spatial)
    return maxima, indices.astype(np.int64)


def _places(
    taps: tuple[Array, ...], spatial: list[int], geometry: Geometry, padding: Padding
) -> tuple[Array, ...]:
    """Return where taps of windows lie in the input, for each spatial axis."""
    n = len(spatial)
    places = []
    for i, axis in enumerate(geometry.axes()):
        count = taps[i].shape[i - n]
        before, _ = padding[i]
        start = np.arange(count) * axis.stride - before
        place = along(start, i, n) + taps[i] * axis.dilation
        # A window that holds nothing but padding has its maximum outside the input.
        places.append(np.clip(place, 0, spatial[i] - 1))
    return tuple(places)
