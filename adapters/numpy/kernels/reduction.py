"""Reductions. Source: the ONNX operator specification of each name.

Axes are an attribute in older operator sets and an input in newer ones; both are taken.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from octavo.adapters.numpy.graph import Array

from .registry import Kernel, operator

Reduction = Callable[..., Any]
"""(x, axis=tuple, keepdims=bool) -> the reduced array."""


def _bounds(dtype: np.dtype[Any]) -> tuple[Any, Any]:
    """Return a type's smallest and largest value: the maximum and the minimum of nothing."""
    if dtype == np.bool_:
        return False, True
    if dtype.kind in "iu":
        info = np.iinfo(dtype)
        return info.min, info.max
    return -np.inf, np.inf


def _largest(x: Array, axis: Any, keepdims: Any) -> Any:
    smallest, _ = _bounds(x.dtype)
    return np.maximum.reduce(x, axis=axis, keepdims=keepdims, initial=smallest)


def _smallest(x: Array, axis: Any, keepdims: Any) -> Any:
    _, largest = _bounds(x.dtype)
    return np.minimum.reduce(x, axis=axis, keepdims=keepdims, initial=largest)


def _sum_of_magnitudes(x: Array, axis: Any, keepdims: bool) -> Any:
    return np.abs(x).sum(axis=axis, keepdims=keepdims)


def _sum_of_squares(x: Array, axis: Any, keepdims: bool) -> Any:
    return np.square(x).sum(axis=axis, keepdims=keepdims)


def _root_of_squares(x: Array, axis: Any, keepdims: bool) -> Any:
    return np.sqrt(_sum_of_squares(x, axis, keepdims))


def _log_sum(x: Array, axis: Any, keepdims: bool) -> Any:
    with np.errstate(divide="ignore"):
        return np.log(x.sum(axis=axis, keepdims=keepdims))


def _log_sum_exp(x: Array, axis: Any, keepdims: bool) -> Any:
    top = x.max(axis=axis, keepdims=True, initial=-np.inf)
    # Of nothing, or of infinities, there is no maximum to take off.
    top = np.where(np.isfinite(top), top, 0).astype(x.dtype)
    with np.errstate(divide="ignore"):
        total = np.exp(x - top).sum(axis=axis, keepdims=True)
        result = np.log(total) + top
    return result if keepdims else np.squeeze(result, axis=axis)


_REDUCTIONS: dict[str, Reduction] = {
    "ReduceL1": _sum_of_magnitudes,
    "ReduceL2": _root_of_squares,
    "ReduceLogSum": _log_sum,
    "ReduceLogSumExp": _log_sum_exp,
    "ReduceMax": _largest,
    "ReduceMean": np.mean,
    "ReduceMin": _smallest,
    "ReduceProd": np.prod,
    "ReduceSum": np.sum,
    "ReduceSumSquare": _sum_of_squares,
}


def _reducer(reduce: Reduction) -> Kernel:
    """Return the kernel of a reduction; no axes are all axes, or none with the attribute set."""

    def call(
        x: Array,
        given: Array | None = None,
        *,
        axes: Any = None,
        keepdims: int = 1,
        noop_with_empty_axes: int = 0,
    ) -> Any:
        wanted = axes if given is None else tuple(int(a) for a in given)
        if wanted is None or len(wanted) == 0:
            if noop_with_empty_axes:
                return x
            wanted = tuple(range(x.ndim))
        result = reduce(x, axis=tuple(wanted), keepdims=bool(keepdims))
        return np.asarray(result).astype(x.dtype, copy=False)

    return call


for _name, _reduction in _REDUCTIONS.items():
    operator(_name)(_reducer(_reduction))


def _arg(
    x: Array, pick: Callable[..., Any], axis: int, keepdims: int, last: int
) -> Any:
    """Return where an extreme stands along an axis; with ``last``, where it stands last."""
    if last:
        found = x.shape[axis] - 1 - pick(np.flip(x, axis), axis=axis)
    else:
        found = pick(x, axis=axis)
    kept = np.expand_dims(found, axis) if keepdims else np.asarray(found)
    return kept.astype(np.int64)


@operator("ArgMax")
def arg_max(
    x: Array, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0
) -> Any:
    """ONNX ArgMax: index of the maximum along an axis."""
    return _arg(x, np.argmax, axis, keepdims, select_last_index)


@operator("ArgMin")
def arg_min(
    x: Array, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0
) -> Any:
    """ONNX ArgMin: index of the minimum along an axis."""
    return _arg(x, np.argmin, axis, keepdims, select_last_index)


@operator("CumSum")
def cumulative_sum(
    x: Array, axis: Array, *, exclusive: int = 0, reverse: int = 0
) -> Any:
    """ONNX CumSum: running sum along an axis."""
    a = int(axis)
    y = np.flip(x, a) if reverse else x
    total = np.cumsum(y, axis=a, dtype=x.dtype)
    if exclusive:
        total -= y
    return np.flip(total, a) if reverse else total
