"""Resize and Upsample: each axis is a sparse matrix of a few taps per output position, applied by gathering."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from octavo.adapters.numpy.kernels.registry import operator


def _source(n_in: int, n_out: int, scale: float, mode: str, roi: tuple[float, float]) -> np.ndarray:
    """Return where each output position lies in the input, float64."""
    x = np.arange(n_out, dtype=np.float64)
    length = scale * n_in  # not rounded to whole pixels
    if mode == "align_corners":
        return np.zeros(n_out) if n_out == 1 else x * (n_in - 1) / (length - 1)
    if mode == "asymmetric":
        return x / scale
    if mode == "tf_half_pixel_for_nn":
        return (x + 0.5) / scale
    if mode == "tf_crop_and_resize":
        start, end = roi
        return (
            start * (n_in - 1) + x * (end - start) * (n_in - 1) / (length - 1)
            if n_out > 1
            else np.full(1, 0.5 * (start + end) * (n_in - 1))
        )
    if mode == "pytorch_half_pixel":
        return (x + 0.5) / scale - 0.5 if length > 1 else np.full(n_out, -0.5)
    if mode == "half_pixel_symmetric":
        adjustment = n_out / length
        return n_in / 2 * (1 - adjustment) + (x + 0.5) / scale - 0.5
    return (x + 0.5) / scale - 0.5


_ROUND: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}


def _cubic(d: np.ndarray, a: float) -> np.ndarray:
    """Keys' cubic convolution kernel at distance d."""
    d = np.abs(d)
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))


def _linear(d: np.ndarray) -> np.ndarray:
    return np.asarray(np.maximum(0.0, 1 - np.abs(d)))


def _taps(
    x: np.ndarray, mode: str, scale: float, n_in: int, a: float, antialias: bool, exclude: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Return input indices and weights, each (outputs, taps)."""
    stretch = min(scale, 1.0) if antialias else 1.0
    reach = (1 if mode == "linear" else 2) / stretch
    first = np.floor(x - reach).astype(np.int64) + 1
    count = math.ceil(2 * reach) + (1 if antialias and stretch < 1 else 0)
    index = first[:, None] + np.arange(count)
    distance = (index - x[:, None]) * stretch
    weight = _linear(distance) if mode == "linear" else _cubic(distance, a)
    if exclude or (antialias and stretch < 1):
        weight = np.where((index >= 0) & (index < n_in), weight, 0.0) if exclude else weight
        weight = weight / weight.sum(axis=1, keepdims=True)
    return np.clip(index, 0, n_in - 1), weight


def _axis(x: np.ndarray, axis: int, index: np.ndarray, weight: np.ndarray) -> np.ndarray:
    shape = [-1 if i == axis else 1 for i in range(x.ndim)]
    total: np.ndarray | None = None
    for tap in range(index.shape[1]):
        part = np.take(x, index[:, tap], axis=axis) * weight[:, tap].reshape(shape)
        total = part if total is None else total + part
    assert total is not None
    return total


@operator("Resize", since=11)
def resize(
    x: np.ndarray, roi: np.ndarray | None = None, scales: np.ndarray | None = None, sizes: np.ndarray | None = None,
    *, mode: str = "nearest", coordinate_transformation_mode: str = "half_pixel", nearest_mode: str = "round_prefer_floor",
    cubic_coeff_a: float = -0.75, exclude_outside: int = 0, extrapolation_value: float = 0.0, antialias: int = 0,
    axes: tuple[int, ...] | None = None, keep_aspect_ratio_policy: str = "stretch",
) -> Any:  # fmt: skip
    """Resample along axes: nearest, linear or cubic."""
    along = tuple(a % x.ndim for a in axes) if axes is not None else tuple(range(x.ndim))
    if sizes is not None and sizes.size:
        wanted = [int(s) for s in sizes]
        ratios = [w / x.shape[a] for w, a in zip(wanted, along, strict=True)]
        if keep_aspect_ratio_policy != "stretch":
            ratio = (min if keep_aspect_ratio_policy == "not_larger" else max)(ratios)
            ratios = [ratio] * len(along)
            wanted = [math.floor(ratio * x.shape[a] + 0.5) for a in along]
    else:
        assert scales is not None
        ratios = [float(s) for s in scales]
        wanted = [math.floor(x.shape[a] * s) for a, s in zip(along, ratios, strict=True)]
    y = x.astype(np.float64) if mode != "nearest" else x
    outside = np.zeros((), bool)
    for i, (axis, n_out, ratio) in enumerate(zip(along, wanted, ratios, strict=True)):
        n_in = x.shape[axis]
        span = (
            (float(roi[i]), float(roi[i + len(along)]))
            if roi is not None and roi.size
            else (0.0, 1.0)
        )
        cropping = coordinate_transformation_mode == "tf_crop_and_resize"
        if n_in == n_out and ratio == 1.0 and not (cropping and span != (0.0, 1.0)):
            continue
        place = _source(n_in, n_out, ratio, coordinate_transformation_mode, span)
        if mode == "nearest":
            y = np.take(
                y, np.clip(_ROUND[nearest_mode](place), 0, n_in - 1).astype(np.int64), axis=axis
            )
        else:
            y = _axis(
                y,
                axis,
                *_taps(
                    place, mode, ratio, n_in, cubic_coeff_a, bool(antialias), bool(exclude_outside)
                ),
            )
        if cropping:
            beyond = (place < 0) | (place > n_in - 1)
            outside = outside | beyond.reshape([-1 if j == axis else 1 for j in range(x.ndim)])
    if outside.any():
        y = np.where(outside, y.dtype.type(extrapolation_value), y)
    if np.issubdtype(x.dtype, np.integer) and mode != "nearest":
        info = np.iinfo(x.dtype)
        y = np.clip(np.rint(y), info.min, info.max)
    return y.astype(x.dtype, copy=False)


@operator("Resize", since=10)
def resize_10(x: np.ndarray, scales: np.ndarray, *, mode: str = "nearest") -> Any:
    """Operator set 10: asymmetric coordinates, floor."""
    return resize(
        x,
        None,
        scales,
        mode=mode,
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )


@operator("Upsample")
def upsample(x: np.ndarray, scales: np.ndarray, *, mode: str = "nearest") -> Any:
    """The older name of Resize-10."""
    return resize_10(x, scales, mode=mode)
