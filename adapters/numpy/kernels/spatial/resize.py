"""Resize and Upsample, as sparse matrices applied by gathering.

Each axis is a matrix of a few taps per output position. Source: the ONNX operator Resize.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from octavo.adapters.numpy.graph import Array
from octavo.adapters.numpy.kernels.axes import along, integers
from octavo.adapters.numpy.kernels.registry import operator

_WHOLE = (0.0, 1.0)  # the region of interest that is all of an axis


@dataclass(frozen=True, slots=True)
class _AxisPlan:
    """One axis to resample.

    Attributes:
        axis: Which.
        before: Its length.
        after: Its length in the result.
        scale: after / before, before rounding to whole positions.
        region: Start and end of the region of interest, as shares of the axis.
    """

    axis: int
    before: int
    after: int
    scale: float
    region: tuple[float, float] = _WHOLE


@dataclass(frozen=True, slots=True)
class _Sampling:
    """How one axis is resampled; the operator's attributes."""

    mode: str
    rounding: str
    cubic_a: float
    antialias: bool
    exclude_outside: bool


def _source(plan: _AxisPlan, coordinates: str) -> Array:
    """Return where each output position lies in the input, float64."""
    scale = plan.scale
    count = plan.after
    last = plan.before - 1
    length = scale * plan.before  # not rounded to whole pixels
    x = np.arange(count, dtype=np.float64)
    if coordinates == "align_corners":
        return np.zeros(count) if count == 1 else x * last / (length - 1)
    if coordinates == "asymmetric":
        return x / scale
    if coordinates == "tf_crop_and_resize":
        start, end = plan.region
        if count == 1:
            return np.full(1, 0.5 * (start + end) * last)
        return start * last + x * (end - start) * last / (length - 1)
    if coordinates == "pytorch_half_pixel" and length <= 1:
        return np.full(count, -0.5)
    centres = (x + 0.5) / scale
    if coordinates == "tf_half_pixel_for_nn":
        return centres
    if coordinates == "half_pixel_symmetric":
        adjustment = count / length
        return plan.before / 2 * (1 - adjustment) + centres - 0.5
    return centres - 0.5


_ROUND: dict[str, Callable[[Array], Array]] = {
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}


def _cubic(distance: Array, a: float) -> Array:
    """Keys' cubic convolution kernel: Keys 1981, with his parameter a."""
    d = np.abs(distance)
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    outer = np.where(d < 2, far, 0.0)
    return np.where(d <= 1, near, outer)


def _linear(distance: Array) -> Array:
    return np.asarray(np.maximum(0.0, 1 - np.abs(distance)))


def _taps(place: Array, plan: _AxisPlan, how: _Sampling) -> tuple[Array, Array]:
    """Return input indices and weights, each (outputs, taps)."""
    # Where an axis shrinks, antialiasing widens the kernel by as much.
    stretch = min(plan.scale, 1.0) if how.antialias else 1.0
    is_stretched = stretch < 1
    reach = (1 if how.mode == "linear" else 2) / stretch
    first = np.floor(place - reach).astype(np.int64) + 1
    count = math.ceil(2 * reach)
    if is_stretched:
        count += 1
    index = first[:, None] + np.arange(count)
    distance = (index - place[:, None]) * stretch
    if how.mode == "linear":
        weight = _linear(distance)
    else:
        weight = _cubic(distance, how.cubic_a)
    if how.exclude_outside:
        is_inside = (index >= 0) & (index < plan.before)
        weight = np.where(is_inside, weight, 0.0)
    if how.exclude_outside or is_stretched:
        weight = weight / weight.sum(axis=1, keepdims=True)
    return np.clip(index, 0, plan.before - 1), weight


def _weighted(x: Array, axis: int, index: Array, weight: Array) -> Array:
    """Return the weighted sum of an axis's taps."""
    total: Array | None = None
    for tap in range(index.shape[1]):
        taken = np.take(x, index[:, tap], axis=axis)
        part = taken * along(weight[:, tap], axis, x.ndim)
        total = part if total is None else total + part
    assert total is not None
    return total


def _resampled(x: Array, place: Array, plan: _AxisPlan, how: _Sampling) -> Array:
    if how.mode != "nearest":
        return _weighted(x, plan.axis, *_taps(place, plan, how))
    nearest = np.clip(_ROUND[how.rounding](place), 0, plan.before - 1)
    index = nearest.astype(np.int64)
    return np.asarray(np.take(x, index, axis=plan.axis))


def _plans(
    x: Array,
    axes: tuple[int, ...],
    scales: Array | None,
    sizes: Array | None,
    policy: str,
) -> list[_AxisPlan]:
    """Return what becomes of each axis, from sizes where they are given, else from scales."""
    lengths = [x.shape[axis] for axis in axes]
    wanted = integers(sizes)
    if not wanted:
        assert scales is not None
        ratios = [float(s) for s in scales]
        scaled = zip(lengths, ratios, strict=True)
        wanted = tuple(math.floor(length * ratio) for length, ratio in scaled)
    else:
        pairs = zip(wanted, lengths, strict=True)
        ratios = [after / before for after, before in pairs]
        if policy != "stretch":
            ratio = min(ratios) if policy == "not_larger" else max(ratios)
            ratios = [ratio] * len(axes)
            wanted = tuple(math.floor(ratio * length + 0.5) for length in lengths)
    rows = zip(axes, lengths, wanted, ratios, strict=True)
    return [_AxisPlan(*row) for row in rows]


def _in_regions(plans: list[_AxisPlan], roi: Array) -> list[_AxisPlan]:
    """Return the plans for a region of interest: all starts, then all ends."""
    regions = np.asarray(roi, np.float64).reshape(2, -1).T
    pairs = zip(plans, regions, strict=True)
    return [replace(plan, region=tuple(region)) for plan, region in pairs]


@operator("Resize", since=11)
def resize(
    x: Array,
    roi: Array | None = None,
    scales: Array | None = None,
    sizes: Array | None = None,
    *,
    mode: str = "nearest",
    coordinate_transformation_mode: str = "half_pixel",
    nearest_mode: str = "round_prefer_floor",
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    antialias: int = 0,
    axes: tuple[int, ...] | None = None,
    keep_aspect_ratio_policy: str = "stretch",
) -> Any:
    """ONNX Resize-11 and later: resample along axes, nearest, linear or cubic."""
    coordinates = coordinate_transformation_mode
    is_cropping = coordinates == "tf_crop_and_resize"
    how = _Sampling(
        mode=mode,
        rounding=nearest_mode,
        cubic_a=cubic_coeff_a,
        antialias=bool(antialias),
        exclude_outside=bool(exclude_outside),
    )
    chosen = range(x.ndim) if axes is None else [axis % x.ndim for axis in axes]
    plans = _plans(x, tuple(chosen), scales, sizes, keep_aspect_ratio_policy)
    if is_cropping and roi is not None and roi.size:
        plans = _in_regions(plans, roi)
    y = x if mode == "nearest" else x.astype(np.float64)
    outside = np.zeros((), bool)
    for plan in plans:
        is_same = plan.before == plan.after and plan.scale == 1.0
        if is_same and plan.region == _WHOLE:
            continue
        place = _source(plan, coordinates)
        y = _resampled(y, place, plan, how)
        if is_cropping:
            beyond = (place < 0) | (place > plan.before - 1)
            outside = outside | along(beyond, plan.axis, x.ndim)
    if outside.any():
        y = np.where(outside, y.dtype.type(extrapolation_value), y)
    return _in_type_of(x, y)


def _in_type_of(x: Array, y: Array) -> Array:
    """Return a result in the type of the input, whole numbers rounded and clipped to it."""
    if y.dtype == x.dtype:
        return y
    if np.issubdtype(x.dtype, np.integer):
        info = np.iinfo(x.dtype)
        y = np.clip(np.rint(y), info.min, info.max)
    return y.astype(x.dtype)


@operator("Resize", since=10)
def resize_10(x: Array, scales: Array, *, mode: str = "nearest") -> Any:
    """ONNX Resize-10: asymmetric coordinates, floor."""
    return resize(
        x,
        None,
        scales,
        mode=mode,
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )


@operator("Upsample")
def upsample(x: Array, scales: Array, *, mode: str = "nearest") -> Any:
    """ONNX Upsample: the older name of Resize-10."""
    return resize_10(x, scales, mode=mode)
