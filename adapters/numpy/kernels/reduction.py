"""Reductions. Axes are an attribute in older operator sets and an input in newer ones; both are taken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .registry import operator


def _log_sum_exp(x: np.ndarray, axis: Any, keepdims: bool) -> Any:
    top = x.max(axis=axis, keepdims=True, initial=-np.inf)
    top = np.where(np.isfinite(top), top, 0).astype(x.dtype)
    with np.errstate(divide="ignore"):
        result = np.log(np.exp(x - top).sum(axis=axis, keepdims=True)) + top
    return result if keepdims else np.squeeze(result, axis=axis)


def _extreme(ufunc: Any, sign: int) -> Callable[..., Any]:
    def reduce(x: np.ndarray, axis: Any, keepdims: bool) -> Any:
        if x.dtype == np.bool_:
            initial: Any = sign < 0
        elif x.dtype.kind in "iu":
            initial = np.iinfo(x.dtype).min if sign > 0 else np.iinfo(x.dtype).max
        else:
            initial = -np.inf if sign > 0 else np.inf
        return ufunc.reduce(x, axis=axis, keepdims=keepdims, initial=initial)

    return reduce


def _keep(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x, axis, keepdims: function(x, axis=axis, keepdims=keepdims)


_REDUCTIONS: dict[str, Callable[..., Any]] = {
    "ReduceSum": _keep(np.sum),
    "ReduceMean": _keep(np.mean),
    "ReduceProd": _keep(np.prod),
    "ReduceMax": _extreme(np.maximum, 1),
    "ReduceMin": _extreme(np.minimum, -1),
    "ReduceL1": lambda x, axis, keepdims: np.abs(x).sum(axis=axis, keepdims=keepdims),
    "ReduceL2": lambda x, axis, keepdims: np.sqrt(np.square(x).sum(axis=axis, keepdims=keepdims)),
    "ReduceSumSquare": lambda x, axis, keepdims: np.square(x).sum(axis=axis, keepdims=keepdims),
    "ReduceLogSum": lambda x, axis, keepdims: np.log(x.sum(axis=axis, keepdims=keepdims)),
    "ReduceLogSumExp": _log_sum_exp,
}


def _reducer(reduce: Callable[..., Any]) -> Callable[..., Any]:
    def call(
        x: np.ndarray,
        given: np.ndarray | None = None,
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
        return np.asarray(reduce(x, tuple(wanted), bool(keepdims))).astype(x.dtype, copy=False)

    return call


def _silent(reduce: Callable[..., Any]) -> Callable[..., Any]:
    def call(x: np.ndarray, axis: Any, keepdims: bool) -> Any:
        with np.errstate(divide="ignore"):
            return reduce(x, axis, keepdims)

    return call


for _name, _reduce in _REDUCTIONS.items():
    operator(_name)(_reducer(_silent(_reduce) if _name == "ReduceLogSum" else _reduce))


def _arg(x: np.ndarray, pick: Callable[..., Any], axis: int, keepdims: int, last: int) -> Any:
    if last:
        found = x.shape[axis] - 1 - pick(np.flip(x, axis), axis=axis)
    else:
        found = pick(x, axis=axis)
    return (np.expand_dims(found, axis) if keepdims else np.asarray(found)).astype(np.int64)


@operator("ArgMax")
def arg_max(x: np.ndarray, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Any:
    """Index of the maximum along an axis."""
    return _arg(x, np.argmax, axis, keepdims, select_last_index)


@operator("ArgMin")
def arg_min(x: np.ndarray, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Any:
    """Index of the minimum along an axis."""
    return _arg(x, np.argmin, axis, keepdims, select_last_index)


@operator("CumSum")
def cumulative_sum(x: np.ndarray, axis: np.ndarray, *, exclusive: int = 0, reverse: int = 0) -> Any:
    """Running sum along an axis."""
    a = int(axis)
    y = np.flip(x, a) if reverse else x
    total = np.cumsum(y, axis=a, dtype=x.dtype)
    if exclusive:
        total -= y
    return np.flip(total, a) if reverse else total
