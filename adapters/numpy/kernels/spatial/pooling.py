"""Pooling."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from octavo.adapters.numpy.kernels.registry import Build, Kernel, compiled, operator

from .convolution import Geometry, channels_first, channels_last, padded, windows


@operator("GlobalAveragePool")
def global_average_pool(x: np.ndarray) -> Any:
    """Mean over the spatial axes."""
    return x.mean(axis=tuple(range(2, x.ndim)), keepdims=True, dtype=x.dtype)


@operator("GlobalMaxPool")
def global_max_pool(x: np.ndarray) -> Any:
    """Maximum over the spatial axes."""
    return x.max(axis=tuple(range(2, x.ndim)), keepdims=True)


@operator("GlobalLpPool")
def global_lp_pool(x: np.ndarray, *, p: int = 2) -> Any:
    """p-norm over the spatial axes."""
    return (
        np.linalg.norm(x.reshape(*x.shape[:2], -1), ord=p, axis=2)
        .reshape(*x.shape[:2], *(1,) * (x.ndim - 2))
        .astype(x.dtype, copy=False)
    )


def _spread(
    x: np.ndarray, geometry: Geometry, fill: Any
) -> tuple[np.ndarray, tuple[int, ...], tuple[tuple[int, int], ...]]:
    """Return the windows (N, outputs..., kernel..., C) of the padded input; ceil_mode pads behind as far as windows reach."""
    spatial = x.shape[2:]
    padding = geometry.padding(spatial)
    outputs = geometry.outputs(spatial, padding)
    reach = tuple(
        (before, max(after, (o - 1) * s + (k - 1) * d + 1 - size - before))
        for (before, after), o, s, k, d, size in zip(
            padding,
            outputs,
            geometry.strides,
            geometry.kernel,
            geometry.dilations,
            spatial,
            strict=True,
        )
    )
    return windows(padded(channels_last(x), reach, fill), geometry, outputs), outputs, padding


@compiled("AveragePool")
def average_pool(build: Build) -> Kernel:
    """Mean over windows; padding counts where ``count_include_pad`` is set."""
    geometry = Geometry.read(build, tuple(build.get("kernel_shape", ())))
    include = build.get("count_include_pad", 0)

    def run(x: np.ndarray) -> np.ndarray:
        view, outputs, padding = _spread(x, geometry, 0)
        n = len(outputs)
        sums = view.sum(axis=tuple(range(n + 1, 2 * n + 1)), dtype=x.dtype)
        counts = np.ones(outputs, dtype=x.dtype)
        for axis, (size, o, (before, after)) in enumerate(
            zip(x.shape[2:], outputs, padding, strict=True)
        ):
            start = np.arange(o) * geometry.strides[axis]
            taps = start[:, None] + np.arange(geometry.kernel[axis]) * geometry.dilations[axis]
            low, high = (0, size + before + after) if include else (before, before + size)
            valid = ((taps >= low) & (taps < high)).sum(axis=1)
            counts *= valid.reshape([-1 if i == axis else 1 for i in range(n)]).astype(x.dtype)
        sums /= counts[..., None]
        return channels_first(sums)

    return run


@compiled("LpPool")
def lp_pool(build: Build) -> Kernel:
    """p-norm over windows."""
    geometry = Geometry.read(build, tuple(build.get("kernel_shape", ())))
    p = build.get("p", 2)

    def run(x: np.ndarray) -> np.ndarray:
        view, outputs, _ = _spread(np.abs(x) ** p, geometry, 0)
        n = len(outputs)
        return channels_first(view.sum(axis=tuple(range(n + 1, 2 * n + 1))) ** x.dtype.type(1 / p))

    return run


@compiled("MaxPool")
def max_pool(build: Build) -> Kernel:
    """Maximum over windows, and where it stands in the flattened input if that is asked for."""
    geometry = Geometry.read(build, tuple(build.get("kernel_shape", ())))
    column_major = build.get("storage_order", 0)
    wants_indices = len(build.node.outputs) > 1 and build.node.outputs[1]

    def run(x: np.ndarray) -> Any:
        lowest = np.iinfo(x.dtype).min if x.dtype.kind in "iu" else -np.inf
        view, outputs, padding = _spread(x, geometry, lowest)
        n = len(outputs)
        if not wants_indices:
            everything: tuple[Any, ...] = (slice(None),) * (n + 1)
            # Shifted maxima over whole rows; a reduction over the small window axes would be many times slower.
            result = np.array(view[(*everything, *(0,) * n)])
            for offset in list(np.ndindex(*geometry.kernel))[1:]:
                np.maximum(result, view[(*everything, *offset)], out=result)
            return channels_first(result)
        flat = np.moveaxis(view, -1, 1).reshape(
            x.shape[0], x.shape[1], *outputs, math.prod(geometry.kernel)
        )
        best = flat.argmax(axis=-1)
        taps = np.unravel_index(best, geometry.kernel)
        place = []
        for axis in range(n):
            start = (np.arange(outputs[axis]) * geometry.strides[axis] - padding[axis][0]).reshape(
                [-1 if i == axis else 1 for i in range(n)]
            )
            place.append(start + taps[axis] * geometry.dilations[axis])
        where = [np.clip(p, 0, s - 1) for p, s in zip(place, x.shape[2:], strict=True)]
        within = np.ravel_multi_index(where, x.shape[2:], order="F" if column_major else "C")
        plane = np.arange(x.shape[0] * x.shape[1]).reshape(
            x.shape[0], x.shape[1], *(1,) * n
        ) * math.prod(x.shape[2:])
        return np.take_along_axis(flat, best[..., None], axis=-1)[..., 0], (within + plane).astype(
            np.int64
        )

    return run
