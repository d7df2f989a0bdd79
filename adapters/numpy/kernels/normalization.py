"""Normalisations. Source: the ONNX operator specification of each name."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np

from octavo.adapters.numpy.graph import Array

from .axes import along
from .parallel import spread
from .registry import Build, Kernel, compiled, operator

# Elements of one piece of rows; a piece and its temporaries stay in the cache.
_CHUNK = 1 << 15


def _scaled(x: Array, factor: Array, shift: Array) -> Array:
    """Return x factor + shift, per channel."""
    gain = along(factor, 1, x.ndim)
    return np.asarray(x * gain + along(shift, 1, x.ndim))


def _at_least_float32(x: Array) -> np.dtype[Any]:
    return np.dtype(np.float32) if x.dtype.itemsize < 4 else x.dtype


@operator("BatchNormalization")
def batch_normalization(
    x: Array,
    scale: Array,
    b: Array,
    mean: Array,
    variance: Array,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    training_mode: int = 0,
    spatial: int = 1,
) -> Any:
    """ONNX BatchNormalization: scale (x - mean) / sqrt(variance + epsilon) + b, per channel.

    With ``training_mode`` on the batch's own moments; the running ones come along.
    """
    if training_mode:
        axes = (0, *range(2, x.ndim))
        batch_mean = x.mean(axis=axes)
        batch_variance = x.var(axis=axes)
        y = batch_normalization(
            x, scale, b, batch_mean, batch_variance, epsilon=epsilon
        )
        next_mean = _running(mean, batch_mean, momentum)
        next_variance = _running(variance, batch_variance, momentum)
        return y, next_mean, next_variance
    deviation = np.sqrt(variance + variance.dtype.type(epsilon))
    factor = scale / deviation
    shift = b - mean * factor
    return _scaled(x, factor, shift).astype(x.dtype, copy=False)


def _running(old: Array, new: Array, momentum: float) -> Array:
    mixed = old * momentum + new * (1 - momentum)
    return mixed.astype(old.dtype)


def _standardised(x: Array, axes: int | tuple[int, ...], epsilon: float) -> Array:
    """Return (x - mean) / sqrt(variance + epsilon) over axes."""
    centred = x - x.mean(axis=axes, keepdims=True)
    variance = np.square(centred).mean(axis=axes, keepdims=True)
    centred /= np.sqrt(variance + x.dtype.type(epsilon))
    return np.asarray(centred)


@operator("InstanceNormalization")
def instance_normalization(
    x: Array, scale: Array, b: Array, *, epsilon: float = 1e-5
) -> Any:
    """ONNX InstanceNormalization: normalise each channel of each sample."""
    spatial = tuple(range(2, x.ndim))
    return _scaled(_standardised(x, spatial, epsilon), scale, b)


@operator("GroupNormalization")
def group_normalization(
    x: Array,
    scale: Array,
    b: Array,
    *,
    num_groups: int,
    epsilon: float = 1e-5,
    stash_type: int = 1,
) -> Any:
    """ONNX GroupNormalization: normalise groups of channels.

    Scale and bias are per group (operator set 18) or per channel (21).
    """
    n, channels = x.shape[:2]
    groups = x.reshape(n, num_groups, -1)
    y = _standardised(groups, 2, epsilon).reshape(x.shape)
    if scale.shape[0] != channels:
        each = channels // num_groups
        scale = np.repeat(scale, each)
        b = np.repeat(b, each)
    return _scaled(y, scale, b)


@compiled("LayerNormalization", empty=True)
def layer_normalization(build: Build) -> Kernel:
    """ONNX LayerNormalization: normalise the trailing axes, in pieces of rows.

    The mean and 1 / standard deviation come along.
    """
    axis = build.get("axis", -1)
    epsilon = build.get("epsilon", 1e-5)
    return partial(_layer_normalization, axis, epsilon, build.threads)


def _layer_normalization(
    axis: int,
    epsilon: float,
    threads: int,
    x: Array,
    scale: Array,
    b: Any = None,
    *,
    empty: Any,
) -> tuple[Array, Array, Array]:
    kept = x.shape[: axis % x.ndim]
    count = math.prod(kept)
    in_order = np.ascontiguousarray(x, dtype=_at_least_float32(x))
    rows = in_order.reshape(count, -1)
    width = rows.shape[1]
    kind = rows.dtype.type
    y: Array = empty(rows.shape, rows.dtype)
    mean = np.empty((count, 1), rows.dtype)
    inverse = np.empty((count, 1), rows.dtype)
    gain = scale.reshape(1, -1)
    shift = None if b is None else b.reshape(1, -1)
    step = max(1, _CHUNK // max(1, width))

    def work(i: int) -> None:
        start = i * step
        part = slice(start, start + step)
        piece = y[part]
        source = rows[part]
        np.mean(source, axis=1, keepdims=True, out=mean[part])
        np.subtract(source, mean[part], out=piece)
        # einsum sums squares without a temporary of the input's size
        squares = np.einsum("ij,ij->i", piece, piece)
        variance = squares[:, None] / kind(width)
        deviation = np.sqrt(variance + kind(epsilon))
        np.divide(1, deviation, out=inverse[part])
        piece *= inverse[part]
        piece *= gain
        if shift is not None:
            piece += shift

    spread(-(-count // step), work, threads)
    normal = y.reshape(x.shape).astype(x.dtype, copy=False)
    ones = (1,) * (x.ndim - len(kept))
    moments = (*kept, *ones)
    return normal, mean.reshape(moments), inverse.reshape(moments)


@operator("RMSNormalization", "SimplifiedLayerNormalization")
def rms_normalization(
    x: Array,
    scale: Array,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
) -> Any:
    """ONNX RMSNormalization: x / sqrt(mean of squares + epsilon), scaled, over trailing axes."""
    axes = tuple(range(axis % x.ndim, x.ndim))
    wide = x.astype(_at_least_float32(x), copy=False)
    mean_square = np.square(wide).mean(axis=axes, keepdims=True)
    inverse = 1 / np.sqrt(mean_square + wide.dtype.type(epsilon))
    normal = (wide * inverse).astype(x.dtype, copy=False)
    return normal * scale


@operator("LRN")
def local_response_normalization(
    x: Array, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0
) -> Any:
    """ONNX LRN: normalise by neighbouring channels (Krizhevsky et al. 2012, section 3.3)."""
    channels = x.shape[1]
    before = (size - 1) // 2
    # Channels beyond the first and the last count as zero.
    square = np.zeros((x.shape[0], channels + size - 1, *x.shape[2:]), x.dtype)
    square[:, before : before + channels] = np.square(x)
    total = sum(square[:, i : i + channels] for i in range(size))
    base = bias + alpha / size * total
    return x / base ** x.dtype.type(beta)


@operator("LpNormalization")
def lp_normalization(x: Array, *, axis: int = -1, p: int = 2) -> Any:
    """ONNX LpNormalization: divide by the p-norm along an axis; zero stays zero."""
    norm = np.linalg.norm(x, ord=p, axis=axis, keepdims=True)
    return np.divide(x, norm, out=np.zeros_like(x), where=norm != 0)


@operator("MeanVarianceNormalization")
def mean_variance_normalization(x: Array, *, axes: tuple[int, ...] = (0, 2, 3)) -> Any:
    """ONNX MeanVarianceNormalization: (x - mean) / standard deviation."""
    centred = x - x.mean(axis=axes, keepdims=True)
    deviation = np.sqrt(np.square(centred).mean(axis=axes, keepdims=True))
    # The operator's definition adds 1e-9 to the deviation, so that constants give 0.
    return centred / (deviation + x.dtype.type(1e-9))
