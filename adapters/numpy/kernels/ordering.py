"""Sorting and picking. Source: the ONNX operator specification of each name."""

from __future__ import annotations

from typing import Any

import numpy as np

from octavo.adapters.numpy.graph import Array

from .axes import scalar_int
from .registry import operator


@operator("TopK")
def top_k(
    x: Array, count: Array, *, axis: int = -1, largest: int = 1, sorted: int = 1
) -> Any:
    """ONNX TopK: the k largest or smallest along an axis, best first, ties by index.

    Returns:
        Values and indices.
    """
    k = int(np.asarray(count).reshape(-1)[0])
    if largest:
        # Stable from the other end: a stable ascending sort of the reversed array puts equal
        # values in falling index order.
        rising = np.argsort(np.flip(x, axis), axis=axis, kind="stable")
        order = np.flip(x.shape[axis] - 1 - rising, axis)
    else:
        order = np.argsort(x, axis=axis, kind="stable")
    best = np.take(order, np.arange(k), axis=axis)
    return np.take_along_axis(x, best, axis=axis), best.astype(np.int64)


@operator("Unique")
def unique(x: Array, *, axis: int | None = None, sorted: int = 1) -> Any:
    """ONNX Unique: values, first indices, inverse, counts.

    The values are sorted, or in order of first appearance.
    """
    values, first, inverse, counts = np.unique(
        x, return_index=True, return_inverse=True, return_counts=True, axis=axis
    )
    # NumPy 2.0 gives the inverse the input's shape.
    inverse = inverse.reshape(-1)
    if not sorted:
        order = np.argsort(first)
        rank = np.empty_like(order)
        rank[order] = np.arange(order.size)
        values = np.take(values, order, axis=0 if axis is None else axis)
        first, counts, inverse = first[order], counts[order], rank[inverse]
    return (
        values,
        first.astype(np.int64),
        inverse.astype(np.int64),
        counts.astype(np.int64),
    )


@operator("CumProd")
def cumulative_product(
    x: Array, axis: Array, *, exclusive: int = 0, reverse: int = 0
) -> Any:
    """ONNX CumProd: running product along an axis."""
    a = scalar_int(axis)
    y = np.flip(x, a) if reverse else x
    if exclusive:
        # Each place gets the product of those before it.
        ones = np.ones_like(np.take(y, [0], axis=a))
        before = np.take(y, np.arange(y.shape[a] - 1), axis=a)
        y = np.concatenate((ones, before), axis=a)
    total = np.cumprod(y, axis=a, dtype=x.dtype)
    return np.flip(total, a) if reverse else total


@operator("Det")
def determinant(x: Array) -> Any:
    """ONNX Det: the determinant of square matrices."""
    return np.asarray(np.linalg.det(x)).astype(x.dtype)
