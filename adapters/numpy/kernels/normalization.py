"""Normalisations and softmax."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .parallel import spread
from .registry import Build, Kernel, compiled, operator


def _per_channel(v: np.ndarray, ndim: int) -> np.ndarray:
    return v.reshape(1, -1, *(1,) * (ndim - 2))


@operator("BatchNormalization")
def batch_normalization(
    x: np.ndarray, scale: np.ndarray, b: np.ndarray, mean: np.ndarray, variance: np.ndarray,
    *, epsilon: float = 1e-5, momentum: float = 0.9, training_mode: int = 0, spatial: int = 1,
) -> Any:  # fmt: skip
    """scale (x - mean) / sqrt(variance + epsilon) + b, per channel; with ``training_mode``, on the batch's own moments."""
    if training_mode:
        axes = (0, *range(2, x.ndim))
        batch_mean, batch_variance = x.mean(axis=axes), x.var(axis=axes)
        running = [
            (old * momentum + new * (1 - momentum)).astype(old.dtype)
            for old, new in ((mean, batch_mean), (variance, batch_variance))
        ]
        return batch_normalization(
            x, scale, b, batch_mean, batch_variance, epsilon=epsilon
        ), *running
    factor = scale / np.sqrt(variance + variance.dtype.type(epsilon))
    shift = b - mean * factor
    return (x * _per_channel(factor, x.ndim) + _per_channel(shift, x.ndim)).astype(
        x.dtype, copy=False
    )


@operator("InstanceNormalization")
def instance_normalization(
    x: np.ndarray, scale: np.ndarray, b: np.ndarray, *, epsilon: float = 1e-5
) -> Any:
    """Normalise each channel of each sample."""
    axes = tuple(range(2, x.ndim))
    centred = x - x.mean(axis=axes, keepdims=True)
    centred /= np.sqrt(np.square(centred).mean(axis=axes, keepdims=True) + x.dtype.type(epsilon))
    return centred * _per_channel(scale, x.ndim) + _per_channel(b, x.ndim)


@operator("GroupNormalization")
def group_normalization(
    x: np.ndarray,
    scale: np.ndarray,
    b: np.ndarray,
    *,
    num_groups: int,
    epsilon: float = 1e-5,
    stash_type: int = 1,
) -> Any:
    """Normalise groups of channels; scale and bias per group (operator set 18) or per channel (21)."""
    n, c = x.shape[:2]
    grouped = x.reshape(n, num_groups, -1)
    centred = grouped - grouped.mean(axis=2, keepdims=True)
    centred /= np.sqrt(np.square(centred).mean(axis=2, keepdims=True) + x.dtype.type(epsilon))
    if scale.shape[0] != c:
        scale, b = np.repeat(scale, c // num_groups), np.repeat(b, c // num_groups)
    return centred.reshape(x.shape) * _per_channel(scale, x.ndim) + _per_channel(b, x.ndim)


@compiled("LayerNormalization", empty=True)
def layer_normalization(build: Build) -> Kernel:
    """Normalise the trailing axes, in pieces of rows; the mean and 1 / standard deviation come along."""
    axis, epsilon = build.get("axis", -1), build.get("epsilon", 1e-5)

    def run(x: np.ndarray, scale: np.ndarray, b: np.ndarray | None = None, *, empty: Any) -> Any:
        kept = x.shape[: axis % x.ndim]
        rows = np.ascontiguousarray(
            x, dtype=np.float32 if x.dtype.itemsize < 4 else x.dtype
        ).reshape(math.prod(kept), -1)
        kind, width = rows.dtype.type, rows.shape[1]
        y: np.ndarray = empty(rows.shape, rows.dtype)
        mean, inverse = (
            np.empty((rows.shape[0], 1), rows.dtype),
            np.empty((rows.shape[0], 1), rows.dtype),
        )
        gain, shift = scale.reshape(1, -1), None if b is None else b.reshape(1, -1)
        step = max(1, (1 << 15) // max(1, width))

        def work(i: int) -> None:
            part = slice(i * step, (i + 1) * step)
            piece = y[part]
            np.mean(rows[part], axis=1, keepdims=True, out=mean[part])
            np.subtract(rows[part], mean[part], out=piece)
            # einsum sums squares without a temporary of the input's size
            variance = np.einsum("ij,ij->i", piece, piece)[:, None] / kind(width)
            np.divide(1, np.sqrt(variance + kind(epsilon)), out=inverse[part])
            piece *= inverse[part]
            piece *= gain
            if shift is not None:
                piece += shift

        spread(-(-rows.shape[0] // step), work, build.threads)
        shape = (*kept, *(1,) * (x.ndim - len(kept)))
        return (
            y.reshape(x.shape).astype(x.dtype, copy=False),
            mean.reshape(shape),
            inverse.reshape(shape),
        )

    return run


@operator("RMSNormalization", "SimplifiedLayerNormalization")
def rms_normalization(
    x: np.ndarray, scale: np.ndarray, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> Any:
    """X / sqrt(mean of squares + epsilon), scaled, over the trailing axes."""
    axes = tuple(range(axis % x.ndim, x.ndim))
    wide = x.astype(np.float32) if x.dtype.itemsize < 4 else x
    inverse = 1 / np.sqrt(np.square(wide).mean(axis=axes, keepdims=True) + wide.dtype.type(epsilon))
    return (wide * inverse).astype(x.dtype, copy=False) * scale


@operator("LRN")
def local_response_normalization(
    x: np.ndarray, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0
) -> Any:
    """Normalise by neighbouring channels: Krizhevsky et al. 2012, section 3.3."""
    square = np.square(x)
    before, after = (size - 1) // 2, size - 1 - (size - 1) // 2
    pad = np.zeros((x.shape[0], x.shape[1] + before + after, *x.shape[2:]), x.dtype)
    pad[:, before : before + x.shape[1]] = square
    total = sum(pad[:, i : i + x.shape[1]] for i in range(size))
    return x / (bias + alpha / size * total) ** x.dtype.type(beta)


@operator("LpNormalization")
def lp_normalization(x: np.ndarray, *, axis: int = -1, p: int = 2) -> Any:
    """Divide by the p-norm along an axis; zero stays zero."""
    norm = np.linalg.norm(x, ord=p, axis=axis, keepdims=True)
    return np.divide(x, norm, out=np.zeros_like(x), where=norm != 0)


@operator("MeanVarianceNormalization")
def mean_variance_normalization(x: np.ndarray, *, axes: tuple[int, ...] = (0, 2, 3)) -> Any:
    """(x - mean) / standard deviation."""
    centred = x - x.mean(axis=axes, keepdims=True)
    return centred / (
        np.sqrt(np.square(centred).mean(axis=axes, keepdims=True)) + x.dtype.type(1e-9)
    )


def stable_softmax(x: np.ndarray, axis: int) -> Any:
    """e^(x - max) / sum, in one temporary."""
    y = x - x.max(axis=axis, keepdims=True)
    np.exp(y, out=y)
    y /= y.sum(axis=axis, keepdims=True)
    return y


def _log_softmax(x: np.ndarray, axis: int) -> Any:
    shifted = x - x.max(axis=axis, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True))


@operator("Softmax", since=13)
def softmax(x: np.ndarray, *, axis: int = -1) -> Any:
    """Softmax along one axis."""
    return stable_softmax(x, axis)


@operator("LogSoftmax", since=13)
def log_softmax(x: np.ndarray, *, axis: int = -1) -> Any:
    """Logarithm of the softmax along one axis."""
    return _log_softmax(x, axis)


@operator("Softmax")
def softmax_1(x: np.ndarray, *, axis: int = 1) -> Any:
    """Softmax over all trailing axes from ``axis`` on (operator sets 1 to 12)."""
    return stable_softmax(x.reshape(*x.shape[: axis % x.ndim], -1), -1).reshape(x.shape)


@operator("LogSoftmax")
def log_softmax_1(x: np.ndarray, *, axis: int = 1) -> Any:
    """Logarithm of the softmax over all trailing axes (operator sets 1 to 12)."""
    return _log_softmax(x.reshape(*x.shape[: axis % x.ndim], -1), -1).reshape(x.shape)


@operator("Hardmax", since=13)
def hardmax(x: np.ndarray, *, axis: int = -1) -> Any:
    """One at the first maximum along an axis, zero elsewhere."""
    y = np.zeros_like(x)
    np.put_along_axis(y, np.expand_dims(x.argmax(axis=axis), axis), 1, axis=axis)
    return y
