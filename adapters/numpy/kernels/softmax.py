"""Softmax in its forms. Source: the ONNX operator specification of each name."""

from __future__ import annotations

from typing import Any

import numpy as np

from octavo.adapters.numpy.graph import Array

from .registry import operator


def stable_softmax(x: Array, axis: int) -> Any:
    """e^(x - max) / sum, in one temporary."""
    y = x - x.max(axis=axis, keepdims=True)
    np.exp(y, out=y)
    y /= y.sum(axis=axis, keepdims=True)
    return y


def tops_of(scores: Array) -> Array:
    """Return each row's maximum; 0 for a row that may look nowhere (all -inf)."""
    top = scores.max(axis=-1, keepdims=True)
    np.copyto(top, 0, where=np.isneginf(top))
    return np.asarray(top)


def totals_of(exponentials: Array) -> Array:
    """Return each row's sum; 1 for a row of zeros, which stays one when divided by it."""
    total = exponentials.sum(axis=-1, keepdims=True)
    np.copyto(total, 1, where=total == 0)
    return np.asarray(total)


def masked_softmax(x: Array) -> Array:
    """Softmax over the last axis, in place; a row that may look nowhere becomes all zero."""
    x -= tops_of(x)
    np.exp(x, out=x)
    x /= totals_of(x)
    return x


def _log_softmax(x: Array, axis: int) -> Any:
    shifted = x - x.max(axis=axis, keepdims=True)
    total = np.exp(shifted).sum(axis=axis, keepdims=True)
    return shifted - np.log(total)


def _flat_from(x: Array, axis: int) -> Array:
    """Reshape so that all axes from ``axis`` on are one."""
    kept = x.shape[: axis % x.ndim]
    return x.reshape(*kept, -1)


@operator("Softmax", since=13)
def softmax(x: Array, *, axis: int = -1) -> Any:
    """ONNX Softmax-13: along one axis."""
    return stable_softmax(x, axis)


@operator("LogSoftmax", since=13)
def log_softmax(x: Array, *, axis: int = -1) -> Any:
    """ONNX LogSoftmax-13: along one axis."""
    return _log_softmax(x, axis)


@operator("Softmax")
def softmax_1(x: Array, *, axis: int = 1) -> Any:
    """ONNX Softmax-1 and -11: over all trailing axes from ``axis`` on."""
    flat = _flat_from(x, axis)
    return stable_softmax(flat, -1).reshape(x.shape)


@operator("LogSoftmax")
def log_softmax_1(x: Array, *, axis: int = 1) -> Any:
    """ONNX LogSoftmax-1 and -11: over all trailing axes from ``axis`` on."""
    flat = _flat_from(x, axis)
    return _log_softmax(flat, -1).reshape(x.shape)


@operator("Hardmax", since=13)
def hardmax(x: Array, *, axis: int = -1) -> Any:
    """ONNX Hardmax-13: one at the first maximum along an axis, zero elsewhere."""
    y = np.zeros_like(x)
    first = x.argmax(axis=axis)
    np.put_along_axis(y, np.expand_dims(first, axis), 1, axis=axis)
    return y
